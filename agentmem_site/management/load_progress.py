"""The progress of a load, as text and as a bar."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from agentmem_site.bulk.readers import Source
from agentmem_site.bulk.report import LoadReport
from memories.management.progress import Writer, progress

Show = Callable[[LoadReport], None]


@contextmanager
def load_progress(stderr: Writer, source: Source, *, is_silent: bool) -> Iterator[Show]:
    """Yields a function to call after each batch."""
    with progress(stderr, total=source.size, is_silent=is_silent) as tell:
        yield lambda report: tell(
            source.bytes_read(),
            f"{report.resource}: line {report.last_line:,}, {report.rows_per_second:,.0f} rows/s, "
            f"{counts_text(report)}",
        )


def counts_text(report: LoadReport) -> str:
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
