"""Threads for calls that compute for a short while, or wait for long."""

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_COMPUTES_AT_MOST_S = 0.05


class Busy(Exception):
    """Every thread is taken, and stays so."""


class Threads:
    """`at_once` calls compute. One that takes longer than 50 ms is thought to wait (for a lock, a
    service) and lets another one in, until there are `at_most`. The others stand in a queue: those
    first of whose kind the fewest wait, and in the order in which they came; who can stand `last`
    after all others. To be used from one event loop."""

    def __init__(self, name: str, *, at_once: int, at_most: int, patience_s: float) -> None:
        self._pool = ThreadPoolExecutor(at_most, thread_name_prefix=name)
        self._at_once = at_once
        self._at_most = at_most
        self._patience_s = patience_s
        self._computing: set[object] = set()
        self._running: set[object] = set()
        self._waiting: Counter[str] = Counter()  # by kind
        self._queue: list[tuple[bool, str, asyncio.Future[None]]] = []

    async def run(self, call: Callable[[], T], *, kind: str = "", last: bool = False) -> T:
        """Raises: Busy, where none of `at_most` threads got free for `patience_s`; what the call
        raises."""
        turn = await self._turn(kind, last)
        loop = asyncio.get_running_loop()

        def wait() -> None:
            self._waiting[kind] += 1
            self._end(turn, self._computing)

        timer = loop.call_later(_COMPUTES_AT_MOST_S, wait)

        def leave() -> None:
            timer.cancel()
            if turn not in self._computing:
                self._waiting[kind] -= 1
                self._waiting += Counter()  # forgets kinds of which none waits
            self._end(turn, self._computing, self._running)

        # (A thread is free when its call has ended, not when nobody waits for it any more.)
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
                await asyncio.wait([turn], timeout=self._patience_s)
                if not turn.done() and len(self._running) >= self._at_most:
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
            # One place is kept for who comes next, and is no such.
            kept = 1 if self._at_once > 1 and (last or self._waiting[kind]) else 0
            is_free = len(self._computing) < self._at_once - kept
            if not is_free or len(self._running) >= self._at_most:
                return
            self._queue.remove(first)
            self._computing.add(turn)
            self._running.add(turn)
            turn.set_result(None)
