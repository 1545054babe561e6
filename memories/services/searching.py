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
from accounts.models import Organization
from accounts.organization_settings import language_of
from accounts.tenancy import tenant
from memories.embeddings import EncoderError
from memories.models import Memory
from memories.search.filters import MemoryFilter
from memories.search.ranking import QueryVector, Ranked, Weights, rank
from memories.services.embedding import embed_queries
from memories.services.found import note_found

logger = logging.getLogger("agentmem.memories")
Mode = Literal["hybrid", "semantic", "keyword"]
MAX_LIMIT = 200
MAX_QUERY_LENGTH = 8000  # characters, as many as an encoder reads at most
_CUT = "The question has {:,} characters: its first {:,} were searched for."
_BY_KEYWORD = "Searched by keyword alone: the encoder cannot be used; the server's log says why."
_QUESTION = "The encoder knows nearly no word of the question: "
_QUESTION_BY_KEYWORD = f"{_QUESTION}searched by keyword alone."
_QUESTION_WITHOUT = f"{_QUESTION}it has no meaning to search by. Search by keyword."
_UNREADABLE = "Some of these memories are found by their words alone: the encoder cannot read them."
_LOOKED_AT = 1000  # memories that cannot be read, at most, for a notice
# One round trip for both.
_BEGIN = """
SELECT set_config('statement_timeout', '5s', true), EXISTS (
    SELECT FROM memories_memory
    WHERE organization_id = %s AND embedding_state = 'unreadable' AND NOT is_deleted)
"""


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
    or cannot read the question, a hybrid search goes by keyword alone and `notice` says why. It
    says too that memories among which was searched have no vector because none could be read, and
    that the question was cut."""

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
    **narrowed: Any,
) -> Found:
    """`search` for one question; `narrowed` are the other fields of MemoryFilter."""
    condition = MemoryFilter(
        agent_id=agent_id,
        user_id=user_id,
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
    asked = _with_vectors([_cut(request) for request in requests], organization)
    vectors = [[one.vector] if one.vector else [] for one in asked]
    ranked, rows, unreadable = _find(asked, vectors, organization)
    elsewhere = next(
        (names for hits in ranked for r in hits if (names := r.encoders_elsewhere)), []
    )
    # The first that can be used here: callers bring vectors of names that nobody knows.
    usable = (found for name in elsewhere if (found := _vectors_of(name, asked, organization)))
    if others := next(usable, None):
        # The organization is being embedded anew: each row is compared by its own encoder.
        both = [[*own, *other] for own, other in zip(vectors, others, strict=True)]
        ranked, rows, unreadable = _find(asked, both, organization)
    note_found(organization.pk, list(rows))
    took_ms = round((time.monotonic() - started) * 1000, 2)
    return [
        Found(
            [Hit(rows[r.id], r) for r in hits if r.id in rows],
            one.request.mode,
            took_ms,
            " ".join(filter(None, [_cut_notice(given), one.notice, _UNREADABLE if among else ""])),
        )
        for given, one, hits, among in zip(requests, asked, ranked, unreadable, strict=True)
    ]


def _cut_notice(given: SearchRequest) -> str:
    length = len(given.query)
    return _CUT.format(length, MAX_QUERY_LENGTH) if length > MAX_QUERY_LENGTH else ""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request as it is carried out."""

    request: SearchRequest
    notice: str = ""

    @property
    def vector(self) -> QueryVector | None:
        return self.request.vector

    @property
    def finds_nothing(self) -> bool:
        """By meaning, of a question that has none."""
        return self.request.mode == "semantic" and self.vector is None


def _with_vectors(requests: Sequence[SearchRequest], organization: Organization) -> list[_Asked]:
    """The requests with their vectors, or by keyword instead, and what to tell of that."""
    for request in requests:
        if not request.query.strip() and (request.vector is None or request.mode == "keyword"):
            raise Invalid("A search needs words, or the vector of what is meant.", field="query")
    unknown = [r.query for r in requests if r.mode != "keyword" and r.vector is None]
    notice = ""
    encoded: Iterator[QueryVector | None] = iter([])
    try:
        encoded = iter(embed_queries(unknown, organization=organization))
    except EncoderError as error:
        if any(r.mode == "semantic" and r.vector is None for r in requests):
            raise
        logger.warning("Searching by keyword alone: %s", error)
        notice = _BY_KEYWORD
    return [_with_vector(request, encoded, notice) for request in requests]


def _cut(request: SearchRequest) -> SearchRequest:
    """As an encoder does: the beginning of a long question stands for it."""
    return replace(request, query=request.query[:MAX_QUERY_LENGTH])


def _with_vector(
    request: SearchRequest, encoded: Iterator[QueryVector | None], notice: str
) -> _Asked:
    if request.mode == "keyword":
        return _Asked(replace(request, vector=None), notice)
    if request.vector is not None:
        return _Asked(request, notice)
    if vector := next(encoded, None):
        return _Asked(replace(request, vector=vector))
    if request.mode == "semantic":
        return _Asked(request, _QUESTION_WITHOUT)
    return _Asked(replace(request, mode="keyword"), notice or _QUESTION_BY_KEYWORD)


def _vectors_of(
    encoder: str, asked: Sequence[_Asked], organization: Organization
) -> list[list[QueryVector]]:
    """Another encoder's vectors of the questions; empty where it cannot be used here."""
    are_meant = [bool(one.vector and one.request.query) for one in asked]
    questions = [one.request.query for one, it_is in zip(asked, are_meant, strict=True) if it_is]
    try:
        encoded = iter(embed_queries(questions, organization=organization, encoder=encoder))
    except EncoderError:
        return []
    found = (next(encoded) if it_is else None for it_is in are_meant)
    return [[vector] if vector else [] for vector in found]


def _find(
    asked: Sequence[_Asked],
    vectors: Sequence[Sequence[QueryVector]],
    organization: Organization,
) -> tuple[list[list[Ranked]], dict[UUID, Memory], list[bool]]:
    """One ranking statement for each request, and one that fetches all rows; and whether memories
    that cannot be read are among those that each was asked of."""
    language = language_of(organization.settings)
    with tenant(organization):
        with connection.cursor() as cursor:
            cursor.execute(_BEGIN, [organization.pk])
            _, has_unreadable = cursor.fetchone()
        ranked = [
            []
            if one.finds_nothing
            else rank(
                organization=organization,
                query="" if one.request.mode == "semantic" else one.request.query,
                language=language,
                narrowed=one.request.narrowed,
                vectors=own,
                weights=one.request.weights,
                limit=one.request.limit,
            )
            for one, own in zip(asked, vectors, strict=True)
        ]
        rows = Memory.objects.for_organization(organization).in_bulk(
            {r.id for hits in ranked for r in hits}
        )
        unreadable = [
            has_unreadable and bool(one.vector) and _has_unreadable(one.request, organization)
            for one in asked
        ]
    return ranked, rows, unreadable


def _has_unreadable(request: SearchRequest, organization: Organization) -> bool:
    """Of many, the first _LOOKED_AT are asked that the narrowing by an index leaves."""
    unreadable = Memory.objects.for_organization(organization).live().unexpired()
    unreadable = unreadable.filter(embedding_state=Memory.EmbeddingState.UNREADABLE)
    narrowed = request.narrowed
    few = narrowed.of_whom().narrow(unreadable).values("pk")[:_LOOKED_AT]
    own = Memory.objects.for_organization(organization).filter(pk__in=few)
    return narrowed.narrow(own).exists()
