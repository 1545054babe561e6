"""Finds memories with close vectors, by comparing whole slices or by HNSW."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from django.db import connection
from psycopg import sql

from memories.embeddings import read_halfvecs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Conditions that define a slice: columns, each with a value, a list of values, or None.
Slice = Mapping[str, Any]
SLICE_COLUMNS = ("user_id", "agent_id", "embedding_model")

PER_MEMORY = 20  # pairs per memory, at most: the nearest ones
_DIGITS = 5  # of a cosine, so that equal vectors get 1
_ROUNDING = 1e-6

# As in agentmem_nearest: the planner, misled by the filter, would sort the slice.
INDEX_ONLY = {
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_sort": "off",
    "hnsw.ef_search": "60",
    "hnsw.iterative_scan": "relaxed_order",
}

_COUNT = sql.SQL("SELECT count(*) FROM (SELECT FROM memories_memory WHERE {slice} LIMIT %s) AS s")
_VECTORS = sql.SQL(
    "SELECT id, user_id, agent_id, embedding_model, halfvec_send(embedding) FROM memories_memory "
    "WHERE {slice} LIMIT %s"
)
_NEAREST = sql.SQL("""
SELECT m.id, n.id, 1 - n.distance
FROM memories_memory m CROSS JOIN LATERAL (
    SELECT id, embedding <=> m.embedding AS distance FROM memories_memory
    WHERE {slice} AND is_indexed ORDER BY embedding <=> m.embedding LIMIT %s) n
WHERE m.organization_id = %s AND m.id = ANY (%s) AND n.id > m.id AND n.distance <= %s
""")


class Alike(NamedTuple):
    first: UUID  # the smaller id
    second: UUID
    similarity: float  # cosine


@dataclass(frozen=True, slots=True)
class Vectors:
    """`matrix` (n, VECTOR_DIM) float32 of unit rows; `slices` has the row's SLICE_COLUMNS."""

    ids: list[UUID]
    slices: list[tuple[Any, ...]]
    matrix: "NDArray[np.float32]"


def condition(organization_id: UUID, own: Slice) -> tuple[sql.Composable, list[Any]]:
    """The WHERE condition for the live memories with vectors in a slice, and its parameters."""
    parts: list[sql.Composable] = [
        sql.SQL(
            "organization_id = %s AND embedding_state = 'ready' AND NOT is_deleted "
            "AND (expires_at IS NULL OR expires_at > now())"
        )
    ]
    parameters: list[Any] = [organization_id]
    for column, value in own.items():
        if value is None:  # (IS NOT DISTINCT FROM would use no index)
            parts.append(sql.SQL("{} IS NULL").format(sql.Identifier(column)))
        else:
            equal = "{} = ANY (%s)" if isinstance(value, list) else "{} = %s"
            parts.append(sql.SQL(equal).format(sql.Identifier(column)))
            parameters.append(value)
    return sql.SQL(" AND ").join(parts), parameters


def count_vectors(organization_id: UUID, own: Slice, *, at_most: int) -> int:
    """Counts the vectors of a slice, up to `at_most`."""
    where, parameters = condition(organization_id, own)
    with connection.cursor() as cursor:
        cursor.execute(_COUNT.format(slice=where), [*parameters, at_most])
        return int(cursor.fetchone()[0])


def read_vectors(organization_id: UUID, own: Slice, *, limit: int) -> Vectors:
    """The vectors of a slice; with `{"is_indexed": False}` those that are not in the HNSW index."""
    import numpy as np  # noqa: PLC0415  (a tenth of a second, at the start of every command)

    where, parameters = condition(organization_id, own)
    with connection.cursor() as cursor:
        cursor.execute(_VECTORS.format(slice=where), [*parameters, limit])
        rows = cursor.fetchall()
    matrix = read_halfvecs([row[-1] for row in rows])
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    return Vectors([row[0] for row in rows], [tuple(row[1:-1]) for row in rows], matrix)


def alike_within(checked: Vectors, vectors: Vectors, *, at_least: float) -> list[Alike]:
    """For each of the `checked` memories the nearest PER_MEMORY of `vectors` with larger ids."""
    import numpy as np  # noqa: PLC0415  (see read_vectors)

    ids = np.array([pk.bytes for pk in vectors.ids], "S16")
    pairs = list[Alike]()
    for pk, cosines in zip(checked.ids, checked.matrix @ vectors.matrix.T, strict=True):
        near = np.flatnonzero((cosines >= at_least - _ROUNDING) & (ids > pk.bytes))
        best = near[np.argsort(-cosines[near], kind="stable")[:PER_MEMORY]]
        pairs += [Alike(pk, vectors.ids[n], round(float(cosines[n]), _DIGITS)) for n in best]
    return pairs


def alike_by_index(
    organization_id: UUID, own: Slice, ids: Sequence[UUID], *, at_least: float
) -> list[Alike]:
    """The same for the indexed memories of a large slice: larger ids among the nearest
    PER_MEMORY + 1. One HNSW search for each of `ids`."""
    where, parameters = condition(organization_id, own)
    most = 1 - at_least + _ROUNDING
    with connection.cursor() as cursor, _index_only(cursor):
        cursor.execute(
            _NEAREST.format(slice=where),
            [*parameters, PER_MEMORY + 1, organization_id, list(ids), most],
        )
        return [Alike(a, b, round(cosine, _DIGITS)) for a, b, cosine in cursor.fetchall()]


@contextmanager
def _index_only(cursor: Any) -> Iterator[None]:
    statement = (
        "SELECT set_config(s.name, s.value, true) FROM unnest(%s::text[], %s::text[]) "
        "AS s (name, value)"
    )
    names = list(INDEX_ONLY)
    cursor.execute(statement, [names, list(INDEX_ONLY.values())])
    yield
    cursor.execute(statement, [names, [None] * len(names)])  # the defaults
