"""The loader: numbered lines -> validated rows -> COPY -> upsert -> exact counts, batch by batch.

Per batch one transaction, opened by the caller's `transaction` (it holds the organization's
context); what a batch wrote is there for good before the next line is read.

The place of what is still to come: workers (one Loader each), resumable jobs and retries (around
`_load_batch`), a reject file (where a LineError is caught).
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from itertools import islice
from operator import attrgetter
from typing import Any
from uuid import UUID

import msgspec
from django.db import Error as DatabaseError
from django.db import InterfaceError, OperationalError, connection
from django.db import transaction as django_transaction
from django.utils import timezone
from psycopg import sql

from agentmem_site.bulk import binary
from agentmem_site.bulk import sql as statements
from agentmem_site.bulk.readers import NumberedLine, UnreadableFile, check_text
from agentmem_site.bulk.spec import LineError, LoadSpec, Reference, moment
from agentmem_site.bulk.sql import Stage, Stamp
from agentmem_site.db.ids import uuid7_bytes

_COPY_ROWS = 256  # rows joined for one write: about a megabyte
_MAX_KNOWN = 200_000  # references kept between batches
_PATH = re.compile(r"(.*?)(?: - at `\$\.?(.*)`)?", re.DOTALL)
_QUOTED = re.compile(r"`(.*)`")


@dataclass(frozen=True, slots=True)
class LoadOptions:
    batch_size: int = 5000
    timeout_s: float = 30  # per statement; 0: none
    preserve_timestamps: bool = False
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


def load(
    lines: Iterable[NumberedLine],
    spec: LoadSpec,
    *,
    organization_id: UUID,
    actor_id: UUID | None,
    transaction: Callable[[], AbstractContextManager[None]],
    options: LoadOptions = LoadOptions(),
    on_batch: Callable[[LoadReport], None] = lambda report: None,
) -> LoadReport:
    """Upserts `lines` and reports. `transaction` opens one transaction in the organization's
    context; `on_batch` sees the report after each commit.

    Raises: BadLine, Interrupted, Refused; their report tells what is committed.
    """
    loader = _Loader(spec, organization_id, actor_id, options)
    report = LoadReport(spec.resource, dry_run=options.dry_run)
    started = time.monotonic()
    source = iter(lines)

    def batches() -> None:
        while batch := list(islice(source, options.batch_size)):
            with django_transaction.atomic() if options.dry_run else transaction():
                loader.load_batch(batch, report)
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
    except (OperationalError, InterfaceError) as error:
        raise Interrupted(str(error).strip(), report) from error
    except DatabaseError as error:
        raise Refused(str(error).strip(), report) from error
    finally:
        report.seconds = time.monotonic() - started
    return report


@dataclass(frozen=True, slots=True)
class _Batch:
    """The rows of a batch, ready to be copied."""

    rows: Sequence[bytes]
    duplicates: int


class _Encoder:
    """Lines of one spec into rows of binary COPY."""

    def __init__(self, spec: LoadSpec, *, keeps_time: bool) -> None:
        self.spec = spec
        self.known: dict[str, dict[Any, bytes]] = {r.column: {} for r in spec.references}
        times = ("created_at", "updated_at") if keeps_time else ()
        parent = (spec.parent_column,) if spec.parent_column else ()
        names = [column.name for column in spec.columns]
        self.columns = ("id", *parent, *names, *times)
        self._sources = [c.source or c.name for c in spec.columns] + list(times)
        get = attrgetter(*self._sources)
        self._values = get if len(self._sources) > 1 else lambda line: (get(line),)
        self._encoders = [self._encoder(c.name, c.encode) for c in spec.columns]
        self._encoders += [(moment, binary.NULL)] * len(times)
        self._header = binary.row_header(len(self.columns))
        self._within = [
            (names.index(r.column), names.index(r.within)) for r in spec.references if r.within
        ]
        offset = len(self.columns) - len(self._encoders)
        self._keys = [
            [self.columns.index(name) - offset for name in key.columns if name not in parent]
            for key in spec.keys
        ]

    def encode(
        self, line: Any, row_id: bytes, parent: bytes = b""
    ) -> tuple[tuple[bytes, ...], bytes]:
        """(what tells the row apart, the row). Raises: LineError."""
        values = self._values(line)
        if self._within:
            values = self._with_outer(values)
        try:
            parts = [
                default if value is None else encode(value)
                for (encode, default), value in zip(self._encoders, values, strict=True)
            ]
        except Exception as error:
            raise self._fault(values) from error
        key: tuple[bytes, ...] = ()
        for columns in self._keys:
            key = tuple(parts[i] for i in columns)
            if key[0] != binary.NULL:
                break
        return key, b"".join((self._header, row_id, parent, *parts))

    def _encoder(self, name: str, encode: binary.Encode) -> tuple[binary.Encode, bytes]:
        """How a column's values are encoded, and what stands for a missing one: its default."""
        if name in self.known:
            return self.known[name].__getitem__, binary.NULL
        column = next(f for f in self.spec.model._meta.concrete_fields if f.column == name)
        default = column.get_default()
        if column.get_internal_type() == "JSONField":
            missing = binary.NULL if default is None else encode(msgspec.json.encode(default))
            return _json_or(missing, encode), missing
        return encode, binary.NULL if default is None else encode(default)

    def _with_outer(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        changed = list(values)
        for inner, outer in self._within:
            if values[inner] is not None:
                changed[inner] = (values[outer], values[inner])
        return tuple(changed)

    def _fault(self, values: tuple[Any, ...]) -> LineError:
        """The first column that cannot be encoded. (Found again: the fast path does not count.)"""
        for source, (encode, _), value in zip(self._sources, self._encoders, values, strict=True):
            try:
                if value is not None:
                    encode(value)
            except Exception as error:
                return LineError("invalid_value", source, str(error))
        return LineError("invalid_value", "", "The line cannot be encoded")


class _Loader:
    """One connection's worth of loading."""

    def __init__(
        self, spec: LoadSpec, organization_id: UUID, actor_id: UUID | None, options: LoadOptions
    ) -> None:
        self.spec = spec
        self.options = options
        self.organization_id = organization_id
        self.actor_id = actor_id
        self._decoder = msgspec.json.Decoder(spec.line)
        self._rows = _Encoder(spec, keeps_time=options.preserve_timestamps)
        self._stage = Stage(spec, self._rows.columns)
        # Nearly all rows of the last batch were new: the next one goes straight to the index.
        self._expect_new: dict[str, bool] = {}
        self._child_rows: _Encoder | None = None
        if spec.children:
            self._child_rows = _Encoder(spec.children.spec, keeps_time=False)
            self._child_stage = Stage(spec.children.spec, self._child_rows.columns)

    def load_batch(self, batch: Sequence[NumberedLine], report: LoadReport) -> None:
        """One batch within the open transaction; the report is added to when all went well."""
        lines = [(number, self._decode(number, line)) for number, line in batch]
        stamp = Stamp(self.organization_id, self.actor_id, timezone.now())
        with connection.cursor() as cursor:
            self._execute = cursor.execute
            self._fetch = cursor.fetchall
            self._execute(
                sql.SQL("SET LOCAL statement_timeout = {}").format(
                    sql.Literal(int(self.options.timeout_s * 1000))
                )
            )
            try:
                self._resolve(lines, stamp)
                rows, children = self._encode(lines)
                counts = self._write(cursor, rows, children, stamp, report)
            except BaseException:
                # What this transaction made is gone with it.
                for known in self._rows.known.values():
                    known.clear()
                raise
        report.counts.add(counts)
        report.read += len(batch)
        report.batches += 1
        report.last_line = batch[-1][0]

    # -- lines -------------------------------------------------------------------------------------

    def _decode(self, number: int, line: bytes) -> Any:
        try:
            check_text(line)
            return self._decoder.decode(line)
        except LineError as error:
            error.line = number
            raise
        except msgspec.ValidationError as error:
            raise _named(error, self.spec, number) from error
        except (msgspec.DecodeError, RecursionError) as error:
            raise LineError("malformed_json", "", str(error), line=number) from error

    def _encode(self, lines: list[tuple[int, Any]]) -> tuple[_Batch, _Batch]:
        """The batch's rows and their children's, the last of each key."""
        rows: dict[tuple[bytes, ...], tuple[bytes, list[bytes]]] = {}
        child_duplicates = 0
        source = self.spec.children.source if self.spec.children else ""
        total = len(lines) + sum(len(getattr(line, source)) for _, line in lines if source)
        ids = uuid7_bytes(total)
        for number, line in lines:
            row_id = binary.data(next(ids))
            try:
                key, row = self._rows.encode(line, row_id)
                below: dict[tuple[bytes, ...], bytes] = {}
                if self._child_rows:
                    for position, child in enumerate(getattr(line, source)):
                        try:
                            child_key, child_row = self._child_rows.encode(
                                child, binary.data(next(ids)), row_id
                            )
                        except LineError as error:
                            error.field = f"{source}[{position}].{error.field}"
                            raise
                        child_duplicates += child_key in below
                        below[child_key] = child_row
            except LineError as error:
                error.line = number
                raise
            rows[key] = row, list(below.values())
        return (
            _Batch([row for row, _ in rows.values()], len(lines) - len(rows)),
            _Batch([child for _, below in rows.values() for child in below], child_duplicates),
        )

    # -- references --------------------------------------------------------------------------------

    def _resolve(self, lines: list[tuple[int, Any]], stamp: Stamp) -> None:
        for reference in self.spec.references:
            known = self._rows.known[reference.column]
            if len(known) > _MAX_KNOWN:
                known.clear()
            wanted: dict[Any, int] = {}  # -> the first line that names it
            for number, line in lines:
                name = getattr(line, reference.column)
                if name is None:
                    continue
                if reference.within:
                    outer = getattr(line, reference.within)
                    if outer is None:
                        raise LineError(
                            "missing_field",
                            reference.within,
                            f"Needed to find {reference.column}",
                            line=number,
                        )
                    name = (outer, name)
                if name not in known:
                    wanted.setdefault(name, number)
            if wanted:
                self._look_up(reference, wanted, known, stamp)

    def _look_up(
        self, reference: Reference, wanted: dict[Any, int], known: dict[Any, bytes], stamp: Stamp
    ) -> None:
        find = self._find_within if reference.within else self._find
        known.update(find(reference, wanted))
        missing = [name for name in wanted if name not in known]
        if missing and reference.creates and not self.options.strict_references:
            ids = uuid7_bytes(len(missing))
            rows = [(UUID(bytes=next(ids)), name) for name in missing]
            self._execute(statements.create_references(reference, stamp, rows))
            known.update(self._find(reference, missing))
        elif missing:
            number, name = min((wanted[name], name) for name in missing)
            raise LineError(
                "unknown_reference",
                reference.column,
                f"There is no {reference.model._meta.verbose_name} "
                f"{name[1] if reference.within else name!r}",
                line=number,
            )

    def _find(self, reference: Reference, wanted: Iterable[str]) -> dict[str, bytes]:
        self._execute(statements.find_references(reference, self.organization_id, list(wanted)))
        found = {}
        for key, id_text, row_id in self._fetch():
            found[id_text] = found[key] = binary.uuid(row_id)
        return {name: found[name] for name in wanted if name in found}

    def _find_within(
        self, reference: Reference, wanted: Iterable[tuple[str, str]]
    ) -> dict[tuple[str, str], bytes]:
        outer_ids = self._rows.known[reference.within]
        pairs = {(outer, name): (UUID(bytes=outer_ids[outer][4:]), name) for outer, name in wanted}
        self._execute(
            statements.find_references_within(reference, self.organization_id, list(pairs.values()))
        )
        found = {(outer_id, key): binary.uuid(row_id) for outer_id, key, row_id in self._fetch()}
        return {name: found[pair] for name, pair in pairs.items() if pair in found}

    # -- rows --------------------------------------------------------------------------------------

    def _write(
        self, cursor: Any, rows: _Batch, children: _Batch, stamp: Stamp, report: LoadReport
    ) -> Counts:
        self._copy(cursor, self._stage, rows)
        if self.spec.children:
            self._copy(cursor, self._child_stage, children)
        counts = self._upsert(self._stage, rows, stamp)
        if self.spec.children:
            below = self._write_children(children, counts, len(rows.rows), stamp)
            report.children.setdefault(self.spec.children.source, Counts()).add(below)
            self._execute(self._child_stage.drop())
        if self.spec.journal and (counts.inserted or counts.updated):
            self.spec.journal(
                statements.changed_rows(self._stage),
                organization_id=self.organization_id,
                actor_id=self.actor_id,
                now=stamp.now,
            )
        self._execute(self._stage.drop())
        return counts

    def _write_children(
        self, children: _Batch, parents: Counts, parent_rows: int, stamp: Stamp
    ) -> Counts:
        """The children's own counts; a parent whose children alone changed counts as updated."""
        are_all_new = parents.inserted == parent_rows
        if not are_all_new:
            self._execute(statements.adopt(self._stage, self._child_stage))
        counts = self._upsert(self._child_stage, children, stamp)
        if not are_all_new and (counts.inserted or counts.updated):
            self._execute(statements.touch_parents(self._stage, self._child_stage, stamp))
            written, inserted = self._count_written(self._stage)
            touched = written - inserted - parents.updated
            parents.updated += touched
            parents.unchanged -= touched
        return counts

    def _copy(self, cursor: Any, stage: Stage, batch: _Batch) -> None:
        self._execute(stage.create())
        with connection.wrap_database_errors, cursor.copy(stage.copy()) as copy:
            copy.write(binary.HEADER)
            for start in range(0, len(batch.rows), _COPY_ROWS):
                copy.write(b"".join(batch.rows[start : start + _COPY_ROWS]))
            copy.write(binary.TRAILER)

    def _upsert(self, stage: Stage, batch: _Batch, stamp: Stamp) -> Counts:
        name = stage.spec.resource
        expect_new = self._expect_new.get(name, False) and not stage.keeps_time
        for key in stage.spec.keys:
            self._execute(statements.upsert(stage, key, stamp, expect_new=expect_new))
        written, inserted = self._count_written(stage)
        counts = Counts(inserted=inserted, updated=written - inserted, duplicates=batch.duplicates)
        if inserted < len(batch.rows):
            for key in stage.spec.keys:
                self._execute(statements.meet(stage, key, stamp))
            self._execute(statements.count_deleted(stage))
            ((counts.deleted,),) = self._fetch()
            counts.unchanged = len(batch.rows) - written - counts.deleted
        self._expect_new[name] = inserted > 0.9 * len(batch.rows)
        return counts

    def _count_written(self, stage: Stage) -> tuple[int, int]:
        self._execute(statements.count_written(stage))
        ((written, inserted),) = self._fetch()
        return written, inserted


def _json_or(missing: bytes, encode: binary.Encode) -> binary.Encode:
    """For a JSON column: absent and null are its default, never JSON null."""

    def encode_raw(value: msgspec.Raw) -> bytes:
        raw = bytes(value)
        return encode(raw) if raw and raw != b"null" else missing

    return encode_raw


def _named(error: msgspec.ValidationError, spec: LoadSpec, number: int) -> LineError:
    """msgspec's sentence as field, code and message."""
    match = _PATH.fullmatch(str(error))
    message, path = (match[1], match[2] or "") if match else (str(error), "")
    quoted = _QUOTED.search(message)
    cause = error.__cause__.__cause__ if error.__cause__ else None
    if isinstance(cause, LineError):  # what a line says of itself (its __post_init__)
        field_name = ".".join(part for part in (path, cause.field) if part)
        return LineError(cause.code, field_name, cause.message, line=number)
    if quoted and message.startswith("Object contains unknown field"):
        place = f"{path}." if path else ""
        allowed = ", ".join(_allowed(spec, path))
        return LineError(
            "unknown_field", place + quoted[1], f"Unknown field; allowed: {allowed}", line=number
        )
    if quoted and message.startswith("Object missing required field"):
        place = f"{path}." if path else ""
        return LineError("missing_field", place + quoted[1], "Missing", line=number)
    return LineError("invalid_value", path, message, line=number)


def _allowed(spec: LoadSpec, path: str) -> Iterator[str]:
    line = spec.children.spec.line if path and spec.children else spec.line
    return (f.encode_name for f in msgspec.structs.fields(line))
