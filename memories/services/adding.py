"""Adds memories: one encoding, one COPY and one transaction for up to 1,000, without duplicates.

Items are JSON objects like the lines of a bulk file (memories/bulk.py) and are written by the
loader's code. Each item gets its own result.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from itertools import starmap
from typing import Any, Literal
from uuid import UUID

import msgspec
from django.utils import timezone
from psycopg import sql

from accounts.actors import Actor
from accounts.errors import Conflict, Forbidden, Invalid, ServiceError
from accounts.models import Organization
from accounts.organization_settings import language_of
from accounts.services.audit import record_event
from accounts.services.naming import refusal
from accounts.services.records import MAX_IDS_IN_EVENT
from accounts.tenancy import tenant
from agentmem_site.bulk.encode import Batch, Encoder
from agentmem_site.bulk.growth import TableGrowth
from agentmem_site.bulk.inserting import ConflictingRow, InsertResult, insert_new
from agentmem_site.bulk.lines import DecodedLine, Name, RawLine, Row
from agentmem_site.bulk.references import References
from agentmem_site.bulk.spec import LineError, Reference
from agentmem_site.bulk.sql import Staging, Stamp
from memories.bulk import MEMORIES, SAID_AGAIN, MemoryLine
from memories.embeddings import EncoderError
from memories.models import Memory
from memories.services.embedding import wake_worker
from memories.services.lines import embed_lines
from memories.services.memories import memories

MAX_ITEMS = 1_000
Embed = Literal["now", "later"]
TAKEN, IN_TRASH = "duplicate", "in_trash"  # codes of faults that are conflicts
_KINDS: dict[str, type[ServiceError]] = {
    TAKEN: Conflict,
    IN_TRASH: Conflict,
    Forbidden.code: Forbidden,
}

_growth = TableGrowth()  # in this process
logger = logging.getLogger("agentmem.memories")


class Fault(msgspec.Struct, frozen=True):
    """Why an item is rejected; `field` is empty if the whole item is at fault."""

    field: str
    code: str
    message: str


class Added(msgspec.Struct, frozen=True):
    """The result of one item. A duplicate's id is that of the existing memory."""

    index: int
    status: Literal["created", "duplicate", "rejected"]
    id: UUID | None = None
    error: Fault | None = None
    is_embedded: bool = False  # it was created and needs no worker


def add_memories(
    *,
    organization: Organization,
    actor: Actor,
    items: Sequence[bytes],
    embed: Embed = "now",
    replaces: UUID | None = None,
) -> list[Added]:
    """Adds memories and returns the result of each item, in order. Called outside `tenant()`.

    An item is a duplicate if a memory exists with the same speaker, content, agent and user, or
    with the same external_id and the same text. An expired memory does not count: the item becomes
    its new version, with a created_at of its own. A bad item is rejected, the others are stored.
    If the encoder fails, they are stored for a worker, as all are with `embed="later"`.

    Raises: Invalid (no items, or more than 1,000).
    """
    if not 1 <= len(items) <= MAX_ITEMS:
        raise Invalid(
            f"The batch has {len(items):,} memories; it may have 1 to {MAX_ITEMS:,}.",
            field="memories",
            code="batch_size",
        )
    adding = _Adding(organization, actor, replaces)
    lines = adding.decoded(items)
    if embed == "now":
        try:
            embed_lines([decoded.line for decoded in lines], organization=organization)
        except EncoderError as error:
            logger.warning("Memories are stored without vectors, for a worker: %s", error)
    if lines:
        adding.store(lines)
        _growth.analyze_grown_tables()
    return [adding.added[index] for index in range(len(items))]


def add_memory(
    *,
    organization: Organization,
    actor: Actor,
    values: Mapping[str, Any],
    embed: Embed = "now",
    replaces: UUID | None = None,
) -> Added:
    """Adds one memory. A memory in the trash that it `replaces` is purged in the same transaction.
    Called outside `tenant()`. Raises: Conflict, Forbidden, Invalid."""
    item = json.dumps(values, default=datetime.isoformat).encode()
    (added,) = add_memories(
        organization=organization, actor=actor, items=[item], embed=embed, replaces=replaces
    )
    if added.error:
        raise _error(added.error)
    return added


def _error(fault: Fault) -> ServiceError:
    kind = _KINDS.get(fault.code, Invalid)
    return kind(fault.message, field=fault.field or None, code=fault.code)


@cache
def _encoder() -> Encoder:
    return Encoder(MEMORIES, keeps_time=True)


