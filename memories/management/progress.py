"""How far a command is: a bar on a terminal, a line every few seconds elsewhere, on stderr."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

TELL_EVERY_S = 5.0

Tell = Callable[[int, str], None]  # rows done, the same in words


class Writer(Protocol):
    def write(self, text: str) -> object: ...


@contextmanager
def progress(stderr: Writer, *, total: int | None, is_silent: bool = False) -> Iterator[Tell]:
    """`total` rows are ahead, or nobody knows how many."""
    if is_silent:
        yield lambda done, words: None
    elif sys.stderr.isatty():
        with _bar(total) as tell:
            yield tell
    else:
        yield _now_and_then(stderr)


@contextmanager
def _bar(total: int | None) -> Iterator[Tell]:
    from rich.console import Console  # noqa: PLC0415  (costs 50 ms; a service never sees it)
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[words]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total, words="")
        yield lambda done, words: bar.update(task, completed=done, words=words)


def _now_and_then(stderr: Writer) -> Tell:
    told = time.monotonic()

    def tell(done: int, words: str) -> None:
        nonlocal told
        if time.monotonic() - told >= TELL_EVERY_S:
            told = time.monotonic()
            stderr.write(words)

    return tell
