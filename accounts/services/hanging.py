"""Rows, and what hangs on them, by their ids: in chunks, however many they are.

The planner's figures lag behind: of what was deleted this minute, or of an organization that was
loaded this minute, it expects one row, and picks a join that is right for one and takes hours for
ten thousand. So there is none to pick: each statement asks one table, for the ids that the one
before it found. Parents lead to their rows, `deleted_at` never does.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, compress
from typing import Any, NamedTuple
from uuid import UUID

from django.core.exceptions import EmptyResultSet
from django.db import OperationalError, connection, models
from psycopg import errors as postgres

from accounts.errors import Unavailable
from accounts.models import Organization
from accounts.tenancy import LoadedModel
from agentmem_site.db.fields import TenantForeignKey
from agentmem_site.db.limits import SAVEPOINTS, change_timeout_s

logger = logging.getLogger("agentmem.changes")

Rows = Any  # an AuditedQuerySet of any model
Model = type[models.Model]
Counts = dict[str, int]  # rows by model, e.g. {"session": 1, "run": 4}
# Which of the rows that hang on a chunk: narrowed, locked; None: they need not be looked at.
Pick = Callable[[Rows, "Chunk"], Rows | None]

CHUNK_ROWS = 10_000  # a statement names as many: 400 KB of ids
TELL_EVERY_S = 10.0


class Found(NamedTuple):
    """Rows by column: ids, since when they lie in the trash, and their parents, a column for each
    of `parents_of`. (An object for each row costs more than the database does.)"""

    ids: Sequence[UUID] = ()
    moments: Sequence[Any] = ()
    parents: Sequence[Sequence[UUID | None]] = ()

    def part(self, start: int, end: int) -> "Found":
        columns = [column[start:end] for column in self.parents]
        return Found(self.ids[start:end], self.moments[start:end], columns)


class Chunk(NamedTuple):
    """Some rows of one model, and the reference by which they were reached; None: by none."""

    model: Any
    found: Found
    way: TenantForeignKey | None = None

    @property
    def goes(self) -> bool:
        """False of rows that stay, and only refer to what goes."""
        return self.way is None or goes_along(self.way)

    def rows(self, organization: Organization) -> Rows:
        return self.model.objects.for_organization(organization).filter(pk__among=self.found.ids)


class Progress:
    """How far a change is, told in the log while it takes long; it ends where a request has to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows = 0
        self._since = self._told = time.monotonic()
        self._timeout_s = change_timeout_s()

    def add(self, number: int) -> None:
        self.rows += number
        if time.monotonic() - self._told >= TELL_EVERY_S:
            self._told = time.monotonic()
            self._tell("goes on")

    def end(self) -> None:
        if self._told != self._since:
            self._tell("is done")

    def in_time(
        self, execute: Callable[..., Any], statement: Any, params: Any, many: bool, context: Any
    ) -> Any:
        """No statement begins after the time that a request has. Raises: Unavailable."""
        is_late = self._timeout_s and time.monotonic() - self._since > self._timeout_s
        if is_late and not str(statement).startswith(SAVEPOINTS):
            raise self.too_long()
        return execute(statement, params, many, context)

    def too_long(self) -> Unavailable:
        return Unavailable(
            f"This takes longer than a request may, and nothing of it was done: {self.rows:,} rows "
            "were not all. Take less at once, or have the server's limits raised."
        )

    def _tell(self, state: str) -> None:
        seconds = time.monotonic() - self._since
        logger.warning("%s %s: %s rows in %.0f s", self.name, state, f"{self.rows:,}", seconds)


@contextmanager
def progress(name: str) -> Iterator[Progress]:
    """Around a change of many statements, in its transaction; `name` says it in the log.

    Raises: Unavailable (the change, or one statement, takes longer than a request's may)."""
    going = Progress(name)
    try:
        with connection.execute_wrapper(going.in_time):
            yield going
    except OperationalError as error:
        if isinstance(error.__cause__, postgres.QueryCanceled):
            raise going.too_long() from error
        raise
    going.end()


def parents_of(model: Model) -> list[TenantForeignKey]:
    """The references that a row goes along with: to the trash, back, and for good."""
    return [
        field
        for field in model._meta.fields
        if isinstance(field, TenantForeignKey) and field.remote_field.on_delete is models.CASCADE
    ]


def children_of(model: Model) -> list[TenantForeignKey]:
    """The references to rows of this model, whatever becomes of them."""
    related = [relation.field for relation in model._meta.related_objects]
    return [field for field in related if isinstance(field, TenantForeignKey)]


def goes_along(reference: TenantForeignKey) -> bool:
    return reference.remote_field.on_delete is models.CASCADE


def find(rows: Rows) -> Iterator[Found]:
    """These rows, up to CHUNK_ROWS at a time; the result as a whole stays outside of Python."""
    columns = [field.attname for field in parents_of(rows.model)]
    try:
        wanted = rows.values_list("pk", "deleted_at", *columns).query
        statement, parameters = wanted.sql_with_params()
    except EmptyResultSet:  # of `pk__in=[]`
        return
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        while some := cursor.fetchmany(CHUNK_ROWS):
            ids, moments, *parents = zip(*some, strict=True)
            yield Found(ids, moments, parents)


