"""What a client sends: read on the event loop, so that waiting for it costs no thread."""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import IO, Any

KIB = 1024
_KEPT_IN_MEMORY = 256 * KIB
_WINDOW_S = 30.0


class TooSlow(TimeoutError):
    """The body did not come in time: no more than a client with a poor line needs is allowed."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a body has to come: something within `idle_s` each time, `least_rate` bytes/s over
    each 30 s that it is waited for, and the whole within `whole_s`."""

    idle_s: float
    least_rate: float
    whole_s: float = float("inf")


class Body:
    """Of one request. `length` is None where it is not told (chunked)."""

    def __init__(self, protocol: Any, length: int | None) -> None:
        self.length = length
        self.received = 0
        self.ended = length == 0
        self._protocol = protocol
        self._chunks: AsyncIterator[bytes] | None = None
        self._coming: asyncio.Future[bytes] | None = None
        self._waited_s = 0.0
        self._window = (0.0, 0)  # waited_s and received at its beginning

    async def chunk(self, within_s: float) -> bytes:
        """What comes next; b"" at the end. Raises: TimeoutError; what was coming is kept."""
        if self.ended:
            return b""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        if self._chunks is None:
            self._chunks = aiter(self._protocol)
        if self._coming is None:
            # (A read that is cancelled may take along what it has read.)
            self._coming = asyncio.ensure_future(_next(self._chunks))
        await asyncio.wait([self._coming], timeout=max(within_s, 0))
        self._waited_s += loop.time() - begun
        if not self._coming.done():
            raise TimeoutError
        coming, self._coming = self._coming, None
        chunk = coming.result()
        self.received += len(chunk)
        if not chunk or self.received == self.length:
            self.ended = True
        return chunk

    async def paced_chunk(self, pace: Pace) -> bytes:
        """Raises: TooSlow."""
        begun, before = self._window
        if self._waited_s - begun >= _WINDOW_S:
            if self.received - before < pace.least_rate * _WINDOW_S:
                raise TooSlow(f"it comes at less than {pace.least_rate:g} bytes a second")
            self._window = (self._waited_s, self.received)
        try:
            return await self.chunk(min(pace.idle_s, pace.whole_s - self._waited_s))
        except TimeoutError:
            if self._waited_s >= pace.whole_s:
                raise TooSlow(f"it did not end within {pace.whole_s:g} s") from None
            raise TooSlow(f"nothing came for {pace.idle_s:g} s") from None

    @property
    def is_cut_short(self) -> bool:
        return self.ended and self.length is not None and self.received < self.length

    @property
    def left(self) -> int | None:
        """Bytes that are still to come; None where that is not known."""
        if self.ended:
            return 0
        return None if self.length is None else self.length - self.received

    async def read(self, into: IO[bytes], *, up_to: int, pace: Pace) -> None:
        """Until there are `up_to` bytes, or the end. Raises: TooSlow."""
        while self.received < up_to and (chunk := await self.paced_chunk(pace)):
            into.write(chunk)

    async def drain(self, *, up_to: int, within_s: float, idle_s: float) -> None:
        """Reads and forgets, so that the client reads its answer, and the connection goes on."""
        loop = asyncio.get_running_loop()
        deadline, most = loop.time() + within_s, self.received + up_to
        with suppress(TimeoutError):
            while self.received < most and await self.chunk(min(idle_s, deadline - loop.time())):
                pass

    async def close(self) -> None:
        """granian ends the connection, or goes on with it, when nobody holds the request any more;
        what failed with this body in its hands may be held for long."""
        coming, self._coming = self._coming, None
        if coming is not None:
            coming.cancel()
            await asyncio.wait([coming])
        self.ended = True
        self._chunks = self._protocol = None


async def _next(chunks: AsyncIterator[bytes]) -> bytes:
    try:
        while not (chunk := await anext(chunks)):
            pass
    except StopAsyncIteration:
        return b""
    except Exception:  # granian's, of a connection that broke
        return b""
    return chunk


def kept() -> IO[bytes]:
    """Where a body is collected: in memory while it is small, else in a file without a name."""
    return SpooledTemporaryFile(max_size=_KEPT_IN_MEMORY)


class Stream(io.RawIOBase):
    """A body as it comes, for a thread that reads it: what has been read already, then the rest."""

    def __init__(
        self, head: bytes, body: Body, pace: Pace, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._kept = memoryview(head)
        self._body = body
        self._pace = pace
        self._loop = loop

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Raises: TooSlow."""
        if not self._kept:
            coming = asyncio.run_coroutine_threadsafe(
                self._body.paced_chunk(self._pace), self._loop
            )
            self._kept = memoryview(coming.result())
        taken, self._kept = self._kept[: len(buffer)], self._kept[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)
