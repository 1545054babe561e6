"""How far a load is: a live bar on a terminal, a line every few seconds in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from agentmem_site.bulk.readers import Source
from agentmem_site.bulk.report import LoadReport

Show = Callable[[LoadReport], None]
_EVERY_S = 5.0


@contextmanager
def progress(resource: str, source: Source) -> Iterator[Show]:
    """What to call after each batch."""
    if sys.stderr.isatty():
        with _bar(resource, source) as show:
            yield show
    else:
        yield _log()


def counts_in_words(report: LoadReport) -> str:
    counts = report.counts
    parts = [
        f"{counts.inserted:,} inserted",
        f"{counts.updated:,} updated",
        f"{counts.unchanged:,} unchanged",
    ]
    if counts.deleted:
        parts.append(f"{counts.deleted:,} in the trash and left there")
    if counts.duplicates:
        parts.append(f"{counts.duplicates:,} duplicates")
    if report.rejected:
        parts.append(f"{report.rejected:,} rejected")
    if report.tally.retries:
        parts.append(f"{report.tally.retries:,} retries")
    return ", ".join(parts)


def _log() -> Show:
    last = time.monotonic()

    def show(report: LoadReport) -> None:
        nonlocal last
        if time.monotonic() - last >= _EVERY_S:
            last = time.monotonic()
            sys.stderr.write(
                f"{report.resource}: line {report.last_line:,}, "
                f"{report.rows_per_second:,.0f} rows/s, {counts_in_words(report)}\n"
            )
            sys.stderr.flush()

    return show


@contextmanager
def _bar(resource: str, source: Source) -> Iterator[Show]:
    from rich.console import Console  # noqa: PLC0415  (costs 50 ms; a script never sees it)
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.fields[resource]}"),
        BarColumn(),
        TextColumn("{task.fields[rows]:>11,} rows {task.fields[rate]:>8,}/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[counts]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=source.size, resource=resource, rows=0, rate=0, counts="")

        def show(report: LoadReport) -> None:
            bar.update(
                task,
                completed=source.bytes_read() if source.size else 0,
                rows=report.read,
                rate=round(report.rows_per_second),
                counts=counts_in_words(report),
            )

        yield show
