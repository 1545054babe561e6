"""One batch into its tables, within the open transaction, on one connection.

Temp table -> COPY -> meet the rows that are there -> INSERT .. ON CONFLICT of what is new or really
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
from agentmem_site.bulk.growth import Growth
from agentmem_site.bulk.lines import Name, Probe
from agentmem_site.bulk.references import References
from agentmem_site.bulk.report import Counts
from agentmem_site.bulk.spec import (
    LINE_HASH,
    LineError,
    LineErrors,
    LoadSpec,
    Reference,
    echoed,
)
from agentmem_site.bulk.sql import Stage, Stamp

# Brings rows of a model back from the trash, by their ids, with all that went there with them.
Restore = Callable[[type[Any], Sequence[UUID]], None]


class Overtaken(Exception):
    """Others have inserted rows since they were looked for, or moved them to the trash: the same
    batch again, in a new transaction, sees it."""


class CannotRestore(Exception):
    """A row in the trash cannot come back: what `Restore` raises."""


class Writer:
    """Writes batches of one spec for one organization, over the connection of its thread."""

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
        self.growth = Growth()
        self._organization_id = organization_id
        self._actor_id = actor_id
        self._timeout_s = timeout_s
        self._may_create = may_create
        self._restore = restore
        self._may_restore = may_restore
        self._stage = Stage(self.spec, encoder.columns, constants)
        below = encoder.children
        self._child_stage = Stage(below.spec, below.columns) if below else None
        self._references = References(self.spec)
        self._begun = encoder.begun
        self._was_new = False  # all of the last batch

    def write(self, batch: Batch) -> tuple[Counts, Counts]:
        """What became of the batch's rows and of their children.

        Raises: LineError, LineErrors, CannotRestore, Overtaken.
        """
        stamp = self._stamp()
        with connection.cursor() as cursor:
            self._open(cursor)
            self._resolve(batch, stamp)
            rows, children = batch.finish(self._references.known)
            counts, below = self._write(batch, rows, children, stamp)
        counts.duplicates = len(batch.rows) - len(rows)
        below.duplicates = batch.child_duplicates
        return counts, below

    def lacks(self, batch: Batch) -> bool:
        """Whether the batch names rows that are not known yet."""
        known = self._references.known
        columns = [reference.column for reference in self.spec.references]
        return any(batch.wanted(column).keys() - known[column].keys() for column in columns)

    def resolve(self, batch: Batch) -> None:
        """Finds and makes what the batch names, in a transaction of its own: another worker that
        makes the same waits for its end. Raises: LineError."""
        with connection.cursor() as cursor:
            self._open(cursor)
            self._resolve(batch, self._stamp())

    def forget(self) -> None:
        """The last transaction is not committed, for all that is known."""
        self._references.forget()

    def seen(self, probes: Sequence[Probe]) -> set[int]:
        """The numbers of the lines that the table has as they are."""
        stamp = self._stamp()
        with connection.cursor() as cursor:
            self._open(cursor)
            known = self._references.known
            references = self.spec.references
            for place, reference in enumerate(references):
                names = {p.names[place] for p in probes if p.names[place] is not None}
                if reference.within:  # (what it lies within may be unknown)
                    outer = known[reference.within]
                    names = {n for n in names if n[0] in outer}  # type: ignore[index]
                self._references.find(reference, list(names), stamp)  # type: ignore[arg-type]
            asked, hashes = [], []
            columns = [known[reference.column] for reference in references]
            lying = self._references.deleted if self._restore else set()
            named = [reference.column for reference in references]
            for probe in probes:
                if lying and not lying.isdisjoint(zip(named, probe.names, strict=True)):
                    continue  # what it names is to be brought back
                referred = [
                    binary.NULL if name is None else ids.get(name)
                    for ids, name in zip(columns, probe.names, strict=True)
                ]
                if None not in referred:
                    asked.append(probe)
                    hashes.append(line_hash(probe.raw.digest, referred))  # type: ignore[arg-type]
            keys = [probe.key for probe in asked]
            self._execute(statements.LOOK_UPS)
            self._execute(statements.seen_rows(self.spec, keys, hashes, stamp))
            return {asked[place - 1].raw.number for (place,) in self._fetch()}

    # -- inside ----------------------------------------------------------------------------------

    def _stamp(self) -> Stamp:
        return Stamp(self._organization_id, self._actor_id, timezone.now(), self._begun)

    def _open(self, cursor: Any) -> None:
        self._cursor = cursor
        self._execute = cursor.execute
        self._fetch = cursor.fetchall
        self._execute(statements.settings(timeout_s=self._timeout_s))

    def _resolve(self, batch: Batch, stamp: Stamp) -> None:
        """Makes every name of the batch known. Raises: LineError."""
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
            self._bring_back(reference, wanted)

    def _bring_back(self, reference: Reference, wanted: Mapping[Name, int]) -> None:
        """What lies in the trash of what the batch names, where that is asked for."""
        if self._restore and self._references.deleted and self._may_restore(reference):
            column = reference.column
            lying = [name for name in wanted if (column, name) in self._references.deleted]
            if lying:
                known = self._references.known[column]
                self._restore(reference.model, [UUID(bytes=known[name][4:]) for name in lying])
                self._references.restored(reference, lying)

    def _hold(self, batch: Batch, rows: Sequence[bytes], stamp: Stamp, *, is_met: bool) -> None:
        """What the rows that are to be written refer to stays out of the trash from here on.

        Raises: LineErrors, of the lines that name what lies there; Overtaken, where it is to be
        brought back and went there only now.
        """
        references = [r for r in self.spec.references if batch.wanted(r.column)]
        if self.spec.keeps_ids or not references:  # (an export says itself what lies there)
            return
        stage = self._stage
        self._execute(statements.LOOK_UPS)
        self._execute(statements.hold_references(stage, references, stamp, is_met=is_met))
        found: dict[int, list[UUID]] = {}
        for place, row_id in self._fetch():
            found.setdefault(place, []).append(row_id)
        self._execute(statements.ANY_PLANS)
        if not found:
            return
        lines = dict(zip(_ids(rows), batch.row_lines, strict=True))
        names = {(number, column): name for number, column, name in batch.named()}
        errors: dict[int, LineError] = {}
        for place, ids in found.items():
            reference = references[place]
            if self._restore and self._may_restore(reference):
                raise Overtaken
            self._execute(statements.rows_that_refer(stage, reference, ids, is_met=is_met))
            for (row_id,) in self._fetch():
                line = lines[row_id]
                errors.setdefault(line, _in_trash(reference, names[line, reference.column], line))
        if errors:
            raise LineErrors(list(errors.values()))

    def _write(
        self, batch: Batch, rows: Sequence[bytes], children: Sequence[bytes], stamp: Stamp
    ) -> tuple[Counts, Counts]:
        stage, below = self._stage, self._child_stage
        copy_rows(self._cursor, stage.create(), stage, rows, batch.row_lines)
        if below:
            copy_rows(self._cursor, below.create(), below, children, batch.child_lines)
        if self.spec.keeps_ids:
            self._check_ids(stage, rows, batch.row_lines, stamp)
            if below:
                self._check_ids(below, children, batch.child_lines, stamp)
        if self._was_new and self._insert_all(batch, rows, stamp):
            counts, counts_below = Counts(inserted=len(rows)), Counts(inserted=len(children))
            if self.spec.journal:
                self._execute(statements.note_all(stage))
        else:
            counts, counts_below = self._upsert(batch, rows, len(children), stamp)
        self._was_new = counts.inserted == len(rows)
        self.growth.note(self.spec.model, counts.inserted)
        if self.spec.children:
            self.growth.note(self.spec.children.spec.model, counts_below.inserted)
        if self.spec.journal and (counts.inserted or counts.updated):
            self.spec.journal(
                statements.changed_rows(stage),
                organization_id=self._organization_id,
                actor_id=self._actor_id,
                now=stamp.now,
            )
        self._execute(stage.drop())
        if below:
            self._execute(below.drop())
        return counts, counts_below

    def _insert_all(self, batch: Batch, rows: Sequence[bytes], stamp: Stamp) -> bool:
        """Tries the batch as if nothing of it were there, which costs no look-up; whether it
        worked."""
        try:
            with transaction.atomic():
                self._hold(batch, rows, stamp, is_met=False)
                for stage in filter(None, [self._stage, self._child_stage]):
                    for key in stage.spec.keys:
                        self._execute(statements.insert(stage, key, stamp))
        except (IntegrityError, LineErrors):
            return False  # not all new, or wrong: then it is refused again
        return True

    def _upsert(
        self, batch: Batch, staged: Sequence[bytes], children: int, stamp: Stamp
    ) -> tuple[Counts, Counts]:
        stage, below, rows = self._stage, self._child_stage, len(staged)
        self._meet(stage, stamp)
        orphans = 0
        if below:
            self._meet(below, stamp, parents=stage)
            # Parents are written before their children, here and in every other loader: who waits
            # for a child holds its parent.
            self._execute(statements.write_parents_of(stage, below))
        self._hold(batch, staged, stamp, is_met=True)
        for key in stage.spec.keys:
            self._execute(statements.upsert(stage, key, stamp))
        counts, met, due = self._count(stage, rows)
        if below:
            if (counts.inserted + met < rows or counts.updated < due) and children:
                # The children of those rows are staged under ids that are none, or would be live
                # below rows in the trash.
                raise Overtaken
            for key in below.spec.keys:
                self._execute(statements.upsert(below, key, stamp, parents=stage))
            if counts.deleted:
                self._execute(statements.count_orphans(below, stage))
                ((orphans,),) = self._fetch()
            counts_below, *_ = self._count(below, children - orphans)
            if counts_below.deleted and LINE_HASH in stage.columns:
                self._execute(statements.forget_lines(stage, below, stamp))
            counts_below.deleted += orphans
        return counts, counts_below if below else Counts()

    def _meet(self, stage: Stage, stamp: Stamp, parents: Stage | None = None) -> None:
        for key in stage.spec.keys:
            self._execute(statements.meet(stage, key, stamp, parents))
        if self._restore:
            self._execute(statements.deleted_rows(stage))
            if deleted := [row_id for (row_id,) in self._fetch()]:
                self._restore(stage.spec.model, deleted)
                self._execute(statements.bring_back(stage))

    def _count(self, stage: Stage, staged: int) -> tuple[Counts, int, int]:
        """What became of so many staged rows; how many of them were there before, and of those
        were to be written."""
        self._execute(statements.count(stage))
        ((written, inserted, met, deleted, due),) = self._fetch()
        return (
            Counts(
                inserted=inserted,
                updated=written - inserted,
                unchanged=staged - written - deleted,
                deleted=deleted,
            ),
            met,
            due,
        )

    def _check_ids(
        self, stage: Stage, rows: Sequence[bytes], lines: Sequence[int], stamp: Stamp
    ) -> None:
        """Raises: LineError, of an id that is another row's."""
        ids = _ids(rows)

        def refuse_found(message: str) -> None:
            for (row_id,) in self._fetch():
                line = lines[ids.index(row_id)]
                raise LineError("id_taken", "id", message.format(row_id), line=line)

        self._execute(statements.LOOK_UPS)
        for key in stage.spec.natural_keys:
            named = " and ".join(key.columns)
            if not key.partial:
                self._execute(statements.ids_of_another_key(stage, key, stamp))
                refuse_found(f"{{}} is the id of a row of another {named}")
            self._execute(statements.keys_of_another_id(stage, key, stamp))
            refuse_found(f"A row of this {named} has another id than {{}}")
            self._execute(statements.keys_staged_twice(stage, key))
            refuse_found(f"Another line of this {named} has another id than {{}}")
        self._execute(statements.ANY_PLANS)
        self._execute(statements.enter_platform())
        self._execute(statements.ids_of_others(stage, ids, stamp))
        refuse_found("{} is the id of a row of another organization")
        self._execute(statements.leave_platform())


def _ids(rows: Sequence[bytes]) -> list[UUID]:
    start = len(binary.row_header(0)) + len(binary.NULL)  # the id comes first
    return [UUID(bytes=row[start : start + 16]) for row in rows]


def _in_trash(reference: Reference, name: Name, line: int) -> LineError:
    label = reference.model._meta.verbose_name
    named = echoed(repr(name[1] if isinstance(name, tuple) else name))
    message = f"The {label} {named} is in the trash: restore it first"
    return LineError("unknown_reference", reference.column, message, line=line)
