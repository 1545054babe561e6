"""The access log: a line for each request, with what an operator counts and nothing that was said.

`serving` makes an `Access` when a request comes and logs it when its answer is sent; the middleware
fills in what Django knows of it. Under another WSGI server the middleware does all of that.
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

ACCESS = "agentmem.access"  # where the WSGI environment has the request's Access

logger = logging.getLogger("agentmem.access")

_UNKNOWN = ""  # nobody has looked up the route yet
_METHOD_LENGTH = 20


class Who(NamedTuple):
    """Whose key, or who is signed in to the console."""

    organization_id: UUID | None = None
    key_id: UUID | None = None
    member_id: UUID | str | None = None


@dataclass(slots=True)
class Access:
    """A request on its way. `route` is a template as `/api/v1/agents/{agent_id}`, None where no
    address fits: what stands in a path may be a person's name."""

    method: str
    route: str | None = _UNKNOWN
    who: Who | None = None
    status: int = 0
    bytes_sent: int = 0  # of the body
    request_id: str = ""
    _begun_s: float = field(default_factory=time.perf_counter)

    def log(self, path: str) -> None:
        """Writes the line, once the answer is sent. Probes of health that went well leave none."""
        if not settings.ACCESS_LOG:
            return
        if self.route == _UNKNOWN:
            self.route = route_to(path)
        is_probe = self.route is not None and self.route.startswith("/health/")
        if is_probe and self.status < 400:
            return
        method = self.method[:_METHOD_LENGTH]
        who = self.who or Who()
        fields = {
            "method": method,
            "route": self.route,
            "status": self.status,
            "duration_ms": round(1000 * (time.perf_counter() - self._begun_s), 1),
            "bytes": 0 if method == "HEAD" else self.bytes_sent,
            **who._asdict(),
            "request_id": self.request_id,
        }
        logger.info("%s %s %d", method, self.route, self.status, extra={"fields": fields})


class AccessLogMiddleware:
    """The outermost one: what the others refuse has its line, too."""

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
        access.who = _caller(request) or access.who
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
    """The parts of an answer; its end, or its being given up, writes the line."""

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
    """The template of the route that answers `path`; None where there is none."""
    if path.startswith(settings.STATIC_URL):
        return f"{settings.STATIC_URL}{{path}}"
    try:
        return template_of(resolve(path).route)
    except Resolver404:
        return None


def _caller(request: HttpRequest) -> Who | None:
    """Of whom the door has already looked up; asks nothing."""
    user: Any = request.__dict__.get("user")
    if isinstance(user, LazyObject):
        user = request.__dict__.get("_cached_user")  # None: no view asked who it is
    match user:
        case Caller():
            return Who(user.organization.pk, key_id=user.actor.id)
        case Member():
            return Who(user.organization_id, member_id=user.pk)
    return None
