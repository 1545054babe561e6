"""The console's page while the database is unavailable, full or read-only.

It makes no query. (Failures of the API: agentmem_site/api/problems.py.)
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

_MESSAGES = {
    AWAY: "The database is not available right now. Try again in a while.",
    DISK_FULL: "The database's disk is full: nobody can sign in, and nothing can be saved.",
    READ_ONLY: "The database is read-only now: nobody can sign in, and nothing can be saved.",
}


class ConsoleSessionMiddleware(SessionMiddleware):
    """Sessions of the console, and its response to a failure of the database, in a view or in the
    session store."""

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
        page = refusal_page(_MESSAGES[outage], 503)
        page["Retry-After"] = str(outage.wait_s)
        return page


def refusal_page(message: str, status: int) -> HttpResponse:
    html = render_to_string("console/unavailable.html", {"message": message})
    return HttpResponse(html, status=status)
