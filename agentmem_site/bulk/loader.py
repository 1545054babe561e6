"""The loader: numbered lines -> validated rows -> COPY -> upsert -> exact counts, batch by batch.

    feed.py     reads, decodes and encodes, one batch ahead
    worker.py   commits batches on one connection: retries, smaller batches, bad rows
    writing.py  what a batch's transaction does
    options.py  what the caller provides
    load()      here: the workers of one load, and their report

Each batch has one transaction, opened by the caller's `transaction`, which sets the organization's
context. It commits the batch together with its checkpoint.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from django.db import Error as DatabaseError
from django.db import connection
from django.db import transaction as django_transaction

from agentmem_site.bulk.encode import Encoder
from agentmem_site.bulk.faults import Verdict, raise_interrupt, verdict
from agentmem_site.bulk.feed import Feed, FileChanged, busy_interpreter
from agentmem_site.bulk.lines import Mark
from agentmem_site.bulk.notices import Notices
from agentmem_site.bulk.options import (
    DEFAULTS,
    Checkpoint,
    LoadOptions,
    Preparation,
    PreparationFailed,
)
from agentmem_site.bulk.readers import NumberedLine, UnreadableFile
from agentmem_site.bulk.rejects import RejectsUnwritable
from agentmem_site.bulk.report import (
    MAX_REJECTS_KEPT,
    BadLine,
    CannotWriteRejects,
    ChangedFile,
    Interrupted,
    LoadReport,
    LoadStopped,
    NotPermitted,
    Refused,
    Tally,
    Unprepared,
    Unreadable,
)
from agentmem_site.bulk.spec import LineError, LoadSpec, Reference, restoring, tolerant
from agentmem_site.bulk.times import Times
from agentmem_site.bulk.worker import Shared, TooManyRejects, TooSlow, Worker, WorkTaken
from agentmem_site.bulk.writing import Restore, Writer


def load(
    lines: Iterable[NumberedLine],
    spec: LoadSpec,
    *,
    organization_id: UUID,
    actor_id: UUID | None,
    transaction: Callable[[], AbstractContextManager[None]],
    options: LoadOptions = DEFAULTS,
    on_begin: Callable[[LoadReport], None] = lambda report: None,
    on_batch: Callable[[LoadReport], None] = lambda report: None,
    on_reject: Callable[[Sequence[LineError]], None] = lambda errors: None,
    checkpoint: Checkpoint | None = None,
    constants: Mapping[str, Any] | None = None,
    preparation: Preparation | None = None,
    may_create: Callable[[Reference], bool] = lambda reference: True,
    restore: Restore | None = None,
    may_restore: Callable[[Reference], bool] = lambda reference: True,
    notices: Notices | None = None,
) -> LoadReport:
    """Upserts `lines` and reports.

    `transaction` opens a transaction in the organization's context. `on_begin` gets the report of
    earlier runs, `on_batch` the report after each commit, `on_reject` the rejected lines of a batch
    before its commit (again in a retry). `constants` are columns of new rows; `notices` those of
    the reader of `lines`.

    Raises: LoadStopped; its report has what is committed.
    """
    spec = tolerant(spec) if options.ignore_unknown else spec
    spec = restoring(spec) if options.preserve_ids else spec
    started = datetime.now(UTC)
    report = LoadReport(spec.resource, dry_run=options.dry_run, notices=notices or Notices())
    is_parted = options.workers > 1 and not options.dry_run
    states = [(Mark(), Tally())] * (options.workers if is_parted else 1)
    with _as_load_stopped(report), busy_interpreter():
        if checkpoint:
            started, states = checkpoint.begin(len(states))
        encoder = Encoder(
            spec,
            keeps_time=options.preserve_timestamps,
            keeps_line_hash=spec.keeps_line_hash,
            times=Times(
                zone=options.timezone,
                date_order=options.date_order,
                has_options=True,
                notices=report.notices,
            ),
        ).started_at(started)
        feed = Feed(
            lines,
            encoder,
            [mark for mark, _ in states],
            seed=options.digest_seed(spec),
            batch_size=options.batch_size,
            skips_bad=options.skips_bad,
            prepares_until=_prepares_until(preparation),
        )
        progress = _Progress(report, states, on_batch)
        on_begin(report)

        def worker(part: int) -> Worker:
            writer = Writer(
                encoder,
                organization_id,
                actor_id,
                timeout_s=options.timeout_s,
                constants=constants or {},
                may_create=lambda r: may_create(r) and not options.strict_references,
                restore=restore if options.restore else None,
                may_restore=may_restore,
            )
            inner = django_transaction.atomic if options.dry_run else transaction
            shared = Shared(feed, encoder, inner, options, on_reject, checkpoint, preparation)
            return Worker(part, *states[part], writer, shared, progress)

        workers = [worker(part) for part in range(len(states))]
        feed.start()
        try:
            if options.dry_run:
                with transaction():
                    workers[0].run()
                    django_transaction.set_rollback(True)
            elif len(workers) == 1:
                workers[0].run()
            else:
                _run_side_by_side(workers, feed)
        finally:
            feed.stop()
    return report


def _prepares_until(preparation: Preparation | None) -> int:
    if preparation is None:
        return 0
    return 2**63 if preparation.until_line is None else preparation.until_line


class _Progress:
    """The report of all workers of a load."""

    def __init__(
        self,
        report: LoadReport,
        states: Sequence[tuple[Mark, Tally]],
        on_batch: Callable[[LoadReport], None],
    ) -> None:
        self._report = report
        self._lines = [mark.line for mark, _ in states]
        self._on_batch = on_batch
        self._lock = threading.Lock()
        self._started = time.monotonic()
        for _, tally in states:
            report.tally.add(tally)
        report.resumed_after = report.last_line = min(self._lines)

    def add(self, part: int, line: int, tally: Tally, rejected: Sequence[LineError]) -> None:
        """Adds what a worker has committed, up to that line of its part."""
        report = self._report
        with self._lock:
            self._lines[part] = line
            report.last_line = min(self._lines)
            report.tally.add(tally)
            report.read_here += tally.read
            room = MAX_REJECTS_KEPT - len(report.rejects)
            report.rejects.extend(rejected[:room])
            report.seconds = time.monotonic() - self._started
            self._on_batch(report)

    @property
    def rejected(self) -> int:
        return self._report.tally.rejected


def _run_side_by_side(workers: Sequence[Worker], feed: Feed) -> None:
    """Each worker in a thread. The first error stops them all, and is raised."""
    errors: list[BaseException] = []

    def run(worker: Worker) -> None:
        try:
            worker.run()
        except BaseException as error:
            errors.append(error)
            feed.stop()
        finally:
            connection.close()  # this thread's

    threads = [
        threading.Thread(target=run, args=[worker], name=f"load-{worker.part}", daemon=True)
        for worker in workers
    ]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)  # (a join without a timeout would delay signals)
    except BaseException:
        feed.stop()
        for worker in workers:
            worker.cancel()
        for thread in threads:
            thread.join(10)
        raise
    if errors:
        raise errors[0]


# What callers get for an exception that stops a load. (For a database error it is up to `verdict`.)
_STOPPED: dict[type[Exception], type[LoadStopped]] = {
    LineError: BadLine,
    TooManyRejects: BadLine,
    FileChanged: ChangedFile,
    UnreadableFile: Unreadable,
    RejectsUnwritable: CannotWriteRejects,
    TooSlow: Interrupted,
    WorkTaken: Interrupted,
}
_STOPPED_BY_DATABASE: dict[Verdict, type[LoadStopped]] = {
    Verdict.NOT_PERMITTED: NotPermitted,
    Verdict.FIND_ROW: Refused,
    Verdict.GIVE_UP: Refused,
}


@contextmanager
def _as_load_stopped(report: LoadReport) -> Iterator[None]:
    """Turns what stops a load into a LoadStopped."""
    try:
        yield
    except PreparationFailed as error:
        stopped = Interrupted if error.is_temporary else Unprepared
        raise stopped(str(error), report) from error
    except DatabaseError as error:
        raise_interrupt(error)
        kind = _STOPPED_BY_DATABASE.get(verdict(error), Interrupted)
        raise kind(str(error).strip(), report) from error
    except tuple(_STOPPED) as error:
        raise _STOPPED[type(error)](str(error), report) from error
