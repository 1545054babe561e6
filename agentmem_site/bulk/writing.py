"""Writes one batch within the open transaction, on one connection.

COPY into a staging table -> match existing rows -> INSERT .. ON CONFLICT of what is new or really
differs -> counts.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from agentmem_site.bulk import binary
from agentmem_site.bulk import sql as statements
from agentmem_site.bulk.copying import copy_rows
from agentmem_site.bulk.encode import Batch, Encoder, line_hash
from agentmem_site.bulk.growth import TableGrowth
from agentmem_site.bulk.lines import Name, Probe
from agentmem_site.bulk.references import References
from agentmem_site.bulk.report import Counts
from agentmem_site.bulk.spec import LINE_HASH, LineError, LineErrors, LoadSpec, Reference, echoed
from agentmem_site.bulk.sql import Staging, Stamp

# Restores rows of a model from the trash, by their ids, with everything deleted with them.
Restore = Callable[[type[Any], Sequence[UUID]], None]


class ConcurrentChange(Exception):
    """Another transaction has inserted or deleted rows since they were looked up. A retry in a new
    transaction sees them."""


class CannotRestore(Exception):
    """A row in the trash cannot be restored. Raised by `Restore`."""


class Writer:
    """Writes batches of one spec for one organization, on the connection of its thread."""

    def __init__(
        self,
        encoder: Encoder,
        organization_id: UUID,
        actor_id: UUID | None,
        *,
        timeout_s: float,
        constants: Mapping[str, Any],
        may_create: Callable[[Reference], bool],
        restore: Restore | None,
        may_restore: Callable[[Reference], bool] = lambda reference: True,
    ) -> None:
        self.spec: LoadSpec = encoder.spec
        self.growth = TableGrowth()
        self._organization_id = organization_id
        self._actor_id = actor_id
        self._timeout_s = timeout_s
        self._may_create = may_create
        self._restore = restore
        self._may_restore = may_restore
        self._stage = Staging(self.spec, encoder.columns, constants)
        children = encoder.children
        self._child_stage = Staging(children.spec, children.columns) if children else None
        self._references = References(self.spec)
        self._started = encoder.started
        self._was_all_new = False  # the last batch

    def write(self, batch: Batch) -> tuple[Counts, Counts]:
        """The counts of the batch's rows and of their children.

        Raises: LineError, LineErrors, CannotRestore, ConcurrentChange.
        """
        stamp = self._stamp()
        with connection.cursor() as cursor:
            self._open(cursor)
            self._resolve(batch, stamp)
            rows, children = batch.finish(self._references.known)
            counts, child_counts = self._write(batch, rows, children, stamp)
        counts.duplicates = len(batch.rows) - len(rows)
        child_counts.duplicates = batch.child_duplicates
        return counts, child_counts

    def names_unknown_rows(self, batch: Batch) -> bool:
        """Whether the batch refers to rows whose ids are not known yet."""
        known = self._references.known
        columns = [reference.column for reference in self.spec.references]
        return any(batch.wanted(column).keys() - known[column].keys() for column in columns)

    def resolve(self, batch: Batch) -> None:
        """Looks up or creates what the batch refers to, in a separate transaction: another worker
        that creates the same waits for its end. Raises: LineError."""
        with connection.cursor() as cursor:
            self._open(cursor)
            self._resolve(batch, self._stamp())

    def forget(self) -> None:
        """Called when the last transaction may not have been committed."""
        self._references.forget()

    def unchanged_lines(self, probes: Sequence[Probe]) -> set[int]:
        """The numbers of the lines whose rows exist and are as these lines say."""
        stamp = self._stamp()
        with connection.cursor() as cursor:
            self._open(cursor)
            known = self._references.known
            references = self.spec.references
            for index, reference in enumerate(references):
                names = {p.names[index] for p in probes if p.names[index] is not None}
                if reference.within:  # (the outer row may be unknown)
                    outer = known[reference.within]
                    names = {n for n in names if n[0] in outer}  # type: ignore[index]
                self._references.find(reference, list(names), stamp)  # type: ignore[arg-type]
            candidates, hashes = [], []
            columns = [reference.column for reference in references]
            to_restore = self._references.deleted if self._restore else set()
            for probe in probes:
                if to_restore and not to_restore.isdisjoint(zip(columns, probe.names, strict=True)):
                    continue
                ids = [
                    binary.NULL if name is None else known[column].get(name)
                    for column, name in zip(columns, probe.names, strict=True)
                ]
                if None not in ids:
                    candidates.append(probe)
                    hashes.append(line_hash(probe.raw.digest, ids))  # type: ignore[arg-type]
            keys = [probe.key for probe in candidates]
            self._execute(statements.INDEX_SCANS_ONLY)
            self._execute(statements.unchanged_rows(self.spec, keys, hashes, stamp))
            return {candidates[position - 1].raw.number for (position,) in self._fetch()}

    # -- inside ----------------------------------------------------------------------------------

    def _stamp(self) -> Stamp:
        return Stamp(self._organization_id, self._actor_id, timezone.now(), self._started)

    def _open(self, cursor: Any) -> None:
        self._cursor = cursor
        self._execute = cursor.execute
        self._fetch = cursor.fetchall
        self._execute(statements.settings(timeout_s=self._timeout_s))

    def _resolve(self, batch: Batch, stamp: Stamp) -> None:
        """Looks up the ids of all names in the batch, and creates missing rows. Raises:
        LineError."""
        for reference in self.spec.references:
            wanted = batch.wanted(reference.column)
            missing = self._references.find(reference, list(wanted), stamp)
            if missing and reference.creates and self._may_create(reference):
                lines = {name: wanted[name] for name in missing}
                self._references.create(reference, lines, stamp)
                self.growth.note(reference.model, len(missing))
            elif missing:
                number, name = min((wanted[name], name) for name in missing)
                raise LineError(
                    "unknown_reference",
                    reference.column,
                    f"There is no {reference.model._meta.verbose_name} "
                    f"{echoed(repr(name[1] if isinstance(name, tuple) else name))}",
                    line=number,
                )
            self._restore_referenced(reference, wanted)

    def _restore_referenced(self, reference: Reference, wanted: Mapping[Name, int]) -> None:
        """Restores the rows in the trash that the batch refers to, if the caller wants that."""
        if self._restore and self._references.deleted and self._may_restore(reference):
            column = reference.column
            deleted = [name for name in wanted if (column, name) in self._references.deleted]
            if deleted:
                known = self._references.known[column]
                self._restore(reference.model, [UUID(bytes=known[name][4:]) for name in deleted])
                self._references.restored(reference, deleted)

    def _lock_references(
        self, batch: Batch, rows: Sequence[bytes], stamp: Stamp, *, is_matched: bool
    ) -> None:
        """Locks what the rows to be written refer to: it stays out of the trash.

        Raises: LineErrors, for lines that refer to deleted rows; ConcurrentChange, if these were
        deleted just now and are to be restored.
        """
        references = [r for r in self.spec.references if batch.has_names(r.column)]
        if self.spec.keeps_ids or not references:  # (an export says itself what is in the trash)
            return
        stage = self._stage
        self._execute(statements.INDEX_SCANS_ONLY)
        self._execute(statements.lock_references(stage, references, stamp, is_matched=is_matched))
        deleted: dict[int, list[UUID]] = {}
        for index, row_id in self._fetch():
            deleted.setdefault(index, []).append(row_id)
        self._execute(statements.ALL_SCANS)
        if not deleted:
            return
        lines = dict(zip(_ids(rows), batch.row_lines, strict=True))
        names = {(number, column): name for number, column, name in batch.named()}
        errors: dict[int, LineError] = {}
        for index, ids in deleted.items():
            reference = references[index]
            if self._restore and self._may_restore(reference):
                raise ConcurrentChange
            self._execute(
                statements.rows_referring_to(stage, reference, ids, is_matched=is_matched)
            )
            for (row_id,) in self._fetch():
                line = lines[row_id]
                errors.setdefault(line, _in_trash(reference, names[line, reference.column], line))
        if errors:
            raise LineErrors(list(errors.values()))

    def _write(
        self, batch: Batch, rows: Sequence[bytes], children: Sequence[bytes], stamp: Stamp
    ) -> tuple[Counts, Counts]:
        stage, child_stage = self._stage, self._child_stage
        copy_rows(self._cursor, stage.create(), stage, rows, batch.row_lines)
        if child_stage:
            create = child_stage.create()
            copy_rows(self._cursor, create, child_stage, children, batch.child_lines)
        if self.spec.keeps_ids:
            self._check_ids(stage, rows, batch.row_lines, stamp)
            if child_stage:
                self._check_ids(child_stage, children, batch.child_lines, stamp)
        if self._was_all_new and self._insert_all(batch, rows, stamp):
            counts, child_counts = Counts(inserted=len(rows)), Counts(inserted=len(children))
            if self.spec.journal:
                self._execute(statements.record_all_written(stage))
        else:
            counts, child_counts = self._upsert(batch, rows, len(children), stamp)
        self._was_all_new = counts.inserted == len(rows)
        self.growth.note(self.spec.model, counts.inserted)
        if self.spec.children:
            self.growth.note(self.spec.children.spec.model, child_counts.inserted)
        if self.spec.journal and (counts.inserted or counts.updated):
            self.spec.journal(
                statements.written_rows(stage),
                organization_id=self._organization_id,
                actor_id=self._actor_id,
                now=stamp.now,
            )
        self._execute(stage.drop())
        if child_stage:
            self._execute(child_stage.drop())
        return counts, child_counts

    def _insert_all(self, batch: Batch, rows: Sequence[bytes], stamp: Stamp) -> bool:
        """Inserts the batch without looking up existing rows. False if that failed."""
        try:
            with transaction.atomic():
                self._lock_references(batch, rows, stamp, is_matched=False)
                for stage in filter(None, [self._stage, self._child_stage]):
                    for key in stage.spec.keys:
                        self._execute(statements.insert(stage, key, stamp))
        except (IntegrityError, LineErrors):
            return False  # not all rows are new; or a row is bad, which the upsert will report
        return True

    def _upsert(
        self, batch: Batch, staged: Sequence[bytes], children: int, stamp: Stamp
    ) -> tuple[Counts, Counts]:
        stage, child_stage, rows = self._stage, self._child_stage, len(staged)
        self._match(stage, stamp)
        orphans = 0
        if child_stage:
            self._match(child_stage, stamp, parents=stage)
            # Every loader locks parents before their children, so that none deadlocks.
            self._execute(statements.mark_parents(stage, child_stage))
        self._lock_references(batch, staged, stamp, is_matched=True)
        for key in stage.spec.keys:
            self._execute(statements.upsert(stage, key, stamp))
        counts, existing, to_update = self._count(stage, rows)
        if child_stage:
            if (counts.inserted + existing < rows or counts.updated < to_update) and children:
                # The children's staged parent ids do not exist, or are of rows in the trash.
                raise ConcurrentChange
            for key in child_stage.spec.keys:
                self._execute(statements.upsert(child_stage, key, stamp, parents=stage))
            if counts.deleted:
                self._execute(statements.count_orphans(child_stage, stage))
                ((orphans,),) = self._fetch()
            child_counts, *_ = self._count(child_stage, children - orphans)
            if child_counts.deleted and LINE_HASH in stage.columns:
                self._execute(statements.forget_lines(stage, child_stage, stamp))
            child_counts.deleted += orphans
        return counts, child_counts if child_stage else Counts()

    def _match(self, stage: Staging, stamp: Stamp, parents: Staging | None = None) -> None:
        """Matches staged rows with existing ones; restores these if the caller wants that."""
        for key in stage.spec.keys:
            self._execute(statements.match_existing(stage, key, stamp, parents))
        if self._restore:
            self._execute(statements.deleted_rows(stage))
            if deleted := [row_id for (row_id,) in self._fetch()]:
                self._restore(stage.spec.model, deleted)
                self._execute(statements.mark_restored(stage))

    def _count(self, stage: Staging, staged: int) -> tuple[Counts, int, int]:
        """The counts of `staged` rows; how many of them existed, and how many of those were to be
        updated."""
        self._execute(statements.count(stage))
        ((written, inserted, existing, deleted, to_update),) = self._fetch()
        return (
            Counts(
                inserted=inserted,
                updated=written - inserted,
                unchanged=staged - written - deleted,
                deleted=deleted,
            ),
            existing,
            to_update,
        )

    def _check_ids(
        self, stage: Staging, rows: Sequence[bytes], lines: Sequence[int], stamp: Stamp
    ) -> None:
        """Raises: LineError, for an id that belongs to another row."""
        ids = _ids(rows)

        def refuse_any(message: str) -> None:
            for (row_id,) in self._fetch():
                line = lines[ids.index(row_id)]
                raise LineError("id_taken", "id", message.format(row_id), line=line)

        self._execute(statements.INDEX_SCANS_ONLY)
        for key in stage.spec.natural_keys:
            named = " and ".join(key.columns)
            if not key.partial:
                self._execute(statements.ids_of_another_key(stage, key, stamp))
                refuse_any(f"{{}} is the id of a row with another {named}")
            self._execute(statements.keys_of_another_id(stage, key, stamp))
            refuse_any(f"The row with this {named} has another id than {{}}")
            self._execute(statements.keys_staged_twice(stage, key))
            refuse_any(f"Another line with this {named} has another id than {{}}")
        self._execute(statements.ALL_SCANS)
        self._execute(statements.enter_platform())
        self._execute(statements.ids_of_others(stage, ids, stamp))
        refuse_any("{} is the id of a row of another organization")
        self._execute(statements.leave_platform())


def _ids(rows: Sequence[bytes]) -> list[UUID]:
    start = len(binary.row_header(0)) + len(binary.NULL)  # the id comes first
    return [UUID(bytes=row[start : start + 16]) for row in rows]


def _in_trash(reference: Reference, name: Name, line: int) -> LineError:
    label = reference.model._meta.verbose_name
    named = echoed(repr(name[1] if isinstance(name, tuple) else name))
    message = f"The {label} {named} is in the trash: restore it first"
    return LineError("unknown_reference", reference.column, message, line=line)
