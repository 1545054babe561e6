"""Finds near duplicates: pairs of memories whose vectors are close, page by page.

A page checks some memories in the order of their creation and compares each with its slice: the
memories of the same agent and user. A small slice is compared completely, by one matrix product.
In a large one HNSW finds the nearest, and rows that are not indexed yet are compared completely.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connection
from psycopg import sql

from accounts.models import Organization
from memories.models import Memory
from memories.search.likeness import (
    PER_MEMORY,
    SLICE_COLUMNS,
    Alike,
    Slice,
    Vectors,
    alike_by_index,
    alike_within,
    condition,
    count_vectors,
    read_vectors,
)

ROWS_PER_PAGE = 200  # memories that are checked
WHOLE_ROWS = 10_000  # in a slice that is compared completely: a quarter of a second per page
_MAX_VECTORS = 2 * WHOLE_ROWS  # read for one page: it ends before the slice that exceeds this

_CHECKED = sql.SQL("""
SELECT id, created_at, user_id, agent_id, embedding_model FROM memories_memory
WHERE {slice} AND (created_at, id) {after} (%s, %s) ORDER BY created_at, id LIMIT %s
""")
_FIRST = (datetime(1, 1, 1, tzinfo=UTC), UUID(int=0))


@dataclass(frozen=True, slots=True)
class Pair:
    """`first` has the smaller id; `similarity` is the cosine of their vectors."""

    first: Memory
    second: Memory
    similarity: float


@dataclass(frozen=True, slots=True)
class PageStart:
    """A page starts after this memory or, if some of its pairs were returned, after those."""

    created_at: datetime
    id: UUID
    returned: int = 0


@dataclass(frozen=True, slots=True)
class Duplicates:
    """A page. `next` is None when all memories have been checked; a page may have no pair."""

    pairs: list[Pair]
    next: PageStart | None
    looked_at: int
    notice: str = ""


def near_duplicates(
    *,
    organization: Organization,
    threshold: float = 0.95,
    user_id: UUID | None = None,
    agent_id: UUID | None = None,
    across: bool = False,
    start: PageStart | None = None,
    limit: int = 50,
) -> Duplicates:
    """A page of at most `limit` pairs of live memories whose vectors, of one encoder, have at least
    this cosine: both of one agent and one user, unless `across`. In a transaction.

    Over all pages a pair comes once. The memories checked and the vectors read per page are
    limited. HNSW is approximate, and a memory has at most PER_MEMORY pairs, the nearest ones.
    """
    owners = {"user_id": user_id, "agent_id": agent_id}
    conditions: dict[str, Any] = {name: row_id for name, row_id in owners.items() if row_id}
    page = _Page(organization.pk, conditions, threshold, across)
    rows = page.rows_after(start)
    looked_at = page.check(rows)
    last = rows[looked_at - 1] if rows else None
    has_more = looked_at < len(rows) or len(rows) == ROWS_PER_PAGE
    next_start = PageStart(last.created_at, last.id) if last and has_more else None
    similar = list[Alike]()
    for before, row in zip([None, *rows], rows[:looked_at], strict=False):
        returned = start.returned if start and row.id == start.id else 0
        own = page.pairs_of(row.id)[returned:]
        room = limit - len(similar)
        similar += own[:room]
        if len(own) > room:
            stopped_at, returned = (row, returned + room) if room or not before else (before, 0)
            next_start = PageStart(stopped_at.created_at, stopped_at.id, returned)
            break
    memories = Memory.objects.for_organization(organization).in_bulk(
        {pk for pair in similar for pk in pair[:2]}
    )
    pairs = [
        Pair(memories[first], memories[second], similarity)
        for first, second, similarity in similar
        if first in memories and second in memories  # not purged meanwhile
    ]
    return Duplicates(pairs, next_start, looked_at, page.notice)


class _Row(NamedTuple):
    id: UUID
    created_at: datetime
    user_id: UUID | None
    agent_id: UUID | None
    embedding_model: str


class _Page:
    """The memories that one page checks, and the pairs it finds."""

    def __init__(
        self, organization_id: UUID, conditions: Slice, threshold: float, across: bool
    ) -> None:
        self.organization_id = organization_id
        self.conditions = conditions
        self.threshold = threshold
        self.compared = SLICE_COLUMNS[2:] if across else SLICE_COLUMNS
        self.notice = ""
        self._pairs: dict[UUID, list[Alike]] = defaultdict(list)

    def pairs_of(self, pk: UUID) -> list[Alike]:
        return sorted(self._pairs[pk], key=lambda p: (-p.similarity, p.second))[:PER_MEMORY]

    def rows_after(self, start: PageStart | None) -> list[_Row]:
        where, parameters = condition(self.organization_id, self.conditions)
        after = sql.SQL(">=" if start and start.returned else ">")
        key = (start.created_at, start.id) if start else _FIRST
        with connection.cursor() as cursor:
            cursor.execute(
                _CHECKED.format(slice=where, after=after), [*parameters, *key, ROWS_PER_PAGE]
            )
            return [_Row(*row) for row in cursor.fetchall()]

    def check(self, rows: Sequence[_Row]) -> int:
        """Finds the pairs of the first rows, up to _MAX_VECTORS; returns how many rows."""
        if self._count(self.conditions) <= WHOLE_ROWS:
            vectors = self._read(self.conditions)
            for own, members in self._by_slice(rows).items():
                self._compare(members, _only(vectors, self.compared, own))
            return len(rows)
        slices = list(self._by_slice(rows).items())
        vectors_left = _MAX_VECTORS
        skipped = set[UUID]()
        for number, (own, members) in enumerate(slices):
            conditions = {**self.conditions, **dict(zip(self.compared, own, strict=True))}
            size = self._count(conditions)
            vectors_left -= size
            if vectors_left < 0 and number:
                skipped = {pk for _, later in slices[number:] for pk in later}
                break
            if size <= WHOLE_ROWS:
                self._compare(members, self._read(conditions))
            else:
                self._compare_large(members, conditions)
        return next((n for n, row in enumerate(rows) if row.id in skipped), len(rows))

    def _by_slice(self, rows: Sequence[_Row]) -> Mapping[tuple[Any, ...], list[UUID]]:
        slices: dict[tuple[Any, ...], list[UUID]] = defaultdict(list)
        for row in rows:
            slices[tuple(getattr(row, column) for column in self.compared)].append(row.id)
        return slices

    def _compare(self, members: Sequence[UUID], vectors: Vectors) -> None:
        positions = {pk: n for n, pk in enumerate(vectors.ids)}
        checked = _at(vectors, [positions[pk] for pk in members if pk in positions])
        self._add(alike_within(checked, vectors, at_least=self.threshold))

    def _compare_large(self, members: Sequence[UUID], own: Slice) -> None:
        """By HNSW, and completely with the rows that are not indexed yet."""
        self._add(alike_by_index(self.organization_id, own, members, at_least=self.threshold))
        unindexed = self._read({**own, "is_indexed": False})
        if len(unindexed.ids) == WHOLE_ROWS:
            self.notice = (
                "The search index does not hold all of these memories yet: pairs of those that are "
                "missing in it may be missing here. Ask again when the worker has caught up."
            )
        checked = self._read({**own, "id": list(members)})
        self._add(alike_within(checked, unindexed, at_least=self.threshold))

    def _add(self, pairs: Sequence[Alike]) -> None:
        for pair in pairs:
            self._pairs[pair.first].append(pair)

    def _count(self, own: Slice) -> int:
        return count_vectors(self.organization_id, own, at_most=WHOLE_ROWS + 1)

    def _read(self, own: Slice) -> Vectors:
        return read_vectors(self.organization_id, own, limit=WHOLE_ROWS)


def _only(vectors: Vectors, columns: Sequence[str], own: tuple[Any, ...]) -> Vectors:
    positions = [SLICE_COLUMNS.index(column) for column in columns]
    return _at(
        vectors,
        [n for n, s in enumerate(vectors.slices) if tuple(s[p] for p in positions) == own],
    )


def _at(vectors: Vectors, positions: Sequence[int]) -> Vectors:
    return Vectors(
        [vectors.ids[n] for n in positions],
        [vectors.slices[n] for n in positions],
        vectors.matrix[list(positions)],
    )
