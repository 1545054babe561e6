"""Bodies are read on the event loop, so waiting for a client costs no thread."""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import IO, Any

KIB = 1024
_MAX_IN_MEMORY = 256 * KIB
_WINDOW_S = 30.0


class TooSlow(TimeoutError):
    """The body did not arrive in time. The limits leave room for a poor connection."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a body has to arrive: each chunk within `idle_s`, at least `min_rate` bytes/s over
    each 30 s of waiting, and all of it within `total_s`."""

    idle_s: float
    min_rate: float
    total_s: float = float("inf")


class Body:
    """The body of one request. `length` is None if it is unknown (chunked)."""

    def __init__(self, protocol: Any, length: int | None) -> None:
        self.length = length
        self.received = 0
        self.ended = length == 0
        self._protocol = protocol
        self._chunks: AsyncIterator[bytes] | None = None
        self._pending: asyncio.Future[bytes] | None = None
        self._waited_s = 0.0
        self._window = (0.0, 0)  # waited_s and received at its start

    async def chunk(self, within_s: float) -> bytes:
        """The next chunk; b"" at the end. Raises: TimeoutError; the pending read goes on."""
        if self.ended:
            return b""
        loop = asyncio.get_running_loop()
        started = loop.time()
        if self._chunks is None:
            self._chunks = aiter(self._protocol)
        if self._pending is None:
            # (Cancelling a read could lose what it has read.)
            self._pending = asyncio.ensure_future(_next(self._chunks))
        await asyncio.wait([self._pending], timeout=max(within_s, 0))
        self._waited_s += loop.time() - started
        if not self._pending.done():
            raise TimeoutError
        pending, self._pending = self._pending, None
        chunk = pending.result()
        self.received += len(chunk)
        if not chunk or self.received == self.length:
            self.ended = True
        return chunk

    async def paced_chunk(self, pace: Pace) -> bytes:
        """Raises: TooSlow."""
        started, before = self._window
        if self._waited_s - started >= _WINDOW_S:
            if self.received - before < pace.min_rate * _WINDOW_S:
                raise TooSlow(f"less than {pace.min_rate:g} bytes a second")
            self._window = (self._waited_s, self.received)
        try:
            return await self.chunk(min(pace.idle_s, pace.total_s - self._waited_s))
        except TimeoutError:
            if self._waited_s >= pace.total_s:
                raise TooSlow(f"it did not end within {pace.total_s:g} s") from None
            raise TooSlow(f"nothing arrived for {pace.idle_s:g} s") from None

    @property
    def is_cut_short(self) -> bool:
        return self.ended and self.length is not None and self.received < self.length

    @property
    def remaining(self) -> int | None:
        """Bytes that have not arrived yet; None if unknown."""
        if self.ended:
            return 0
        return None if self.length is None else self.length - self.received

    async def read(self, into: IO[bytes], *, up_to: int, pace: Pace) -> None:
        """Reads until there are `up_to` bytes, or the end. Raises: TooSlow."""
        while self.received < up_to and (chunk := await self.paced_chunk(pace)):
            into.write(chunk)

    async def drain(self, *, up_to: int, within_s: float, idle_s: float) -> None:
        """Reads and discards, so that the client reads its response and the connection stays
        usable."""
        loop = asyncio.get_running_loop()
        deadline, limit = loop.time() + within_s, self.received + up_to
        with suppress(TimeoutError):
            while self.received < limit and await self.chunk(min(idle_s, deadline - loop.time())):
                pass

    async def close(self) -> None:
        """Releases the request: granian reuses or closes the connection when nothing refers to the
        request any more, and a traceback may refer to this body for long."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.cancel()
            await asyncio.wait([pending])
        self.ended = True
        self._chunks = self._protocol = None


async def _next(chunks: AsyncIterator[bytes]) -> bytes:
    try:
        while not (chunk := await anext(chunks)):
            pass
    except StopAsyncIteration:
        return b""
    except Exception:  # granian's, when the connection breaks
        return b""
    return chunk


def spool() -> IO[bytes]:
    """Collects a body: in memory while it is small, else in an unnamed temporary file."""
    return SpooledTemporaryFile(max_size=_MAX_IN_MEMORY)


class Stream(io.RawIOBase):
    """A body for a thread to read as it arrives: first `head`, then the rest."""

    def __init__(
        self, head: bytes, body: Body, pace: Pace, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._buffer = memoryview(head)
        self._body = body
        self._pace = pace
        self._loop = loop

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Raises: TooSlow."""
        if not self._buffer:
            pending = asyncio.run_coroutine_threadsafe(
                self._body.paced_chunk(self._pace), self._loop
            )
            self._buffer = memoryview(pending.result())
        taken, self._buffer = self._buffer[: len(buffer)], self._buffer[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)
