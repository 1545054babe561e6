"""Searches memories: encodes the queries, ranks in PostgreSQL, fetches the hits.

Called outside `tenant()`, so that no database connection is held during encoding.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from uuid import UUID

from django.db import connection

from accounts.errors import Invalid
from accounts.models import Organization
from accounts.organization_settings import language_of
from accounts.tenancy import tenant
from memories.embeddings import EncoderError
from memories.models import Memory
from memories.search.filters import MemoryFilter
from memories.search.ranking import QueryVector, Ranked, Weights, rank
from memories.services.embedding import embed_queries
from memories.services.hits import count_hits

logger = logging.getLogger("agentmem.memories")
Mode = Literal["hybrid", "semantic", "keyword"]
MAX_LIMIT = 200
MAX_QUERY_LENGTH = 8000  # characters, the most that an encoder reads
# Notices.
_CUT = "The query has {:,} characters: its first {:,} were searched for."
_ENCODER_DOWN = "Searched by keyword only: the encoder cannot be used; the server's log says why."
_UNREADABLE_QUERY = "The encoder knows nearly no word of the query: "
_KEYWORD_INSTEAD = f"{_UNREADABLE_QUERY}searched by keyword only."
_NO_VECTOR = f"{_UNREADABLE_QUERY}it cannot be searched by meaning. Search by keyword."
_UNREADABLE_MEMORIES = (
    "Some of these memories are found by keyword only: the encoder cannot read them."
)
_UNREADABLE_CHECKED = 1000  # unreadable memories, at most, that are checked for a notice
# One round trip for both.
_BEGIN = """
SELECT set_config('statement_timeout', '5s', true), EXISTS (
    SELECT FROM memories_memory
    WHERE organization_id = %s AND embedding_state = 'unreadable' AND NOT is_deleted)
"""


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """One query. A given `vector` is used instead of encoding the query."""

    query: str = ""
    mode: Mode = "hybrid"
    memory_filter: MemoryFilter = field(default_factory=MemoryFilter)
    limit: int = 10
    weights: Weights = field(default_factory=Weights)
    vector: QueryVector | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    memory: Memory
    ranked: Ranked


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Hits, best first. `mode` is the mode that was used: a hybrid search falls back to keywords
    when the encoder cannot be used, or cannot read the query. `notice` says so, and also when the
    query was cut, or when searched memories have no vector because the encoder cannot read them."""

    hits: list[Hit]
    mode: Mode
    took_ms: float
    notice: str = ""


def search_memories(
    *,
    organization: Organization,
    query: str,
    agent_id: UUID | None = None,
    user_id: UUID | None = None,
    session_id: str | None = None,
    limit: int = 10,
    mode: Mode = "hybrid",
    **conditions: Any,
) -> SearchResult:
    """`search` for one query; `conditions` are the other fields of MemoryFilter."""
    memory_filter = MemoryFilter(
        agent_id=agent_id,
        user_id=user_id,
        session_id=session_id,
        **conditions,
    )
    request = SearchRequest(query=query, mode=mode, memory_filter=memory_filter, limit=limit)
    return search([request], organization=organization)[0]


def search(requests: Sequence[SearchRequest], *, organization: Organization) -> list[SearchResult]:
    """The result of each request. Queries are encoded together, rows fetched together.

    Hits are counted (access_count, last_accessed) a moment later, outside of the request.
    Raises: Invalid, EncoderError (for a semantic search).
    """
    started = time.monotonic()
    queries = _with_vectors([_cut(request) for request in requests], organization)
    vectors = [[query.vector] if query.vector else [] for query in queries]
    ranked, rows, unreadable = _find(queries, vectors, organization)
    elsewhere = next(
        (names for hits in ranked for r in hits if (names := r.encoders_elsewhere)), []
    )
    # The first encoder that this server has: callers may store vectors under any name.
    usable = (v for name in elsewhere if (v := _vectors_by(name, queries, organization)))
    if others := next(usable, None):
        # The organization is being re-embedded: each row is compared by its own encoder.
        both = [[*own, *other] for own, other in zip(vectors, others, strict=True)]
        ranked, rows, unreadable = _find(queries, both, organization)
    count_hits(organization.pk, list(rows))
    took_ms = round((time.monotonic() - started) * 1000, 2)
    return [
        SearchResult(
            [Hit(rows[r.id], r) for r in hits if r.id in rows],
            query.request.mode,
            took_ms,
            " ".join(
                filter(
                    None,
                    [
                        _cut_notice(request),
                        query.notice,
                        _UNREADABLE_MEMORIES if has_unreadable else "",
                    ],
                )
            ),
        )
        for request, query, hits, has_unreadable in zip(
            requests, queries, ranked, unreadable, strict=True
        )
    ]


