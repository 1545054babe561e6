"""Rows and their dependent rows, read by id in chunks, however many there are.

The planner's statistics lag behind. For rows that were deleted or loaded a minute ago it expects
one row, and picks a join that is right for one row and takes hours for ten thousand. So there is no
join to pick: each statement reads one table, by the ids that the previous one returned. The way
down is by the parents' ids, never by `deleted_at`.
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
# Filters, and locks, the dependent rows of a chunk; None: skip them.
Pick = Callable[[Rows, "Chunk"], Rows | None]

CHUNK_ROWS = 10_000  # ids in one statement: 400 KB
LOG_EVERY_S = 10.0


class RowKeys(NamedTuple):
    """Columns of some rows: id, `deleted_at`, and one column per reference of `parents_of`. (An
    object for each row costs more than the database does.)"""

    ids: Sequence[UUID] = ()
    deleted_at: Sequence[Any] = ()
    parents: Sequence[Sequence[UUID | None]] = ()

    def part(self, start: int, end: int) -> "RowKeys":
        columns = [column[start:end] for column in self.parents]
        return RowKeys(self.ids[start:end], self.deleted_at[start:end], columns)


class Chunk(NamedTuple):
    """Some rows of one model, and the reference that led to them (None for the roots)."""

    model: Any
    keys: RowKeys
    reference: TenantForeignKey | None = None

    @property
    def is_dependent(self) -> bool:
        """False for rows that stay, and only refer to rows that are removed."""
        return self.reference is None or is_cascade(self.reference)

    def rows(self, organization: Organization) -> Rows:
        return self.model.objects.for_organization(organization).filter(pk__among=self.keys.ids)


class Progress:
    """Logs the progress of a long change, and stops it at the time limit of a request."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows = 0
        self._started = self._logged = time.monotonic()
        self._timeout_s = change_timeout_s()

    def add(self, number: int) -> None:
        self.rows += number
        if time.monotonic() - self._logged >= LOG_EVERY_S:
            self._logged = time.monotonic()
            self._log("goes on")

    def end(self) -> None:
        if self._logged != self._started:
            self._log("is done")

    def check_time(
        self, execute: Callable[..., Any], statement: Any, params: Any, many: bool, context: Any
    ) -> Any:
        """Starts no statement after the time limit. Raises: Unavailable."""
        is_late = self._timeout_s and time.monotonic() - self._started > self._timeout_s
        if is_late and not str(statement).startswith(SAVEPOINTS):
            raise self.timeout_error()
        return execute(statement, params, many, context)

    def timeout_error(self) -> Unavailable:
        return Unavailable(
            f"This takes longer than a request may. It was stopped after {self.rows:,} rows, and "
            "nothing was changed. Change fewer rows at once, or raise the server's limits."
        )

    def _log(self, state: str) -> None:
        seconds = time.monotonic() - self._started
        logger.warning("%s %s: %s rows in %.0f s", self.name, state, f"{self.rows:,}", seconds)


@contextmanager
def track_progress(name: str) -> Iterator[Progress]:
    """Surrounds a change of many statements, in its transaction; `name` identifies it in the log.

    Raises: Unavailable (the change, or one statement, takes longer than a request may)."""
    progress = Progress(name)
    try:
        with connection.execute_wrapper(progress.check_time):
            yield progress
    except OperationalError as error:
        if isinstance(error.__cause__, postgres.QueryCanceled):
            raise progress.timeout_error() from error
        raise
    progress.end()


def parents_of(model: Model) -> list[TenantForeignKey]:
    """The references of this model that cascade: a row is deleted, restored and purged with its
    parent."""
    return [
        field
        for field in model._meta.fields
        if isinstance(field, TenantForeignKey) and is_cascade(field)
    ]


def children_of(model: Model) -> list[TenantForeignKey]:
    """All references to this model, cascading or not."""
    related = [relation.field for relation in model._meta.related_objects]
    return [field for field in related if isinstance(field, TenantForeignKey)]


def is_cascade(reference: TenantForeignKey) -> bool:
    return reference.remote_field.on_delete is models.CASCADE


def fetch_keys(rows: Rows) -> Iterator[RowKeys]:
    """The keys of these rows, up to CHUNK_ROWS at a time, without a Python object per row."""
    columns = [field.attname for field in parents_of(rows.model)]
    try:
        query = rows.values_list("pk", "deleted_at", *columns).query
        statement, parameters = query.sql_with_params()
    except EmptyResultSet:  # of `pk__in=[]`
        return
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        while some := cursor.fetchmany(CHUNK_ROWS):
            ids, deleted_at, *parents = zip(*some, strict=True)
            yield RowKeys(ids, deleted_at, parents)


def fetch_all_keys(rows: Rows) -> RowKeys:
    parts = list(fetch_keys(rows))
    if len(parts) < 2:
        return parts[0] if parts else RowKeys()
    columns = [
        [*chain.from_iterable(some)] for some in zip(*(p.parents for p in parts), strict=True)
    ]
    ids, deleted_at = (list(chain.from_iterable(p[place] for p in parts)) for place in (0, 1))
    return RowKeys(ids, deleted_at, columns)


