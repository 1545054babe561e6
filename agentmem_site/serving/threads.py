"""Threads for calls that compute for a short while, or wait for long."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_COMPUTES_AT_MOST_S = 0.1


class Busy(Exception):
    """Every thread is taken, and stays so."""


class Threads:
    """`at_once` calls compute. One that takes longer than 100 ms is thought to wait (for a lock, a
    service) and lets another one in, until there are `at_most`. The others stand in a queue, in the
    order in which they came. To be used from one event loop."""

    def __init__(self, name: str, *, at_once: int, at_most: int, patience_s: float) -> None:
        self._pool = ThreadPoolExecutor(at_most, thread_name_prefix=name)
        self._at_once = at_once
        self._at_most = at_most
        self._patience_s = patience_s
        self._computing: set[object] = set()
        self._running: set[object] = set()
        self._queue: deque[asyncio.Future[None]] = deque()

    async def run(self, call: Callable[[], T]) -> T:
        """Raises: Busy, where none of `at_most` threads got free for `patience_s`; what the call
        raises."""
        turn = await self._turn()
        loop = asyncio.get_running_loop()
        timer = loop.call_later(_COMPUTES_AT_MOST_S, self._end, turn, self._computing)

        def leave() -> None:
            timer.cancel()
            self._end(turn, self._computing, self._running)

        # (A thread is free when its call has ended, not when nobody waits for it any more.)
        done = self._pool.submit(call)
        done.add_done_callback(lambda _: loop.call_soon_threadsafe(leave))
        return await asyncio.wrap_future(done)

    async def _turn(self) -> object:
        """Of whoever asks, in the order in which they came."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        self._admit()
        try:
            while not turn.done():
                await asyncio.wait([turn], timeout=self._patience_s)
                if not turn.done() and len(self._running) >= self._at_most:
                    raise Busy
        except BaseException:
            if turn in self._queue:
                self._queue.remove(turn)
            self._end(turn, self._computing, self._running)
            raise
        return turn

    def _end(self, turn: object, *of: set[object]) -> None:
        for turns in of:
            turns.discard(turn)
        self._admit()

    def _admit(self) -> None:
        while (
            self._queue
            and len(self._computing) < self._at_once
            and len(self._running) < self._at_most
        ):
            turn = self._queue.popleft()
            self._computing.add(turn)
            self._running.add(turn)
            turn.set_result(None)
