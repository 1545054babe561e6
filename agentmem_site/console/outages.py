"""What a person sees in the console while the database is away, full or read-only: one plain page.

It asks the database nothing. (Failures of the API: agentmem_site/api.py.)
"""

import logging
from typing import cast

import psycopg
from django.contrib.sessions.middleware import SessionMiddleware
from django.db import InterfaceError, InternalError, OperationalError
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.template.loader import render_to_string
from django.urls import reverse

logger = logging.getLogger("agentmem.console")

_AWAY = "The database cannot answer right now. The same page may well open in a while."
_BY_STATE = {  # words and seconds to wait, by SQLSTATE
    "53100": ("The database's disk is full: nobody can sign in, and nothing can be saved.", 30),
    "25006": ("The database is read-only now: nobody can sign in, and nothing can be saved.", 5),
}


class ConsoleSessionMiddleware(SessionMiddleware):
    """Sessions of the console; and its pages' answer to a failure of the database, in a view or
    where the session itself is kept."""

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        try:
            return cast(HttpResponseBase, super().__call__(request))
        except Exception as error:
            page = self.process_exception(request, error)
            if page is None:
                raise
            return page

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        if not request.path.startswith(reverse("admin:index")):
            return None
        match error:
            case OperationalError() | InterfaceError() | psycopg.OperationalError():
                return _page(error)
            case InternalError() if _state(error) in _BY_STATE:
                return _page(error)
        return None


def _page(error: Exception) -> HttpResponse:
    state = _state(error)
    words, wait_s = _BY_STATE.get(state, (_AWAY, 1))
    logger.warning("The database is unavailable (SQLSTATE %s)", state or "none")
    page = refusal_page(words, 503)
    page["Retry-After"] = str(wait_s)
    return page


def refusal_page(words: str, status: int) -> HttpResponse:
    html = render_to_string("console/unavailable.html", {"words": words})
    return HttpResponse(html, status=status)


def _state(error: Exception) -> str:
    return getattr(error.__cause__ or error, "sqlstate", None) or ""
