"""The path of a request from granian to Django and back (RSGI)."""

import asyncio
import logging
import resource
import sys
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import IO, Any, TypeVar, cast

from django.db import DatabaseError, InterfaceError, close_old_connections
from django.http import HttpRequest
from django.urls import reverse

from agentmem_site.api import health
from agentmem_site.api.middleware import current_request_id, request_id_of
from agentmem_site.api.problems import plain_problem
from agentmem_site.console.outages import refusal_page
from agentmem_site.db.limits import limited
from agentmem_site.db.outages import AWAY, outage_of
from agentmem_site.serving.access_log import ACCESS, Access
from agentmem_site.serving.bodies import KIB, Body, Pace, Stream, TooSlow, spool
from agentmem_site.serving.doors import FORM_BYTES, door_to, identify
from agentmem_site.serving.responses import (
    WSGI,
    Pipe,
    ServerResponse,
    call_wsgi,
    closed_after,
    header_list,
    wsgi_environ,
)
from agentmem_site.serving.threads import Busy, Threads

# A body that arrives with the headers, or right after them, is read without looking up the caller.
_FIRST_BYTES, _FIRST_S = 64 * KIB, 0.5
_BUSY_AFTER_S = 2.0
_DRAINED_BYTES, _DRAINED_S, _DRAIN_IDLE_S = 64 * 1024 * KIB, 10.0, 1.0
_KEPT_OPEN_UP_TO = 1024 * KIB  # with at most this much of a body left, the connection stays open
_SWITCHES_EVERY_S = 0.001
_TOO_SLOW = 408

_LIVE = ("/health/live", "/health/live/")
_READY = ("/health/ready", "/health/ready/")
_BUSY = "The server is busy. Send the request again in a moment."
_SIGN_IN_FIRST = "The form is too large for somebody who is not signed in."

T = TypeVar("T")

logger = logging.getLogger("agentmem.serving")


class _CutShort(Exception):
    """The connection ended before the body did."""


class Application:
    """Calls `wsgi` in threads: `threads` requests compute at the same time, up to `max_threads`
    including those that wait. `transfers` bodies and responses are streamed, each of which may
    stall for `idle_s` seconds."""

    def __init__(
        self,
        wsgi: WSGI,
        *,
        threads: int,
        max_threads: int,
        transfers: int,
        idle_s: float,
    ) -> None:
        self._wsgi = wsgi
        self._idle_s = idle_s
        self._threads = Threads(
            "request",
            computing=threads,
            total=max(threads, max_threads),
            timeout_s=_BUSY_AFTER_S,
        )
        self._transfers = Threads(
            "transfer", computing=transfers, total=transfers, timeout_s=_BUSY_AFTER_S
        )
        self._probes = Threads("probe", computing=1, total=1, timeout_s=_BUSY_AFTER_S)
        self._ready: asyncio.Task[ServerResponse] | None = None
        live = health.live(_probe())
        self._live, self._live_headers = live.content, header_list(live)
        self._form_pace = Pace(idle_s=idle_s / 3, min_rate=0, total_s=idle_s / 3)
        self._body_pace = Pace(idle_s=idle_s, min_rate=KIB, total_s=10 * idle_s)
        self._stream_pace = Pace(idle_s=idle_s, min_rate=KIB / 16)

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # The event loop gets its turn quickly, however many threads compute.
        sys.setswitchinterval(_SWITCHES_EVERY_S)
        _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        if scope.path in _LIVE and scope.method in ("GET", "HEAD"):
            protocol.response_bytes(200, self._live_headers, self._live)
            return
        body = Body(protocol, _length(scope))
        access = Access(scope.method)
        try:
            try:
                await self._respond(scope, protocol, body, access)
            finally:
                access.log(scope.path)
            await body.drain(up_to=_DRAINED_BYTES, within_s=_DRAINED_S, idle_s=_DRAIN_IDLE_S)
        finally:
            await body.close()

    async def _respond(self, scope: Any, protocol: Any, body: Body, access: Access) -> None:
        try:
            response = await self._response(scope, body, access)
            self._close_after(scope, body, response)
            await self._send(protocol, response, access)
        except Exception as error:
            response = _error_response(scope, error)
            self._close_after(scope, body, response)
            await self._send(protocol, response, access)

    def _close_after(self, scope: Any, body: Body, response: ServerResponse) -> None:
        """Closes the connection after this response, unless so little of the body remains that it
        is drained."""
        remaining = body.remaining
        is_short = remaining is not None and remaining <= _KEPT_OPEN_UP_TO
        is_kept = is_short and response.status != _TOO_SLOW
        if not is_kept and scope.http_version.startswith("1"):
            response.headers.append(("connection", "close"))

    async def _response(self, scope: Any, body: Body, access: Access) -> ServerResponse:
        if scope.path in _READY and body.ended:
            return await self._readiness(scope)
        if body.ended:
            return await self._call(scope, access, BytesIO(), 0)
        with spool() as collected:
            try:
                first = Pace(idle_s=_FIRST_S, min_rate=0, total_s=_FIRST_S)
                await body.read(collected, up_to=_FIRST_BYTES, pace=first)
            except TooSlow:
                pass
            if not body.ended or body.is_cut_short:
                door = door_to(scope.path)
                headers = dict(scope.headers.items())
                look_up = partial(_with_database, partial(identify, door, headers))
                identity = await self._threads.run(look_up, last=True)  # (it is late already)
                if identity is None:
                    if not door.is_console:  # Django refuses it
                        return await self._call(scope, access, BytesIO(), 0, last=True)
                    await body.read(collected, up_to=FORM_BYTES + 1, pace=self._form_pace)
                    if body.received > FORM_BYTES:
                        return _refusal(scope, 413, "body_too_large", _SIGN_IN_FIRST)
                else:
                    access.identity = identity
                    if door.streams:
                        return await self._stream(scope, access, body, collected)
                    # (One byte more than allowed shows Django that the body is too long.)
                    await body.read(collected, up_to=door.max_bytes + 1, pace=self._body_pace)
            if body.is_cut_short:
                raise _CutShort
            collected.seek(0)
            return await self._call(scope, access, collected, body.received)

    async def _call(
        self, scope: Any, access: Access, body: IO[bytes], length: int, *, last: bool = False
    ) -> ServerResponse:
        environ = wsgi_environ(scope, body, length) | {ACCESS: access}
        # Requests for a locked table pile up: other kinds go before them.
        kind = "/".join(scope.path.split("/", 4)[:4])
        return await self._threads.run(
            partial(call_wsgi, self._wsgi, environ), kind=kind, last=last
        )

    async def _stream(
        self, scope: Any, access: Access, body: Body, collected: IO[bytes]
    ) -> ServerResponse:
        collected.seek(0)
        loop = asyncio.get_running_loop()
        stream = Stream(collected.read(), body, self._stream_pace, loop)
        environ = wsgi_environ(scope, cast(IO[bytes], stream), body.length) | {ACCESS: access}
        return await self._transfers.run(partial(call_wsgi, self._wsgi, environ))

    async def _readiness(self, scope: Any) -> ServerResponse:
        """One response for all simultaneous probes, from a thread of its own."""
        if self._ready is None or self._ready.done():
            # (Each probe logs itself; the shared call gets an Access that is never logged.)
            environ = wsgi_environ(scope, BytesIO(), 0) | {ACCESS: Access(scope.method)}
            self._ready = asyncio.ensure_future(
                self._probes.run(partial(call_wsgi, self._wsgi, environ))
            )
        shared = await asyncio.shield(self._ready)
        return ServerResponse(shared.status, list(shared.headers), shared.body)

    async def _send(self, protocol: Any, response: ServerResponse, access: Access) -> None:
        """Raises: Busy."""
        parts = response.body
        access.status = response.status
        access.request_id = dict(response.headers).get("x-request-id", "")
        if isinstance(parts, bytes):
            access.bytes_sent = len(parts)
            protocol.response_bytes(response.status, response.headers, parts)
            return
        loop = asyncio.get_running_loop()

        def send() -> None:
            with Pipe() as pipe:
                head = (response.status, response.headers)
                loop.call_soon_threadsafe(partial(protocol.response_file, *head, pipe.path))
                try:
                    pipe.send(parts, idle_s=self._idle_s)
                except Exception:
                    logger.exception("A response broke off")
                finally:
                    access.bytes_sent = pipe.sent_bytes

        try:
            await self._transfers.run(send)
        except Busy:
            with closed_after(parts):
                raise


