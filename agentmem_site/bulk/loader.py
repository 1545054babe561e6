"""The loader: numbered lines -> validated rows -> COPY -> upsert -> exact counts, batch by batch.

Per batch one transaction, opened by the caller's `transaction` (it holds the organization's
context); what a batch wrote is there for good before the next line is read.

The place of what is still to come: workers (one Loader each), resumable jobs and retries (around
`_load_batch`), a reject file (where a LineError is caught).
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from itertools import islice
from threading import Thread
from typing import Any
from uuid import UUID

from django.db import Error as DatabaseError
from django.db import IntegrityError, InterfaceError, OperationalError, connection
from django.db import transaction as django_transaction
from django.utils import timezone

from agentmem_site.bulk import binary
from agentmem_site.bulk import sql as statements
from agentmem_site.bulk.copying import LIMIT_EXCEEDED, copy_rows
from agentmem_site.bulk.encode import Batch, DecodedLine, Encoder
from agentmem_site.bulk.growth import Growth
from agentmem_site.bulk.readers import NumberedLine, UnreadableFile
from agentmem_site.bulk.references import References
from agentmem_site.bulk.spec import LineError, LoadSpec, restoring
from agentmem_site.bulk.sql import Expect, Stage, Stamp


@dataclass(frozen=True, slots=True)
class LoadOptions:
    batch_size: int = 5000
    timeout_s: float = 30  # per statement; 0: none
    preserve_timestamps: bool = False
    preserve_ids: bool = False  # restores an export: the command's alone, never a request's
    strict_references: bool = False
    dry_run: bool = False


@dataclass(slots=True)
class Counts:
    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    deleted: int = 0  # met in the trash, and left there
    duplicates: int = 0  # the same key again in a batch: the last one counts

    def add(self, other: "Counts") -> None:
        for name, number in asdict(other).items():
            setattr(self, name, getattr(self, name) + number)


@dataclass(slots=True)
class LoadReport:
    """What happened to the lines that are committed."""

    resource: str
    read: int = 0
    counts: Counts = field(default_factory=Counts)
    children: dict[str, Counts] = field(default_factory=dict)
    rejected: int = 0
    batches: int = 0
    retries: int = 0
    last_line: int = 0
    seconds: float = 0.0
    dry_run: bool = False

    @property
    def rows_per_second(self) -> float:
        return self.read / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        return {
            "resource": self.resource,
            "read": self.read,
            **asdict(self.counts),
            "rejected": self.rejected,
            "batches": self.batches,
            "retries": self.retries,
            "last_line": self.last_line,
            "seconds": round(self.seconds, 3),
            "rows_per_second": round(self.rows_per_second),
            "dry_run": self.dry_run,
            **{name: asdict(counts) for name, counts in self.children.items()},
        }


class LoadStopped(Exception):
    """The load stopped before its end. The batches reported are committed."""

    def __init__(self, message: str, report: LoadReport) -> None:
        super().__init__(message)
        self.report = report


class BadLine(LoadStopped):
    """A line cannot be loaded; nothing of its batch is stored."""


class Unreadable(LoadStopped):
    """The file could not be read to its end."""


class Interrupted(LoadStopped):
    """The database went away or was too slow; the same command goes on where this one stopped."""


class Refused(LoadStopped):
    """The database refused a batch that had passed validation."""


class Unprepared(LoadStopped):
    """What the lines lack could not be made; not for a moment only."""


class PreparationFailed(Exception):
    """What a Preparation raises; `is_temporary`: the same lines may well be prepared later."""

    def __init__(self, message: str, *, is_temporary: bool) -> None:
        super().__init__(message)
        self.is_temporary = is_temporary


@dataclass(frozen=True, slots=True)
class Preparation:
    """Completes decoded lines before they are encoded, outside any transaction: it may take long,
    and look into the database."""

    complete: Callable[[Sequence[Any]], None]
    first_rows: int | None = None  # of the load; None: all


def load(
    lines: Iterable[NumberedLine],
    spec: LoadSpec,
    *,
    organization_id: UUID,
    actor_id: UUID | None,
    transaction: Callable[[], AbstractContextManager[None]],
    options: LoadOptions = LoadOptions(),
    on_batch: Callable[[LoadReport], None] = lambda report: None,
    constants: Mapping[str, Any] | None = None,
    preparation: Preparation | None = None,
) -> LoadReport:
    """Upserts `lines` and reports. `transaction` opens one transaction in the organization's
    context; `on_batch` sees the report after each commit; new rows bear `constants`, by column.

    Raises: BadLine, Unreadable, Unprepared, Interrupted, Refused; their report tells what is
    committed.
    """
    if options.preserve_ids:
        spec = restoring(spec)
    loader = _Loader(spec, organization_id, actor_id, options, constants or {})
    report = LoadReport(spec.resource, dry_run=options.dry_run)
    started = time.monotonic()

    def batches() -> None:
        for batch in _encoded_ahead(lines, loader.encoder, options.batch_size, preparation):
            with django_transaction.atomic() if options.dry_run else transaction():
                counts, below = loader.load_batch(batch)
            # (Committed now: an error at the COMMIT leaves the report as it was.)
            report.counts.add(counts)
            report.read += batch.read
            report.batches += 1
            report.last_line = batch.last_line
            if spec.children:
                report.children.setdefault(spec.children.source, Counts()).add(below)
            if not options.dry_run:
                loader.growth.tell_planner()
            report.seconds = time.monotonic() - started
            on_batch(report)

    try:
        if options.dry_run:
            with transaction():
                batches()
                django_transaction.set_rollback(True)
        else:
            batches()
    except LineError as error:
        raise BadLine(str(error), report) from error
    except UnreadableFile as error:
        raise Unreadable(str(error), report) from error
    except PreparationFailed as error:
        stopped = Interrupted if error.is_temporary else Unprepared
        raise stopped(str(error), report) from error
    except (OperationalError, InterfaceError) as error:
        if (getattr(error.__cause__, "sqlstate", None) or "").startswith(LIMIT_EXCEEDED):
            raise Refused(str(error).strip(), report) from error  # it would be so again
        raise Interrupted(str(error).strip(), report) from error
    except DatabaseError as error:
        raise Refused(str(error).strip(), report) from error
    finally:
        report.seconds = time.monotonic() - started
    return report


def _encoded_ahead(
    lines: Iterable[NumberedLine],
    encoder: Encoder,
    batch_size: int,
    preparation: Preparation | None,
) -> Iterator[Batch]:
    """The batches of `lines`; while one is with the database, a thread decodes the next, and
    encodes it unless it is to be prepared first: that is not the thread's to do, whose connection
    would be another."""
    source = iter(lines)
    to_prepare = 0  # rows still
    if preparation:
        to_prepare = sys.maxsize if preparation.first_rows is None else preparation.first_rows

    def encode_next(upcoming: "Future[Batch | list[DecodedLine]]") -> None:
        try:
            decoded = encoder.decode(islice(source, batch_size))
            is_next = decoded and not to_prepare
            upcoming.set_result(encoder.encode(decoded) if is_next else decoded)
        except BaseException as error:
            upcoming.set_exception(error)

    def begin() -> "Future[Batch | list[DecodedLine]]":
        upcoming: Future[Batch | list[DecodedLine]] = Future()
        # A daemon: after an error it may still sit in front of a silent pipe.
        Thread(target=encode_next, args=[upcoming], name="encode", daemon=True).start()
        return upcoming

    usual = sys.getswitchinterval()
    try:
        # The thread that talks to the database needs the interpreter often and briefly: waiting
        # 5 ms for it each time, it lost a tenth of the rows per second (2 cores, Python 3.11).
        sys.setswitchinterval(0.0005)
        upcoming = begin()
        while ready := upcoming.result():
            if isinstance(ready, Batch):
                upcoming = begin()
                yield ready
                continue
            rows = [line for _, line in ready[:to_prepare]]
            to_prepare -= len(rows)
            upcoming = begin()
            if preparation:
                preparation.complete(rows)
            yield encoder.encode(ready)
    finally:
        sys.setswitchinterval(usual)


class _Loader:
    """One connection's worth of loading."""

    def __init__(
        self,
        spec: LoadSpec,
        organization_id: UUID,
        actor_id: UUID | None,
        options: LoadOptions,
        constants: Mapping[str, Any],
    ) -> None:
        self.spec = spec
        self.options = options
        self.organization_id = organization_id
        self.actor_id = actor_id
        self.encoder = Encoder(spec, keeps_time=options.preserve_timestamps)
        self._stage = Stage(spec, self.encoder.columns, constants)
        self._stages = [self._stage]
        if self.encoder.children:
            children = self.encoder.children
            self._child_stage = Stage(children.spec, children.columns)
            self._stages.append(self._child_stage)
        self._references = References(spec)
        self._expect: dict[str, Expect] = {}
        self.growth = Growth()

    def load_batch(self, batch: Batch) -> tuple[Counts, Counts]:
        """Writes one batch within the open transaction; what became of its rows and of their
        children."""
        stamp = Stamp(self.organization_id, self.actor_id, timezone.now())
        with connection.cursor() as cursor:
            self._execute = cursor.execute
            self._fetch = cursor.fetchall
            self._execute(statements.settings(timeout_s=self.options.timeout_s))
            try:
                self._resolve(batch, stamp)
                rows, children = batch.finish(self._references.known)
                counts, below = self._write(cursor, batch, rows, children, stamp)
            except BaseException:
                self._references.forget()
                raise
        counts.duplicates = batch.read - len(rows)
        below.duplicates = batch.child_duplicates
        return counts, below

    # -- references --------------------------------------------------------------------------------

    def _resolve(self, batch: Batch, stamp: Stamp) -> None:
        """Makes every name of the batch known. Raises: LineError."""
        for reference in self.spec.references:
            wanted = batch.wanted[reference.column]
            missing = self._references.find(reference, list(wanted), stamp)
            if missing and reference.creates and not self.options.strict_references:
                self._references.create(reference, missing, stamp)
                self.growth.note(reference.model, len(missing))
            elif missing:
                number, name = min((wanted[name], name) for name in missing)
                raise LineError(
                    "unknown_reference",
                    reference.column,
                    f"There is no {reference.model._meta.verbose_name} "
                    f"{name[1] if isinstance(name, tuple) else name!r}",
                    line=number,
                )

    # -- rows --------------------------------------------------------------------------------------

    def _write(
        self,
        cursor: Any,
        batch: Batch,
        rows: Sequence[bytes],
        children: Sequence[bytes],
        stamp: Stamp,
    ) -> tuple[Counts, Counts]:
        copy_rows(cursor, self._stage.create(), self._stage, rows, batch.row_lines)
        if self.spec.children:
            stage = self._child_stage
            copy_rows(cursor, stage.create(), stage, children, batch.child_lines)
        if self.spec.keeps_ids:
            self._check_ids(self._stage, rows, batch.row_lines, stamp)
            if self.spec.children:
                self._check_ids(self._child_stage, children, batch.child_lines, stamp)
        counts, below = self._upsert(self._stage, len(rows), stamp), Counts()
        if self.spec.children:
            below = self._write_children(len(children), counts, len(rows), stamp)
            self._execute(self._child_stage.drop())
        if self.spec.journal and (counts.inserted or counts.updated):
            self.spec.journal(
                statements.changed_rows(self._stage),
                organization_id=self.organization_id,
                actor_id=self.actor_id,
                now=stamp.now,
            )
        self._execute(self._stage.drop())
        return counts, below

    def _check_ids(
        self, stage: Stage, rows: Sequence[bytes], lines: Sequence[int], stamp: Stamp
    ) -> None:
        """Notes the rows that were there. Raises: LineError, of an id that is another row's."""
        start = len(binary.row_header(0)) + len(binary.NULL)  # the id comes first
        ids = [UUID(bytes=row[start : start + 16]) for row in rows]

        def refuse_found(message: str) -> None:
            for (row_id,) in self._fetch():
                line = lines[ids.index(row_id)]
                raise LineError("id_taken", "id", message.format(row_id), line=line)

        self._execute(statements.INDEX_JOINS)
        for key in stage.spec.natural_keys:
            named = " and ".join(key.columns)
            if not key.partial:
                self._execute(statements.ids_of_another_key(stage, key, stamp))
                refuse_found(f"{{}} is the id of a row of another {named}")
            self._execute(statements.keys_of_another_id(stage, key, stamp))
            refuse_found(f"A row of this {named} has another id than {{}}")
            self._execute(statements.keys_staged_twice(stage, key))
            refuse_found(f"Another line of this {named} has another id than {{}}")
        self._execute(statements.note_there(stage, stamp))
        self._execute(statements.ANY_JOINS)
        self._execute(statements.enter_platform())
        self._execute(statements.ids_of_others(stage, ids, stamp))
        refuse_found("{} is the id of a row of another organization")
        self._execute(statements.leave_platform())

    def _write_children(
        self, staged: int, parents: Counts, parent_rows: int, stamp: Stamp
    ) -> Counts:
        """The children's own counts; a parent whose children alone changed counts as updated."""
        are_all_new = parents.inserted == parent_rows
        if not are_all_new:
            self._execute(statements.adopt(self._stage, self._child_stage))
        left = staged
        if parents.deleted:  # what hangs on a parent in the trash went with it
            self._execute(statements.count_staged(self._child_stage))
            ((left,),) = self._fetch()
        counts = self._upsert(self._child_stage, left, stamp)
        counts.deleted += staged - left
        if not are_all_new and (counts.inserted or counts.updated):
            self._execute(statements.touch_parents(self._stage, self._child_stage, stamp))
            written, inserted = self._count_written(self._stage)
            touched = written - inserted - parents.updated
            parents.updated += touched
            parents.unchanged -= touched
        return counts

    def _upsert(self, stage: Stage, staged: int, stamp: Stamp) -> Counts:
        name = stage.spec.resource
        expect = self._expect.get(name, Expect.ANYTHING)
        if expect is Expect.ALL_NEW:
            try:
                with django_transaction.atomic():
                    self._upsert_keys(stage, stamp, expect)
            except IntegrityError:
                expect = Expect.ANYTHING  # not all new, or wrong: then it is refused again below
        if expect is not Expect.ALL_NEW:
            self._upsert_keys(stage, stamp, expect)
        written, inserted = self._count_written(stage)
        counts = Counts(inserted=inserted, updated=written - inserted)
        if inserted < staged:
            for key in stage.spec.keys:
                self._execute(statements.meet(stage, key, stamp))
            self._execute(statements.count_deleted(stage))
            ((counts.deleted,),) = self._fetch()
            counts.unchanged = staged - written - counts.deleted
        self.growth.note(stage.spec.model, inserted)
        self._expect[name] = Expect.ANYTHING
        if inserted == staged:
            self._expect[name] = Expect.ALL_NEW
        elif inserted > 0.9 * staged and not stage.keeps_time:
            # (A timestamp that the file leaves out has to be looked up in the row.)
            self._expect[name] = Expect.MOSTLY_NEW
        return counts

    def _upsert_keys(self, stage: Stage, stamp: Stamp, expect: Expect) -> None:
        for key in stage.spec.keys:
            self._execute(statements.upsert(stage, key, stamp, expect))

    def _count_written(self, stage: Stage) -> tuple[int, int]:
        self._execute(statements.count_written(stage))
        ((written, inserted),) = self._fetch()
        return written, inserted
