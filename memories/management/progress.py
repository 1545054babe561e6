"""Shows the progress of a command on stderr: a bar on a terminal, else a line every few seconds."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

LINE_EVERY_S = 5.0

ShowProgress = Callable[[int, str], None]  # rows done, message


class Writer(Protocol):
    def write(self, text: str) -> object: ...


@contextmanager
def progress(
    stderr: Writer, *, total: int | None, is_silent: bool = False
) -> Iterator[ShowProgress]:
    """Yields a function that shows progress; `total` is in rows, None if unknown."""
    if is_silent:
        yield lambda done, message: None
    elif sys.stderr.isatty():
        with _bar(total) as show:
            yield show
    else:
        yield _lines(stderr)


@contextmanager
def _bar(total: int | None) -> Iterator[ShowProgress]:
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
        TextColumn("{task.fields[message]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total, message="")
        yield lambda done, message: bar.update(task, completed=done, message=message)


def _lines(stderr: Writer) -> ShowProgress:
    last = time.monotonic()

    def show(done: int, message: str) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_EVERY_S:
            last = time.monotonic()
            stderr.write(message)

    return show