def walk(
    model: Model,
    roots: RowKeys,
    organization: Organization,
    pick: Pick,
    *,
    is_same_deletion: bool = False,
    for_good: bool = False,
) -> Iterator[Chunk]:
    """The roots and, level by level, their dependent rows, deepest first.

    `is_same_deletion`: only rows that were moved to the trash at the same moment as their root.
    `for_good`: also rows whose model has no trash, and rows that stay (not `Chunk.is_dependent`).
    """
    for start in range(0, len(roots.ids), CHUNK_ROWS):
        chunk = Chunk(model, roots.part(start, start + CHUNK_ROWS))
        yield from _descend(chunk, organization, pick, is_same_deletion, for_good)


def _descend(
    chunk: Chunk, organization: Organization, pick: Pick, is_same_deletion: bool, for_good: bool
) -> Iterator[Chunk]:
    for reference in children_of(chunk.model):
        child: Any = reference.model
        is_dependent = is_cascade(reference)
        if not (for_good or (is_dependent and child.has_trash)):
            continue
        rows = child.objects.for_organization(organization).order_by()
        picked = pick(rows.filter(**{f"{reference.name}__among": chunk.keys.ids}), chunk)
        if picked is None:
            continue
        for keys in fetch_keys(picked):
            some = _deleted_with(keys, reference, chunk) if is_same_deletion else keys
            below = Chunk(child, some, reference)
            if is_dependent:
                yield from _descend(below, organization, pick, is_same_deletion, for_good)
            else:
                yield below
    yield chunk


def _deleted_with(keys: RowKeys, reference: TenantForeignKey, chunk: Chunk) -> RowKeys:
    """Those rows that have the `deleted_at` of their parent in the chunk."""
    moments: dict[Any, Any] = dict(zip(chunk.keys.ids, chunk.keys.deleted_at, strict=True))
    parents = keys.parents[parents_of(reference.model).index(reference)]
    is_same = [at == moments[parent] for at, parent in zip(keys.deleted_at, parents, strict=True)]
    columns = [list(compress(column, is_same)) for column in keys.parents]
    return RowKeys(
        list(compress(keys.ids, is_same)), list(compress(keys.deleted_at, is_same)), columns
    )


class RowCounter:
    """Counts the rows of chunks by model, up to `at_most` + 1, which stands for more. A row that is
    reached by two references counts once."""

    def __init__(self, pick: Pick, *, for_good: bool, at_most: int | None = None) -> None:
        self._pick, self._for_good = pick, for_good
        self._end = None if at_most is None else at_most + 1
        self._ids: dict[Model, set[int]] = {}  # as integers: there may be very many

    def pick(self, rows: Rows, chunk: Chunk) -> Rows | None:
        """A `Pick` for `walk` that reads no more rows than are counted."""
        below = _models_below(rows.model, self._for_good)
        if all(map(self._is_full, {rows.model, *below})):
            return None
        picked = self._pick(rows, chunk)
        return picked if below or picked is None else picked[: self._end]

    def count(self, chunks: Iterable[Chunk]) -> Counts:
        for chunk in chunks:
            if chunk.is_dependent and not self._is_full(chunk.model):
                self._ids.setdefault(chunk.model, set()).update(
                    row_id.int for row_id in chunk.keys.ids
                )
        return {
            str(model._meta.model_name): len(ids) if self._end is None else min(len(ids), self._end)
            for model, ids in self._ids.items()
            if ids
        }

    def _is_full(self, model: Model) -> bool:
        return self._end is not None and len(self._ids.get(model, ())) >= self._end


def _models_below(model: Any, for_good: bool) -> set[Model]:
    """The models of a row's dependent rows."""
    references: list[Any] = [field for field in children_of(model) if is_cascade(field)]
    children = {field.model for field in references if for_good or field.model.has_trash}
    return children.union(*(_models_below(child, for_good) for child in children))


def add_count(counts: Counts, model: Model, number: int, progress: Progress) -> None:
    if number:
        name = str(model._meta.model_name)
        counts[name] = counts.get(name, 0) + number
    progress.add(number)


def remove(
    chunks: Iterable[Chunk], organization: Organization, counts: Counts, progress: Progress
) -> None:
    """Deletes the dependent rows of a walk from their tables, and sets the references of rows that
    stay to NULL."""
    for chunk in chunks:
        rows = chunk.rows(organization)
        if chunk.is_dependent:
            # Not .delete(): Django would collect the rows in Python and delete by id alone.
            add_count(counts, chunk.model, rows._raw_delete(rows.db), progress)
        elif chunk.reference is not None:
            # (The row no longer equals the line that it was loaded from.)
            unloaded = {"line_hash": None} if issubclass(chunk.model, LoadedModel) else {}
            rows.update(**{chunk.reference.name: None, **unloaded})


def pick_all(rows: Rows, chunk: Chunk) -> Rows:
    """A `Pick` of all dependent rows."""
    return rows