class _Adding:
    """The items of one call; `added` collects their results by index."""

    def __init__(
        self, organization: Organization, actor: Actor, replaces: UUID | None = None
    ) -> None:
        self.replaces = replaces
        self.organization = organization
        self.actor = actor
        self.added: dict[int, Added] = {}
        self._encoder = _encoder()
        constants = {"language": language_of(organization.settings)}
        self._stage = Staging(MEMORIES, self._encoder.columns, constants)

    def decoded(self, items: Sequence[bytes]) -> list[DecodedLine]:
        lines = self._encoder.decode(starmap(RawLine, enumerate(items)), self._reject)
        for decoded in lines:
            if decoded.line.updated_at is not None:
                message = "It is set by the server: leave it out."
                self._reject(LineError("read_only", "updated_at", message, line=decoded.number))
        return [decoded for decoded in lines if decoded.number not in self.added]

    def store(self, lines: Sequence[DecodedLine]) -> None:
        """One transaction: references, rows, history, one audit event."""
        now = timezone.now()
        started = now - timedelta(microseconds=MAX_ITEMS)  # (no item is created after now)
        batch = self._encoder.started_at(started).encode(lines, self._reject)
        stamp = Stamp(self.organization.pk, self.actor.id, now, started)
        references = References(MEMORIES, locks=True)
        with tenant(self.organization):
            self._resolve(batch, references, stamp)
            rows = list(batch.finish_each(references.known, without=self.added.keys()))
            if not rows:
                return
            if self.replaces:
                deleted = Memory.objects.for_organization(self.organization).deleted()
                one = deleted.filter(pk=self.replaces)
                memories.purge(one, organization=self.organization, actor=self.actor)
            first_of_key = {row.key: row for row in reversed(rows)}
            done = self._insert(list(first_of_key.values()), stamp)
            by_number = {decoded.number: decoded.line for decoded in lines}
            for row in rows:
                line, first = by_number[row.number], first_of_key[row.key]
                stored = done.id_of(first.id)
                if stored and row is first:
                    is_embedded = line.embedding_state != Memory.EmbeddingState.PENDING
                    self.added[row.number] = Added(
                        row.number, "created", stored, is_embedded=is_embedded
                    )
                elif stored:
                    first_hash = by_number[first.number].hash
                    self._resolve_conflict(
                        row, line, ConflictingRow(stored, False, False, first_hash)
                    )
                else:
                    self._resolve_conflict(row, line, done.conflicts.get(first.id))
            if self.replaces and (fault := self.added[0].error):
                raise _error(fault)  # (nothing is purged then)
            if done.new or done.overwritten:
                self._keep_record(rows, done, references, stamp)
                wake_worker(self.organization)
                _growth.note(Memory, len(done.new))

    def _reject(self, error: LineError) -> None:
        fault = Fault(error.field, error.code, error.message)
        self.added[error.line] = Added(error.line, "rejected", error=fault)

    def _resolve(self, batch: Batch, references: References, stamp: Stamp) -> None:
        """Looks up the rows that items refer to and creates missing ones. Items with a reference
        that cannot be created are rejected first, so that nothing is created for them."""
        to_create: dict[str, set[Name]] = {}
        for reference in MEMORIES.references:
            wanted = batch.wanted(reference.column)
            missing = references.find(reference, list(wanted), stamp)
            faults = {name: self._fault(reference, name, references) for name in wanted}
            to_create[reference.column] = {name for name in missing if not faults[name]}
            for number, column, name in batch.named():
                if column == reference.column and (fault := faults[name]):
                    self._reject(LineError(fault.code, column, str(fault), line=number))
        used = {
            (column, name) for number, column, name in batch.named() if number not in self.added
        }
        for reference in MEMORIES.references:
            column = reference.column
            names = {
                name: number
                for name, number in batch.wanted(column).items()
                if name in to_create[column] and (column, name) in used
            }
            references.create(reference, names, stamp)
            _growth.note(reference.model, len(names))

    def _fault(
        self, reference: Reference, name: Any, references: References
    ) -> ServiceError | None:
        """Why an item cannot refer to `name`; None if the row exists or can be created."""
        is_deleted = (reference.column, name) in references.deleted
        if name in references.known[reference.column] and not is_deleted:
            return None
        return refusal(reference.model, name, is_deleted=is_deleted, actor=self.actor)

    def _insert(self, rows: list[Row], stamp: Stamp) -> InsertResult:
        try:
            return insert_new(rows, self._stage, stamp, compare="hash")
        except LineError as error:  # refused by PostgreSQL: the transaction is lost
            message = f"memories[{error.line}]: {error.message}"
            raise Invalid(message, field=error.field, code=error.code) from error

    def _resolve_conflict(
        self, row: Row, line: MemoryLine, existing: ConflictingRow | None
    ) -> None:
        """The row was not inserted: `existing` has its key."""
        if existing and not existing.is_deleted and existing.compared == line.hash:
            self.added[row.number] = Added(row.number, "duplicate", existing.id)
            return
        if existing is None:
            code, message = TAKEN, "Another request is changing this memory: send it again."
        elif existing.is_deleted:
            code = IN_TRASH
            message = "The memory with this external_id is in the trash: restore or purge it."
        else:
            code = TAKEN
            message = "Another memory has this external_id; PATCH changes its content."
        self._reject(LineError(code, "external_id", message, line=row.number))

    def _keep_record(
        self, rows: Sequence[Row], done: InsertResult, references: References, stamp: Stamp
    ) -> None:
        new = [row.id for row in rows if row.id in done.new]
        again = [done.overwritten[row.id] for row in rows if row.id in done.overwritten]
        changed = sql.SQL(
            "SELECT id, 'created', '' FROM unnest({}::uuid[]) AS new (id) "
            "UNION ALL SELECT id, 'updated', {} FROM unnest({}::uuid[]) AS again (id)"
        )
        MEMORIES.journal(  # type: ignore[misc]
            changed.format(sql.Literal(new), sql.Literal(SAID_AGAIN), sql.Literal(again)),
            organization_id=stamp.organization_id,
            actor_id=stamp.actor_id,
            now=stamp.now,
        )
        created = dict(references.created)
        for action, ids in (("created", new), ("updated", again)):
            if not ids:
                continue
            many = {} if len(ids) == 1 else {"ids": [str(i) for i in ids[:MAX_IDS_IN_EVENT]]}
            record_event(
                organization=self.organization,
                actor=self.actor,
                action=action,
                resource_type="memory",
                resource_id=ids[0] if len(ids) == 1 else None,
                changes={"rows": {"memory": len(ids), **created}, **many},
            )
            created = {}
