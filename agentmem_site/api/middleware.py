"""Middleware for every request: its id, the limits of its statements, the console's policy."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar

from django.http import HttpRequest, HttpResponse, HttpResponsePermanentRedirect
from django.middleware.common import CommonMiddleware
from django.urls import reverse

from agentmem_site.db.ids import uuid7
from agentmem_site.db.limits import limited

current_request_id: ContextVar[str] = ContextVar("current_request_id", default="")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


# The console loads scripts only from this host. Alpine, which unfold is built on, compiles the
# expressions in attributes ('unsafe-eval'). unfold sets its colours in a <style> element and shows
# JSON with style attributes ('unsafe-inline', only for styles).
CONSOLE_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "font-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)


def request_id_of(given: str) -> str:
    return given if _REQUEST_ID.fullmatch(given) else str(uuid7())


class RequestIdMiddleware:
    """Takes the id from a valid X-Request-Id, or generates one; the response always has it."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        request.id = request_id_of(request.headers.get("X-Request-Id", ""))  # type: ignore[attr-defined]
        token = current_request_id.set(request.id)  # type: ignore[attr-defined]
        try:
            response = self.get_response(request)
        finally:
            current_request_id.reset(token)
        response["X-Request-Id"] = request.id  # type: ignore[attr-defined]
        return response


class HostMiddleware(CommonMiddleware):
    """Refuses a Host that is not in AGENTMEM_ALLOWED_HOSTS, except for probes, which use the
    server's address."""

    def process_request(self, request: HttpRequest) -> HttpResponsePermanentRedirect | None:
        if request.path_info.startswith("/health/"):
            return None
        return super().process_request(request)


class StatementLimitsMiddleware:
    """Limits how long a statement of a request may run, or wait for a lock."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        with limited():
            response = self.get_response(request)
        if response.streaming:
            response.streaming_content = _limited_parts(response.streaming_content)  # type: ignore[attr-defined]
        return response


def _limited_parts(parts: Iterable[bytes]) -> Iterator[bytes]:
    with limited():
        yield from parts


class ConsolePolicyMiddleware:
    """Lets the console's pages load and run only what this host serves."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        if request.path.startswith(reverse("admin:index")):
            response["Content-Security-Policy"] = CONSOLE_POLICY
        return response
