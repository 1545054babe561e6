"""The way of a request from granian to Django and back (RSGI)."""

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
from agentmem_site.serving.answers import (
    WSGI,
    Answer,
    Pipe,
    answer_of,
    closing_of,
    environ_of,
    headers_of,
)
from agentmem_site.serving.bodies import KIB, Body, Pace, Stream, TooSlow, kept
from agentmem_site.serving.doors import FORM_BYTES, door_to, who_calls
from agentmem_site.serving.threads import Busy, Threads

_AT_ONCE_BYTES = 64 * KIB  # what comes with the headers, or right after them,
_AT_ONCE_S = 0.5  # is nobody's to wait for: who sends it need not be known
_PATIENCE_S = 2.0
_DRAINED_BYTES, _DRAINED_S, _DRAIN_IDLE_S = 64 * 1024 * KIB, 10.0, 1.0
_KEPT_OPEN_UP_TO = 1024 * KIB  # that much of a body is drained, and the connection goes on
_SWITCHES_EVERY_S = 0.001
_TOO_SLOW = 408

_LIVE = ("/health/live", "/health/live/")
_READY = ("/health/ready", "/health/ready/")
_BUSY = "The server is busy: everything that can be worked on at once is. Send it again in a while."
_SIGN_IN_FIRST = "The form is too large for somebody who is not signed in."

T = TypeVar("T")

logger = logging.getLogger("agentmem.serving")


class _CutShort(Exception):
    """The connection ended before the body did."""


class Application:
    """Calls `wsgi` in threads: `threads` requests compute at once, with those that wait there are
    `max_threads`; `transfers` bodies and answers go as they come, each of which may stand still for
    `idle_s` seconds."""

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
            "request", at_once=threads, at_most=max(threads, max_threads), patience_s=_PATIENCE_S
        )
        self._transfers = Threads(
            "transfer", at_once=transfers, at_most=transfers, patience_s=_PATIENCE_S
        )
        self._probes = Threads("probe", at_once=1, at_most=1, patience_s=_PATIENCE_S)
        self._ready: asyncio.Task[Answer] | None = None
        live = health.live(_probe())
        self._live, self._live_headers = live.content, headers_of(live)
        self._form_pace = Pace(idle_s=idle_s / 3, least_rate=0, whole_s=idle_s / 3)
        self._body_pace = Pace(idle_s=idle_s, least_rate=KIB, whole_s=10 * idle_s)
        self._stream_pace = Pace(idle_s=idle_s, least_rate=KIB / 16)

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # The event loop gets its turn, however many threads compute.
        sys.setswitchinterval(_SWITCHES_EVERY_S)
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        if scope.path in _LIVE and scope.method in ("GET", "HEAD"):
            protocol.response_bytes(200, self._live_headers, self._live)
            return
        body = Body(protocol, _length(scope))
        access = Access(scope.method)
        try:
            try:
                await self._answered(scope, protocol, body, access)
            finally:
                access.log(scope.path)
            await body.drain(up_to=_DRAINED_BYTES, within_s=_DRAINED_S, idle_s=_DRAIN_IDLE_S)
        finally:
            await body.close()

    async def _answered(self, scope: Any, protocol: Any, body: Body, access: Access) -> None:
        try:
            answer = await self._answer(scope, body, access)
            self._close_after(scope, body, answer)
            await self._send(protocol, answer, access)
        except Exception as error:
            answer = _refusal_of(scope, error)
            self._close_after(scope, body, answer)
            await self._send(protocol, answer, access)

    def _close_after(self, scope: Any, body: Body, answer: Answer) -> None:
        """The rest of a body is read, that the next request be understood, or is said to be the end
        of the connection."""
        left = body.left
        is_kept = left is not None and left <= _KEPT_OPEN_UP_TO and answer.status != _TOO_SLOW
        if not is_kept and scope.http_version.startswith("1"):
            answer.headers.append(("connection", "close"))

    async def _answer(self, scope: Any, body: Body, access: Access) -> Answer:
        if scope.path in _READY and body.ended:
            return await self._readiness(scope)
        if body.ended:
            return await self._asked(scope, access, BytesIO(), 0)
        with kept() as collected:
            try:
                at_once = Pace(idle_s=_AT_ONCE_S, least_rate=0, whole_s=_AT_ONCE_S)
                await body.read(collected, up_to=_AT_ONCE_BYTES, pace=at_once)
            except TooSlow:
                pass
            if not body.ended or body.is_cut_short:
                door = door_to(scope.path)
                headers = dict(scope.headers.items())
                asks = partial(_with_database, partial(who_calls, door, headers))
                who = await self._threads.run(asks, last=True)  # (it is late already)
                if who is None:
                    if not door.is_console:  # Django says who it wants
                        return await self._asked(scope, access, BytesIO(), 0, last=True)
                    await body.read(collected, up_to=FORM_BYTES + 1, pace=self._form_pace)
                    if body.received > FORM_BYTES:
                        return _refused(scope, 413, "body_too_large", _SIGN_IN_FIRST)
                else:
                    access.who = who
                    if door.streams:
                        return await self._streamed(scope, access, body, collected)
                    await body.read(collected, up_to=door.takes + 1, pace=self._body_pace)
            if body.is_cut_short:
                raise _CutShort
            collected.seek(0)
            return await self._asked(scope, access, collected, body.received)

    async def _asked(
        self, scope: Any, access: Access, body: IO[bytes], length: int, *, last: bool = False
    ) -> Answer:
        environ = environ_of(scope, body, length) | {ACCESS: access}
        # Requests for a table that is locked wait in a crowd: others go before them.
        kind = "/".join(scope.path.split("/", 4)[:4])
        return await self._threads.run(
            partial(answer_of, self._wsgi, environ), kind=kind, last=last
        )

    async def _streamed(
        self, scope: Any, access: Access, body: Body, collected: IO[bytes]
    ) -> Answer:
        collected.seek(0)
        loop = asyncio.get_running_loop()
        stream = Stream(collected.read(), body, self._stream_pace, loop)
        environ = environ_of(scope, cast(IO[bytes], stream), body.length) | {ACCESS: access}
        return await self._transfers.run(partial(answer_of, self._wsgi, environ))

    async def _readiness(self, scope: Any) -> Answer:
        """One answer for all who ask at once, from a thread of its own."""
        if self._ready is None or self._ready.done():
            # (Who asks logs by itself: this one is shared, and is nobody's line.)
            environ = environ_of(scope, BytesIO(), 0) | {ACCESS: Access(scope.method)}
            self._ready = asyncio.ensure_future(
                self._probes.run(partial(answer_of, self._wsgi, environ))
            )
        answer = await asyncio.shield(self._ready)
        return Answer(answer.status, list(answer.headers), answer.body)

    async def _send(self, protocol: Any, answer: Answer, access: Access) -> None:
        """Raises: Busy."""
        parts = answer.body
        access.status = answer.status
        access.request_id = dict(answer.headers).get("x-request-id", "")
        if isinstance(parts, bytes):
            access.bytes_sent = len(parts)
            protocol.response_bytes(answer.status, answer.headers, parts)
            return
        loop = asyncio.get_running_loop()

        def send() -> None:
            with Pipe() as pipe:
                begin = partial(protocol.response_file, answer.status, answer.headers, pipe.path)
                loop.call_soon_threadsafe(begin)
                try:
                    pipe.send(parts, idle_s=self._idle_s)
                except Exception:
                    logger.exception("An answer broke off")
                finally:
                    access.bytes_sent = pipe.sent_bytes

        try:
            await self._transfers.run(send)
        except Busy:
            with closing_of(parts):
                raise


