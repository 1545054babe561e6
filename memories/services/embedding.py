"""Vectors of memories and queries: from the organization's cache, else from the encoder.

Called outside `tenant()`, so that no database connection is held during encoding.
"""

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec
from django.db import connection

from accounts.models import Organization
from accounts.tenancy import is_inside, tenant
from memories.embeddings import (
    Encoder,
    EncoderError,
    are_readable,
    encode_texts,
    get_encoder,
    read_halfvecs,
)
from memories.models import content_hash, embedded_text
from memories.search.ranking import QueryVector

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EMBED_CHANNEL = "agentmem_embed"  # its payload: the organization's id

Utterance = tuple[str | None, str]  # speaker, content

AWAY_S = 10.0  # after an encoder did not answer, searches use keywords for so long, without a try
_away: dict[str, tuple[float, str]] = {}  # encoder -> until when, and why
_MAX_CACHED_QUERIES = 1000
_query_cache: dict[tuple[UUID, str, str], str] = {}  # organization, encoder, query -> vector
_query_cache_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Vectors:
    """`rows` are unit vectors (VECTOR_DIM,) float32, padded with zeros; None for a text that the
    `encoder` cannot read. Only comparable with vectors of the same encoder."""

    encoder: str
    rows: "list[NDArray[np.float32] | None]"


def embed(
    utterances: Sequence[Utterance], *, organization: Organization, encoder: str = ""
) -> Vectors:
    """The vectors of the utterances, in order; equal ones are encoded once.

    Raises: EncoderError.
    """
    _refuse_inside()
    model = get_encoder(encoder)
    # (Without the speaker: a readable name does not make unreadable contents distinguishable.)
    readable = are_readable([_content(u) for u in utterances], model)
    to_embed = [u for u, is_readable in zip(utterances, readable, strict=True) if is_readable]
    vectors = iter(_embed(to_embed, model, organization))
    return Vectors(model.name, [next(vectors) if is_readable else None for is_readable in readable])


def _embed(
    utterances: Sequence[Utterance], model: Encoder, organization: Organization
) -> "Iterable[NDArray[np.float32]]":
    if model.is_cheap:
        return encode_texts([embedded_text(*u) for u in utterances], model)
    hashes = [content_hash(*u) for u in utterances]
    known = find_vectors(set(hashes), organization=organization, encoder=model.name)
    missing = {h: u for h, u in zip(hashes, utterances, strict=True) if h not in known}
    if missing:
        vectors = encode_texts([embedded_text(*u) for u in missing.values()], model)
        known |= dict(zip(missing, vectors, strict=True))
        keep_vectors({h: known[h] for h in missing}, organization=organization, encoder=model.name)
    return [known[h] for h in hashes]


def _content(utterance: Utterance) -> str:
    _, content = utterance
    return embedded_text(None, content)


def embed_queries(
    queries: Sequence[str], *, organization: Organization, encoder: str = ""
) -> list[QueryVector | None]:
    """The vectors of queries, in order; None for one that the encoder cannot read. Each process
    caches the latest: agents repeat their queries.

    Raises: EncoderError.
    """
    if not queries:
        return []
    _refuse_inside()
    model = get_encoder(encoder)
    known = {q: v for q in queries if (v := _query_cache.get((organization.pk, model.name, q)))}
    new = [q for q in dict.fromkeys(queries) if q not in known]
    readable = are_readable(new, model)
    missing = [q for q, is_readable in zip(new, readable, strict=True) if is_readable]
    if missing:
        for query, vector in zip(missing, _encode_queries(missing, model), strict=True):
            known[query] = as_text(vector)
        with _query_cache_lock:
            _query_cache.update({(organization.pk, model.name, q): known[q] for q in missing})
            while len(_query_cache) > _MAX_CACHED_QUERIES:
                del _query_cache[next(iter(_query_cache))]
    return [QueryVector(model.name, known[q]) if q in known else None for q in queries]


def _encode_queries(queries: Sequence[str], model: Encoder) -> "NDArray[np.float32]":
    """Fails at once if the encoder did not answer within the last AWAY_S."""
    until, reason = _away.get(model.name, (0.0, ""))
    if time.monotonic() < until:
        raise EncoderError(reason, is_temporary=True)
    try:
        return encode_texts(queries, model)
    except EncoderError as error:
        if error.is_temporary:
            _away[model.name] = time.monotonic() + AWAY_S, str(error)
        raise


def _refuse_inside() -> None:
    if is_inside():
        raise RuntimeError("Encode outside tenant(): it would hold a database connection.")


def find_vectors(
    hashes: set[bytes], *, organization: Organization, encoder: str
) -> "dict[bytes, NDArray[np.float32]]":
    """The cached vectors of these content hashes."""
    with tenant(organization), connection.cursor() as cursor:
        cursor.execute(
            "SELECT hash, halfvec_send(embedding) FROM memories_cachedvector "
            "WHERE organization_id = %s AND encoder = %s AND hash = ANY (%s)",
            [organization.pk, encoder, list(hashes)],
        )
        rows = cursor.fetchall()
    vectors = read_halfvecs([sent for _, sent in rows])
    return {bytes(h): vector for (h, _), vector in zip(rows, vectors, strict=True)}


def keep_vectors(
    vectors: "Mapping[bytes, NDArray[np.float32]]", *, organization: Organization, encoder: str
) -> None:
    """Caches vectors by content hash; existing ones stay."""
    with tenant(organization), connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO memories_cachedvector (id, organization_id, encoder, hash, embedding, "
            "created_at, updated_at, is_deleted) "
            "SELECT agentmem_uuid7(), %s, %s, v.hash, v.embedding::halfvec, now(), now(), false "
            "FROM unnest(%s::bytea[], %s::text[]) AS v (hash, embedding) ORDER BY v.hash "
            "ON CONFLICT (organization_id, hash, encoder) DO NOTHING",
            [organization.pk, encoder, list(vectors), [as_text(v) for v in vectors.values()]],
        )


def wake_worker(organization: Organization | UUID) -> None:
    """Notifies the workers, when the transaction commits, that the organization has pending
    memories; does nothing if it has none."""
    organization_id = organization.pk if isinstance(organization, Organization) else organization
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_notify(%s, %s) WHERE EXISTS (SELECT FROM memories_memory "
            "WHERE organization_id = %s AND embedding_state = 'pending' AND NOT is_deleted)",
            [EMBED_CHANNEL, str(organization_id), organization_id],
        )


def as_text(vector: "NDArray[np.float32]") -> str:
    """A unit vector as text for PostgreSQL, rounded to half precision. (Parsing the numbers is most
    of the cost of storing a vector, so they are short.)"""
    return msgspec.json.encode(vector.astype("float64").round(6).tolist()).decode()


def forget_vectors(hashes: Sequence[bytes], *, organization: Organization, encoder: str) -> None:
    """Removes vectors from the cache. Within tenant()."""
    with connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM memories_cachedvector "
            "WHERE organization_id = %s AND encoder = %s AND hash = ANY (%s)",
            [organization.pk, encoder, list(hashes)],
        )