def _probe() -> HttpRequest:
    request = HttpRequest()
    request.method = "GET"
    return request


def _length(scope: Any) -> int | None:
    """Of the body, in bytes; None if unknown."""
    length = scope.headers.get("content-length")
    if length is not None:
        return int(length)
    is_unknown = "transfer-encoding" in scope.headers or scope.http_version.startswith("2")
    return None if is_unknown else 0


def _with_database(query: Callable[[], T]) -> T:
    """Handles connections as Django does around a request."""
    close_old_connections()
    try:
        with limited():
            return query()
    finally:
        close_old_connections()


def _error_response(scope: Any, error: Exception) -> ServerResponse:
    match error:
        case Busy():
            return _refusal(scope, 503, "busy", _BUSY, wait_s=1)
        case TooSlow():
            detail = f"The body arrived too slowly: {error}."
            return _refusal(scope, _TOO_SLOW, "body_too_slow", detail)
        case _CutShort():
            detail = "The body ends before its Content-Length."
            return _refusal(scope, 400, "body_cut_short", detail)
    outage = outage_of(error)
    if outage is None and isinstance(error, DatabaseError | InterfaceError):
        outage = AWAY
    if outage is not None:
        return _refusal(scope, 503, outage.code, outage.message, wait_s=outage.wait_s)
    logger.error("A request failed outside Django", exc_info=error)
    return _refusal(scope, 500, "error", "Something went wrong; the server's log has it.")


def _refusal(scope: Any, status: int, code: str, detail: str, wait_s: int = 0) -> ServerResponse:
    request_id = request_id_of(scope.headers.get("x-request-id", ""))
    token = current_request_id.set(request_id)
    try:
        if scope.path.startswith(reverse("admin:index")):
            response = refusal_page(detail, status)
        else:
            response = plain_problem(status, code, detail)
    finally:
        current_request_id.reset(token)
    response["X-Request-Id"] = request_id
    if wait_s:
        response["Retry-After"] = str(wait_s)
    return ServerResponse(status, header_list(response), response.content)
