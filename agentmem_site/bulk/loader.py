"""The loader: numbered lines -> validated rows -> COPY -> upsert -> exact counts, batch by batch.

    feed.py     reads, decodes and encodes, a batch ahead
    worker.py   commits batches, over one connection: retries, smaller batches, the line to blame
    writing.py  what a batch's transaction does
    options.py  what the caller chooses, prepares and keeps
    load()      here: the workers of one load, and their report

Per batch one transaction, opened by the caller's `transaction` (it holds the organization's
context); what a batch wrote, and how far the file is done, is there for good before the next line.
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
from agentmem_site.bulk.worker import (
    Shared,
    TooManyRejects,
    TooSlow,
    Worker,
    WorkTaken,
)
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
    """Upserts `lines` and reports. `transaction` opens one transaction in the organization's
    context; `on_begin` sees what earlier runs have done, `on_batch` the report after each commit,
    `on_reject` the bad lines of a batch before it (again, when the batch is done again); new rows
    bear `constants`, by column. The report has the `notices` of whoever reads the lines.

    Raises: LoadStopped; its report tells what is committed.
    """
    spec = tolerant(spec) if options.ignore_unknown else spec
    spec = restoring(spec) if options.preserve_ids else spec
    begun = datetime.now(UTC)
    report = LoadReport(spec.resource, dry_run=options.dry_run, notices=notices or Notices())
    is_parted = options.workers > 1 and not options.dry_run
    states = [(Mark(), Tally())] * (options.workers if is_parted else 1)
    with _told(report), busy_interpreter():
        if checkpoint:
            begun, states = checkpoint.begin(len(states))
        encoder = Encoder(
            spec,
            keeps_time=options.preserve_timestamps,
            notes_lines=spec.notes_lines,
            times=Times(
                zone=options.timezone,
                date_order=options.date_order,
                has_options=True,
                notices=report.notices,
            ),
        ).begun_at(begun)
        feed = Feed(
            lines,
            encoder,
            [mark for mark, _ in states],
            seed=options.as_seed(spec),
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
        """What a worker has committed, up to that line of its part."""
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
                thread.join(0.2)  # (a join without an end would not hear a signal)
    except BaseException:
        feed.stop()
        for worker in workers:
            worker.cancel()
        for thread in threads:
            thread.join(10)
        raise
    if errors:
        raise errors[0]


# What stops a load, and what that is called outside. (Of the database's errors `verdict` says.)
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
def _told(report: LoadReport) -> Iterator[None]:
    """Turns what stops a load into the LoadStopped that says so."""
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
