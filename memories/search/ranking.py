"""Calls the ranking function of the database."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db import connection

from accounts.models import Organization
from memories.search.filters import MemoryFilter

# Up to so many matching rows are scanned completely, more are searched by the indexes: above it the
# scan costs more than HNSW and the rarest terms together (docs/performance.md).
EXACT_ROWS = 5_000

_RANK = """
SELECT * FROM agentmem_search(
    %s, %s, %s,
    ROW(%s::uuid, %s::uuid, %s::text, %s::text[], %s::text[], %s::text[], %s::timestamptz,
        %s::timestamptz, %s::real, %s::real, %s::jsonpath, %s::timestamptz,
        %s::boolean)::agentmem_filter,
    %s, %s::halfvec, %s, %s::halfvec, %s::real[], %s::real, %s, %s)
"""


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of the parts of a score. Dense and lexical scores are first divided by the best
    one of the search; recency halves every `half_life_days`."""

    dense: float = 0.5
    lexical: float = 0.5
    recency: float = 0.0
    importance: float = 0.0
    half_life_days: float = 30.0


@dataclass(frozen=True, slots=True)
class QueryVector:
    """`text`: the vector as PostgreSQL reads it; only compared with rows of this `encoder`."""

    encoder: str
    text: str


@dataclass(frozen=True, slots=True)
class Ranked:
    """A ranked memory. `score` is the sum of the weighted parts; `similarity` is the plain cosine,
    None without comparable vectors; `matched` are words of the query."""

    id: UUID
    score: float
    dense: float
    lexical: float
    recency: float
    importance: float
    similarity: float | None
    matched: list[str]
    encoders_elsewhere: list[str] | None  # other encoders whose vectors the organization has


def rank(
    *,
    organization: Organization,
    query: str,
    language: str,
    memory_filter: MemoryFilter,
    vectors: Sequence[QueryVector],
    weights: Weights,
    limit: int,
    exact_rows: int = EXACT_ROWS,
) -> list[Ranked]:
    """The organization's best memories, best first. Within tenant().

    Without `vectors` (at most two, of different encoders) only rows with a word of `query` are
    hits; with vectors, the result has min(limit, rows that match `memory_filter`) hits.
    """
    none = QueryVector("", "")
    first, other = [*vectors, none, none][:2]
    parameters: list[Any] = [
        organization.pk,
        query,
        language,
        *memory_filter.as_parameters(),
        first.encoder or None,
        first.text or None,
        other.encoder or None,
        other.text or None,
        [float(w) for w in (weights.dense, weights.lexical, weights.recency, weights.importance)],
        weights.half_life_days,
        limit,
        exact_rows,
    ]
    with connection.cursor() as cursor:
        cursor.execute(_RANK, parameters)
        return [Ranked(*row) for row in cursor.fetchall()]