def find_all(rows: Rows) -> Found:
    parts = list(find(rows))
    if len(parts) < 2:
        return parts[0] if parts else Found()
    columns = [
        [*chain.from_iterable(some)] for some in zip(*(p.parents for p in parts), strict=True)
    ]
    ids, moments = (list(chain.from_iterable(p[place] for p in parts)) for place in (0, 1))
    return Found(ids, moments, columns)


def walk(
    model: Model,
    roots: Found,
    organization: Organization,
    pick: Pick,
    *,
    is_together: bool = False,
    for_good: bool = False,
) -> Iterator[Chunk]:
    """The roots and, level by level, those that go along with them, deepest first.

    `is_together`: only what went to the trash at its root's moment. `for_good` takes along what has
    no trash of its own, and comes by rows that stay, too (`Chunk.goes`).
    """
    for start in range(0, len(roots.ids), CHUNK_ROWS):
        chunk = Chunk(model, roots.part(start, start + CHUNK_ROWS))
        yield from _descend(chunk, organization, pick, is_together, for_good)


def _descend(
    chunk: Chunk, organization: Organization, pick: Pick, is_together: bool, for_good: bool
) -> Iterator[Chunk]:
    for reference in children_of(chunk.model):
        child: Any = reference.model
        is_along = goes_along(reference)
        if not (for_good or (is_along and child.has_trash)):
            continue
        rows = child.objects.for_organization(organization).order_by()
        picked = pick(rows.filter(**{f"{reference.name}__among": chunk.found.ids}), chunk)
        if picked is None:
            continue
        for found in find(picked):
            some = _together(found, reference, chunk) if is_together else found
            below = Chunk(child, some, reference)
            if is_along:
                yield from _descend(below, organization, pick, is_together, for_good)
            else:
                yield below
    yield chunk


def _together(found: Found, way: TenantForeignKey, chunk: Chunk) -> Found:
    went: dict[Any, Any] = dict(zip(chunk.found.ids, chunk.found.moments, strict=True))
    parents = found.parents[parents_of(way.model).index(way)]
    is_one = [moment == went[parent] for moment, parent in zip(found.moments, parents, strict=True)]
    columns = [list(compress(column, is_one)) for column in found.parents]
    return Found(list(compress(found.ids, is_one)), list(compress(found.moments, is_one)), columns)


class Reach:
    """How many rows of which model there are in chunks; `at_most` + 1 stands for more. A row that
    is reached on two ways counts once."""

    def __init__(self, pick: Pick, *, for_good: bool, at_most: int | None = None) -> None:
        self._pick, self._for_good = pick, for_good
        self._end = None if at_most is None else at_most + 1
        self._found: dict[Model, set[int]] = {}  # ids: of plain numbers there may be many

    def pick(self, rows: Rows, chunk: Chunk) -> Rows | None:
        """For `walk`: what is picked, as far as it counts."""
        below = _below(rows.model, self._for_good)
        if all(map(self._is_full, {rows.model, *below})):
            return None
        picked = self._pick(rows, chunk)
        return picked if below or picked is None else picked[: self._end]

    def count(self, chunks: Iterable[Chunk]) -> Counts:
        for chunk in chunks:
            if chunk.goes and not self._is_full(chunk.model):
                self._found.setdefault(chunk.model, set()).update(
                    row_id.int for row_id in chunk.found.ids
                )
        return {
            str(model._meta.model_name): len(ids) if self._end is None else min(len(ids), self._end)
            for model, ids in self._found.items()
            if ids
        }

    def _is_full(self, model: Model) -> bool:
        return self._end is not None and len(self._found.get(model, ())) >= self._end


def _below(model: Any, for_good: bool) -> set[Model]:
    """The models of what goes along with a row of this one."""
    references: list[Any] = [field for field in children_of(model) if goes_along(field)]
    along = {field.model for field in references if for_good or field.model.has_trash}
    return along.union(*(_below(child, for_good) for child in along))


def add(counts: Counts, model: Model, number: int, going: Progress) -> None:
    if number:
        name = str(model._meta.model_name)
        counts[name] = counts.get(name, 0) + number
    going.add(number)


def remove(
    chunks: Iterable[Chunk], organization: Organization, counts: Counts, going: Progress
) -> None:
    """Removes the rows of a walk for good, and empties the references to them that stay."""
    for chunk in chunks:
        rows = chunk.rows(organization)
        if chunk.goes:
            # Not .delete(): Django would collect the rows in Python and go by id alone.
            add(counts, chunk.model, rows._raw_delete(rows.db), going)
        elif chunk.way is not None:
            # (What a file said of it is no longer so.)
            said = {"line_hash": None} if issubclass(chunk.model, LoadedModel) else {}
            rows.update(**{chunk.way.name: None, **said})


def everything(rows: Rows, chunk: Chunk) -> Rows:
    """A `Pick`: whatever hangs on it."""
    return rows
