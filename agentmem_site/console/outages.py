"""What a person sees in the console while the database is away, full or read-only: one plain page.

It asks the database nothing. (Failures of the API: agentmem_site/api/problems.py.)
"""

import logging
from typing import cast

from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.template.loader import render_to_string
from django.urls import reverse

from agentmem_site.db.outages import AWAY, DISK_FULL, READ_ONLY, outage_of
from agentmem_site.db.refusals import reason

logger = logging.getLogger("agentmem.console")

_WORDS = {
    AWAY: "The database cannot answer right now. The same page may well open in a while.",
    DISK_FULL: "The database's disk is full: nobody can sign in, and nothing can be saved.",
    READ_ONLY: "The database is read-only now: nobody can sign in, and nothing can be saved.",
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
        outage = outage_of(error)
        if outage is None:
            return None
        logger.warning("%s (%s)", outage.message, reason(error))
        page = refusal_page(_WORDS[outage], 503)
        page["Retry-After"] = str(outage.wait_s)
        return page


def refusal_page(words: str, status: int) -> HttpResponse:
    html = render_to_string("console/unavailable.html", {"words": words})
    return HttpResponse(html, status=status)