def _probe() -> HttpRequest:
    request = HttpRequest()
    request.method = "GET"
    return request


def _length(scope: Any) -> int | None:
    """Of the body, in bytes; None where it is told by its end."""
    given = scope.headers.get("content-length")
    if given is not None:
        return int(given)
    is_told_by_its_end = "transfer-encoding" in scope.headers or scope.http_version.startswith("2")
    return None if is_told_by_its_end else 0


def _with_database(ask: Callable[[], T]) -> T:
    """As Django does around a request."""
    close_old_connections()
    try:
        with limited():
            return ask()
    finally:
        close_old_connections()


def _refusal_of(scope: Any, error: Exception) -> Answer:
    match error:
        case Busy():
            return _refused(scope, 503, "busy", _BUSY, wait_s=1)
        case TooSlow():
            return _refused(
                scope, _TOO_SLOW, "body_too_slow", f"The body came too slowly: {error}."
            )
        case _CutShort():
            return _refused(scope, 400, "body_cut_short", "The body ends before it should.")
    outage = outage_of(error)
    if outage is None and isinstance(error, DatabaseError | InterfaceError):
        outage = AWAY
    if outage is not None:
        return _refused(scope, 503, outage.code, outage.message, wait_s=outage.wait_s)
    logger.error("A request failed outside Django", exc_info=error)
    return _refused(scope, 500, "error", "Something went wrong here; the log has it.")


def _refused(scope: Any, status: int, code: str, detail: str, wait_s: int = 0) -> Answer:
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
    return Answer(status, headers_of(response), response.content)