def _cut_notice(request: SearchRequest) -> str:
    length = len(request.query)
    return _CUT.format(length, MAX_QUERY_LENGTH) if length > MAX_QUERY_LENGTH else ""


@dataclass(frozen=True, slots=True)
class _Query:
    """A request as it is executed: with its vector, or by keyword instead."""

    request: SearchRequest
    notice: str = ""

    @property
    def vector(self) -> QueryVector | None:
        return self.request.vector

    @property
    def finds_nothing(self) -> bool:
        """A semantic search for a query that the encoder cannot read."""
        return self.request.mode == "semantic" and self.vector is None


def _with_vectors(requests: Sequence[SearchRequest], organization: Organization) -> list[_Query]:
    for request in requests:
        if not request.query.strip() and (request.vector is None or request.mode == "keyword"):
            raise Invalid("A search needs a query, or the vector of one.", field="query")
    to_encode = [r.query for r in requests if r.mode != "keyword" and r.vector is None]
    notice = ""
    encoded: Iterator[QueryVector | None] = iter([])
    try:
        encoded = iter(embed_queries(to_encode, organization=organization))
    except EncoderError as error:
        if any(r.mode == "semantic" and r.vector is None for r in requests):
            raise
        logger.warning("Searching by keyword only: %s", error)
        notice = _ENCODER_DOWN
    return [_with_vector(request, encoded, notice) for request in requests]


def _cut(request: SearchRequest) -> SearchRequest:
    """Keeps the beginning of a long query, as an encoder does."""
    return replace(request, query=request.query[:MAX_QUERY_LENGTH])


def _with_vector(
    request: SearchRequest, encoded: Iterator[QueryVector | None], notice: str
) -> _Query:
    if request.mode == "keyword":
        return _Query(replace(request, vector=None), notice)
    if request.vector is not None:
        return _Query(request, notice)
    if vector := next(encoded, None):
        return _Query(replace(request, vector=vector))
    if request.mode == "semantic":
        return _Query(request, _NO_VECTOR)
    return _Query(replace(request, mode="keyword"), notice or _KEYWORD_INSTEAD)


def _vectors_by(
    encoder: str, queries: Sequence[_Query], organization: Organization
) -> list[list[QueryVector]]:
    """Another encoder's vectors of the queries; empty if it cannot be used here."""
    texts = [query.request.query if query.vector else "" for query in queries]
    to_encode = [text for text in texts if text]
    try:
        encoded = iter(embed_queries(to_encode, organization=organization, encoder=encoder))
    except EncoderError:
        return []
    vectors = (next(encoded) if text else None for text in texts)
    return [[vector] if vector else [] for vector in vectors]


def _find(
    queries: Sequence[_Query],
    vectors: Sequence[Sequence[QueryVector]],
    organization: Organization,
) -> tuple[list[list[Ranked]], dict[UUID, Memory], list[bool]]:
    """The ranking of each query, the rows of all of them, and for each query whether its filter
    matches unreadable memories. One ranking statement per query, one statement for the rows."""
    language = language_of(organization.settings)
    with tenant(organization):
        with connection.cursor() as cursor:
            cursor.execute(_BEGIN, [organization.pk])
            _, has_unreadable = cursor.fetchone()
        ranked = [
            []
            if query.finds_nothing
            else rank(
                organization=organization,
                query="" if query.request.mode == "semantic" else query.request.query,
                language=language,
                memory_filter=query.request.memory_filter,
                vectors=own,
                weights=query.request.weights,
                limit=query.request.limit,
            )
            for query, own in zip(queries, vectors, strict=True)
        ]
        rows = Memory.objects.for_organization(organization).in_bulk(
            {r.id for hits in ranked for r in hits}
        )
        unreadable = [
            has_unreadable and bool(query.vector) and _has_unreadable(query.request, organization)
            for query in queries
        ]
    return ranked, rows, unreadable


def _has_unreadable(request: SearchRequest, organization: Organization) -> bool:
    """Checks the first _UNREADABLE_CHECKED that match the indexed part of the filter."""
    unreadable = Memory.objects.for_organization(organization).live().unexpired()
    unreadable = unreadable.filter(embedding_state=Memory.EmbeddingState.UNREADABLE)
    memory_filter = request.memory_filter
    few = memory_filter.indexed_part().apply_to(unreadable).values("pk")[:_UNREADABLE_CHECKED]
    own = Memory.objects.for_organization(organization).filter(pk__in=few)
    return memory_filter.apply_to(own).exists()
