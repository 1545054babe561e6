"""Threads for calls that compute briefly or wait for long."""

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_COMPUTES_AT_MOST_S = 0.05


class Busy(Exception):
    """No thread has become free in time."""


class Threads:
    """Runs up to `computing` calls at the same time. A call that takes longer than 50 ms is assumed
    to wait (for a lock, a service) and lets another one start, up to `total`. The others queue:
    first those of whose kind the fewest calls wait, then in the order of arrival; `last` calls
    come after all others. Used from one event loop."""

    def __init__(self, name: str, *, computing: int, total: int, timeout_s: float) -> None:
        self._pool = ThreadPoolExecutor(total, thread_name_prefix=name)
        self._max_computing = computing
        self._total = total
        self._timeout_s = timeout_s
        self._computing: set[object] = set()
        self._running: set[object] = set()
        self._waiting: Counter[str] = Counter()  # by kind
        self._queue: list[tuple[bool, str, asyncio.Future[None]]] = []

    async def run(self, call: Callable[[], T], *, kind: str = "", last: bool = False) -> T:
        """Raises: Busy, if no thread became free within `timeout_s`; what the call raises."""
        turn = await self._turn(kind, last)
        loop = asyncio.get_running_loop()

        def count_as_waiting() -> None:
            self._waiting[kind] += 1
            self._end(turn, self._computing)

        timer = loop.call_later(_COMPUTES_AT_MOST_S, count_as_waiting)

        def leave() -> None:
            timer.cancel()
            if turn not in self._computing:
                self._waiting[kind] -= 1
                self._waiting += Counter()  # removes kinds with a count of 0
            self._end(turn, self._computing, self._running)

        # (A thread is free when its call has ended, not when its caller stops waiting.)
        done = self._pool.submit(call)
        done.add_done_callback(lambda _: loop.call_soon_threadsafe(leave))
        return await asyncio.wrap_future(done)

    async def _turn(self, kind: str, last: bool) -> object:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (last, kind, turn)
        self._queue.append(place)
        self._admit()
        try:
            while not turn.done():
                await asyncio.wait([turn], timeout=self._timeout_s)
                if not turn.done() and len(self._running) >= self._total:
                    raise Busy
        except BaseException:
            if place in self._queue:
                self._queue.remove(place)
            self._end(turn, self._computing, self._running)
            raise
        return turn

    def _end(self, turn: object, *of: set[object]) -> None:
        for turns in of:
            turns.discard(turn)
        self._admit()

    def _admit(self) -> None:
        while self._queue:
            first = min(self._queue, key=lambda place: (place[0], self._waiting[place[1]]))
            last, kind, turn = first
            # `last` calls, and calls of a kind that waits, leave one place free for others.
            reserved = 1 if self._max_computing > 1 and (last or self._waiting[kind]) else 0
            is_free = len(self._computing) < self._max_computing - reserved
            if not is_free or len(self._running) >= self._total:
                return
            self._queue.remove(first)
            self._computing.add(turn)
            self._running.add(turn)
            turn.set_result(None)
