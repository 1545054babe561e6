"""Finding memories: encode the questions, rank in PostgreSQL, fetch what was found.

Called outside `tenant()`: no database connection is held while an encoder is at work.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from uuid import UUID

from django.db import connection

from accounts.errors import Invalid
from accounts.models import Organization, User
from accounts.organization_settings import language_of
from accounts.tenancy import tenant
from memories.embeddings import EncoderError
from memories.models import Agent, Memory
from memories.search.filters import MemoryFilter
from memories.search.ranking import QueryVector, Ranked, Weights, rank
from memories.services.embedding import embed_queries
from memories.services.found import note_found

logger = logging.getLogger("agentmem.memories")
Mode = Literal["hybrid", "semantic", "keyword"]
MAX_LIMIT = 200
_BY_KEYWORD = "Searched by keyword alone: the encoder cannot be used; the server's log says why."
_SET_TIMEOUT = "SET LOCAL statement_timeout = 5000"  # ms


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """One question. `vector` stands in for its encoding."""

    query: str = ""
    mode: Mode = "hybrid"
    narrowed: MemoryFilter = field(default_factory=MemoryFilter)
    limit: int = 10
    weights: Weights = field(default_factory=Weights)
    vector: QueryVector | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    memory: Memory
    ranked: Ranked


@dataclass(frozen=True, slots=True)
class Found:
    """Hits, best first. `mode` is the one that was carried out: where the encoder cannot be used,
    a hybrid search goes by keyword alone and `notice` says why."""

    hits: list[Hit]
    mode: Mode
    took_ms: float
    notice: str = ""


def search_memories(
    *,
    organization: Organization,
    query: str,
    agent: Agent | None = None,
    user: User | None = None,
    session_id: str | None = None,
    limit: int = 10,
    mode: Mode = "hybrid",
    **narrowed: Any,
) -> Found:
    """`search` for one question; `narrowed` are the other fields of MemoryFilter."""
    condition = MemoryFilter(
        agent_id=agent.pk if agent else None,
        user_id=user.pk if user else None,
        session_id=session_id,
        **narrowed,
    )
    request = SearchRequest(query=query, mode=mode, narrowed=condition, limit=limit)
    return search([request], organization=organization)[0]


def search(requests: Sequence[SearchRequest], *, organization: Organization) -> list[Found]:
    """What each request finds: the questions are encoded together, the rows fetched together.

    Each hit is counted (access_count, last_accessed) a moment later, off this path.
    Raises: Invalid, EncoderError (for a semantic search).
    """
    started = time.monotonic()
    requests, notice = _with_vectors(requests, organization)
    vectors = [[r.vector] if r.vector else [] for r in requests]
    ranked, rows = _find(requests, vectors, organization)
    elsewhere = next(
        (names for hits in ranked for r in hits if (names := r.encoders_elsewhere)), []
    )
    # The first that can be used here: callers bring vectors of names that nobody knows.
    usable = (found for name in elsewhere if (found := _vectors_of(name, requests, organization)))
    if others := next(usable, None):
        # The organization is being embedded anew: each row is compared by its own encoder.
        both = [[*own, *other] for own, other in zip(vectors, others, strict=True)]
        ranked, rows = _find(requests, both, organization)
    note_found(organization.pk, list(rows))
    took_ms = round((time.monotonic() - started) * 1000, 2)
    return [
        Found([Hit(rows[r.id], r) for r in hits if r.id in rows], request.mode, took_ms, notice)
        for request, hits in zip(requests, ranked, strict=True)
    ]


def _with_vectors(
    requests: Sequence[SearchRequest], organization: Organization
) -> tuple[list[SearchRequest], str]:
    """The requests with their vectors, and what to tell of those that go by keyword instead."""
    for request in requests:
        if not request.query.strip() and (request.vector is None or request.mode == "keyword"):
            raise Invalid("A search needs words, or the vector of what is meant.", field="query")
    unknown = [r.query for r in requests if r.mode != "keyword" and r.vector is None]
    notice = ""
    encoded = iter(list[QueryVector]())
    try:
        encoded = iter(embed_queries(unknown, organization=organization))
    except EncoderError as error:
        if any(r.mode == "semantic" and r.vector is None for r in requests):
            raise
        logger.warning("Searching by keyword alone: %s", error)
        notice = _BY_KEYWORD
    return [_with_vector(request, encoded) for request in requests], notice


def _with_vector(request: SearchRequest, encoded: Iterator[QueryVector]) -> SearchRequest:
    if request.mode == "keyword":
        return replace(request, vector=None)
    if request.vector is not None:
        return request
    vector = next(encoded, None)
    return replace(request, vector=vector, mode=request.mode if vector else "keyword")


def _vectors_of(
    encoder: str, requests: Sequence[SearchRequest], organization: Organization
) -> list[list[QueryVector]]:
    """Another encoder's vectors of the questions; empty where it cannot be used here."""
    asked = [r for r in requests if r.vector and r.query]
    try:
        encoded = iter(
            embed_queries([r.query for r in asked], organization=organization, encoder=encoder)
        )
    except EncoderError:
        return []
    return [[next(encoded)] if r.vector and r.query else [] for r in requests]


def _find(
    requests: Sequence[SearchRequest],
    vectors: Sequence[Sequence[QueryVector]],
    organization: Organization,
) -> tuple[list[list[Ranked]], dict[UUID, Memory]]:
    """One ranking statement for each request, and one that fetches all rows."""
    language = language_of(organization)
    with tenant(organization):
        with connection.cursor() as cursor:
            cursor.execute(_SET_TIMEOUT)
        ranked = [
            rank(
                query="" if request.mode == "semantic" else request.query,
                language=language,
                narrowed=request.narrowed,
                vectors=own,
                weights=request.weights,
                limit=request.limit,
            )
            for request, own in zip(requests, vectors, strict=True)
        ]
        rows = Memory.objects.for_organization(organization).in_bulk(
            {r.id for hits in ranked for r in hits}
        )
    return ranked, rows
