"""The access log: a line for each request, with figures for the operator and without content.

`serving` creates an `Access` when a request arrives and logs it when its response is sent; the
middleware fills in what Django knows. Under another WSGI server the middleware does all of that.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

from django.conf import settings
from django.core.exceptions import MiddlewareNotUsed
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.urls import Resolver404, resolve
from django.utils.functional import LazyObject

from accounts.api.authentication import Caller
from accounts.models import Member
from agentmem_site.logs import template_of

ACCESS = "agentmem.access"  # the key of the request's Access in the WSGI environment

logger = logging.getLogger("agentmem.access")

_UNKNOWN = ""  # the route has not been looked up yet
_MAX_METHOD_LENGTH = 20


class Identity(NamedTuple):
    """The holder of the key, or who is signed in to the console."""

    organization_id: UUID | None = None
    key_id: UUID | None = None
    member_id: UUID | str | None = None


@dataclass(slots=True)
class Access:
    """A request in progress. `route` is a template such as `/api/v1/agents/{agent_id}`, None if
    no route matches. The path itself may contain a person's name."""

    method: str
    route: str | None = _UNKNOWN
    identity: Identity | None = None
    status: int = 0
    bytes_sent: int = 0  # of the body
    request_id: str = ""
    _started_s: float = field(default_factory=time.perf_counter)

    def log(self, path: str) -> None:
        """Writes the line, once the response is sent. Successful health probes have none."""
        if not settings.ACCESS_LOG:
            return
        if self.route == _UNKNOWN:
            self.route = route_to(path)
        is_probe = self.route is not None and self.route.startswith("/health/")
        if is_probe and self.status < 400:
            return
        method = self.method[:_MAX_METHOD_LENGTH]
        identity = self.identity or Identity()
        fields = {
            "method": method,
            "route": self.route,
            "status": self.status,
            "duration_ms": round(1000 * (time.perf_counter() - self._started_s), 1),
            "bytes": 0 if method == "HEAD" else self.bytes_sent,
            **identity._asdict(),
            "request_id": self.request_id,
        }
        logger.info("%s %s %d", method, self.route, self.status, extra={"fields": fields})


class AccessLogMiddleware:
    """The outermost middleware: requests that the others refuse have their line, too."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        if not settings.ACCESS_LOG:
            raise MiddlewareNotUsed
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        given: Access | None = request.META.get(ACCESS)
        access = given or Access(request.method or "")
        response: Any = self.get_response(request)
        match = request.resolver_match
        access.route = template_of(match.route) if match else route_to(request.path_info)
        access.identity = _caller(request) or access.identity
        if given is not None:
            return response
        access.status = response.status_code
        access.request_id = response.get("X-Request-Id", "")
        if response.streaming:
            parts = _Counted(response.streaming_content, access, request.path_info)
            response.streaming_content = parts
        else:
            access.bytes_sent = len(response.content)
            access.log(request.path_info)
        return response


class _Counted:
    """The parts of a response; closing it writes the line."""

    def __init__(self, parts: Iterable[bytes], access: Access, path: str) -> None:
        self._parts = iter(parts)
        self._access = access
        self._path = path

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        part = next(self._parts)
        self._access.bytes_sent += len(part)
        return part

    def close(self) -> None:
        self._access.log(self._path)


def route_to(path: str) -> str | None:
    """The template of the route that matches `path`; None if there is none."""
    if path.startswith(settings.STATIC_URL):
        return f"{settings.STATIC_URL}{{path}}"
    try:
        return template_of(resolve(path).route)
    except Resolver404:
        return None


def _caller(request: HttpRequest) -> Identity | None:
    """The caller, if a view has looked it up; without a query."""
    user: Any = request.__dict__.get("user")
    if isinstance(user, LazyObject):
        user = request.__dict__.get("_cached_user")  # None: no view has looked it up
    match user:
        case Caller():
            return Identity(user.organization.pk, key_id=user.actor.id)
        case Member():
            return Identity(user.organization_id, member_id=user.pk)
    return None
