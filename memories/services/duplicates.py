"""Memories that say nearly the same: pairs whose vectors are close, found page by page.

A page looks at some memories in the order in which they were made, and compares each with its own
slice: the memories of its agent and user. A small slice is compared whole, by one product of
matrices; of a large one, HNSW gives the nearest, and what it does not hold yet is compared whole.
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

ROWS_PER_PAGE = 200  # memories that are looked at
WHOLE_ROWS = 10_000  # of a slice that is compared whole: a quarter of a second for such a page
_MAX_VECTORS = 2 * WHOLE_ROWS  # read for one page: it ends before the slice that would be too much

_LOOKED_AT = sql.SQL("""
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
class Place:
    """Where a page starts: after this memory or, if some of its pairs were told, after those."""

    created_at: datetime
    id: UUID
    told: int = 0


@dataclass(frozen=True, slots=True)
class Duplicates:
    """`next` is None when all memories have been looked at; a page before may find no pair."""

    pairs: list[Pair]
    next: Place | None
    looked_at: int
    notice: str = ""


def near_duplicates(
    *,
    organization: Organization,
    threshold: float = 0.95,
    user_id: UUID | None = None,
    agent_id: UUID | None = None,
    across: bool = False,
    start: Place | None = None,
    limit: int = 50,
) -> Duplicates:
    """A page of at most `limit` pairs of live memories whose vectors, of one encoder, have at least
    this cosine: both of one agent and one user, unless `across`. In a transaction.

    Over all pages a pair comes once. A page costs at most so many memories looked at and so many
    vectors read. HNSW is approximate, and of one memory the nearest PER_MEMORY pairs are told.
    """
    whose = {"user_id": user_id, "agent_id": agent_id}
    asked: dict[str, Any] = {name: row_id for name, row_id in whose.items() if row_id}
    page = _Page(organization.pk, asked, threshold, across)
    rows = page.rows_after(start)
    looked_at = page.look_at(rows)
    last = rows[looked_at - 1] if rows else None
    has_more = looked_at < len(rows) or len(rows) == ROWS_PER_PAGE
    place = Place(last.created_at, last.id) if last and has_more else None
    found = list[Alike]()
    for before, row in zip([None, *rows], rows[:looked_at], strict=False):
        told = start.told if start and row.id == start.id else 0
        own = page.pairs_of(row.id)[told:]
        room = limit - len(found)
        found += own[:room]
        if len(own) > room:
            stopped_at, told = (row, told + room) if room or not before else (before, 0)
            place = Place(stopped_at.created_at, stopped_at.id, told)
            break
    memories = Memory.objects.for_organization(organization).in_bulk(
        {pk for pair in found for pk in pair[:2]}
    )
    pairs = [
        Pair(memories[first], memories[second], similarity)
        for first, second, similarity in found
        if first in memories and second in memories  # not purged meanwhile
    ]
    return Duplicates(pairs, place, looked_at, page.notice)


class _Row(NamedTuple):
    id: UUID
    created_at: datetime
    user_id: UUID | None
    agent_id: UUID | None
    embedding_model: str


class _Page:
    """What one page looks at and finds."""

    def __init__(self, organization_id: UUID, asked: Slice, threshold: float, across: bool) -> None:
        self.organization_id = organization_id
        self.asked = asked
        self.threshold = threshold
        self.compared = SLICE_COLUMNS[2:] if across else SLICE_COLUMNS
        self.notice = ""
        self._found: dict[UUID, list[Alike]] = defaultdict(list)

    def pairs_of(self, pk: UUID) -> list[Alike]:
        return sorted(self._found[pk], key=lambda p: (-p.similarity, p.second))[:PER_MEMORY]

    def rows_after(self, start: Place | None) -> list[_Row]:
        where, parameters = condition(self.organization_id, self.asked)
        after = sql.SQL(">=" if start and start.told else ">")
        place = (start.created_at, start.id) if start else _FIRST
        with connection.cursor() as cursor:
            cursor.execute(
                _LOOKED_AT.format(slice=where, after=after), [*parameters, *place, ROWS_PER_PAGE]
            )
            return [_Row(*row) for row in cursor.fetchall()]

    def look_at(self, rows: Sequence[_Row]) -> int:
        """Finds the pairs of the first of `rows`, as many as there is room for; how many."""
        if self._count(self.asked) <= WHOLE_ROWS:
            vectors = self._read(self.asked)
            for own, members in self._by_slice(rows).items():
                self._compare(members, _only(vectors, self.compared, own))
            return len(rows)
        slices = list(self._by_slice(rows).items())
        vectors_left = _MAX_VECTORS
        refused = set[UUID]()
        for number, (own, members) in enumerate(slices):
            named = {**self.asked, **dict(zip(self.compared, own, strict=True))}
            size = self._count(named)
            vectors_left -= size
            if vectors_left < 0 and number:
                refused = {pk for _, later in slices[number:] for pk in later}
                break
            if size <= WHOLE_ROWS:
                self._compare(members, self._read(named))
            else:
                self._compare_large(members, named)
        return next((n for n, row in enumerate(rows) if row.id in refused), len(rows))

    def _by_slice(self, rows: Sequence[_Row]) -> Mapping[tuple[Any, ...], list[UUID]]:
        slices: dict[tuple[Any, ...], list[UUID]] = defaultdict(list)
        for row in rows:
            slices[tuple(getattr(row, column) for column in self.compared)].append(row.id)
        return slices

    def _compare(self, members: Sequence[UUID], vectors: Vectors) -> None:
        places = {pk: n for n, pk in enumerate(vectors.ids)}
        looked_at = _at(vectors, [places[pk] for pk in members if pk in places])
        self._note(alike_within(looked_at, vectors, at_least=self.threshold))

    def _compare_large(self, members: Sequence[UUID], own: Slice) -> None:
        """By HNSW, and whole with what it does not hold yet."""
        near = alike_by_index(self.organization_id, own, members, at_least=self.threshold)
        self._note(near)
        waiting = self._read({**own, "is_indexed": False})
        if len(waiting.ids) == WHOLE_ROWS:
            self.notice = (
                "The search index does not hold all of these memories yet: pairs among those that "
                "wait may be missing here. Ask again when the worker has caught up."
            )
        looked_at = self._read({**own, "id": list(members)})
        self._note(alike_within(looked_at, waiting, at_least=self.threshold))

    def _note(self, found: Sequence[Alike]) -> None:
        for pair in found:
            self._found[pair.first].append(pair)

    def _count(self, own: Slice) -> int:
        return count_vectors(self.organization_id, own, at_most=WHOLE_ROWS + 1)

    def _read(self, own: Slice) -> Vectors:
        return read_vectors(self.organization_id, own, limit=WHOLE_ROWS)


def _only(vectors: Vectors, columns: Sequence[str], own: tuple[Any, ...]) -> Vectors:
    kept = [SLICE_COLUMNS.index(column) for column in columns]
    return _at(
        vectors,
        [n for n, s in enumerate(vectors.slices) if tuple(s[k] for k in kept) == own],
    )


def _at(vectors: Vectors, places: Sequence[int]) -> Vectors:
    return Vectors(
        [vectors.ids[n] for n in places],
        [vectors.slices[n] for n in places],
        vectors.matrix[list(places)],
    )
