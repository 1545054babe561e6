"""Vectors of what is said: from the organization's cache, else from the encoder.

Called outside `tenant()`: no database connection is held while an encoder is at work.
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

AWAY_S = 10.0  # searches go by keyword at once for so long, when an encoder did not answer
_away: dict[str, tuple[float, str]] = {}  # encoder -> until when, and why
_MAX_ASKED = 1000
_asked: dict[tuple[UUID, str, str], str] = {}  # organization, encoder, question -> vector
_asking = threading.Lock()


@dataclass(frozen=True, slots=True)
class Vectors:
    """`rows` are unit vectors (VECTOR_DIM,) float32, padded with zeros; None for what the `encoder`
    cannot read. Comparable with other vectors of the same encoder alone."""

    encoder: str
    rows: "list[NDArray[np.float32] | None]"


def embed(said: Sequence[Utterance], *, organization: Organization, encoder: str = "") -> Vectors:
    """The vectors of what is said, in order; the same words are encoded once in all.

    Raises: EncoderError.
    """
    _refuse_inside()
    model = get_encoder(encoder)
    # (A speaker that can be read would not make it less alike to all else that cannot.)
    readable = are_readable([_content(s) for s in said], model)
    to_embed = [s for s, it_is in zip(said, readable, strict=True) if it_is]
    vectors = iter(_embed(to_embed, model, organization))
    return Vectors(model.name, [next(vectors) if it_is else None for it_is in readable])


def _embed(
    said: Sequence[Utterance], model: Encoder, organization: Organization
) -> "Iterable[NDArray[np.float32]]":
    if model.is_cheap:
        return encode_texts([embedded_text(*s) for s in said], model)
    hashes = [content_hash(*s) for s in said]
    known = find_vectors(set(hashes), organization=organization, encoder=model.name)
    missing = {h: s for h, s in zip(hashes, said, strict=True) if h not in known}
    if missing:
        vectors = encode_texts([embedded_text(*s) for s in missing.values()], model)
        known |= dict(zip(missing, vectors, strict=True))
        keep_vectors({h: known[h] for h in missing}, organization=organization, encoder=model.name)
    return [known[h] for h in hashes]


def _content(said: Utterance) -> str:
    _, content = said
    return embedded_text(None, content)


def embed_queries(
    queries: Sequence[str], *, organization: Organization, encoder: str = ""
) -> list[QueryVector | None]:
    """The vectors of questions, in order; None for one that the encoder cannot read. A process
    remembers the last ones: an agent asks again.

    Raises: EncoderError.
    """
    if not queries:
        return []
    _refuse_inside()
    model = get_encoder(encoder)
    known = {q: v for q in queries if (v := _asked.get((organization.pk, model.name, q)))}
    new = [q for q in dict.fromkeys(queries) if q not in known]
    missing = [q for q, it_is in zip(new, are_readable(new, model), strict=True) if it_is]
    if missing:
        for query, vector in zip(missing, _encode_questions(missing, model), strict=True):
            known[query] = as_text(vector)
        with _asking:
            _asked.update({(organization.pk, model.name, q): known[q] for q in missing})
            while len(_asked) > _MAX_ASKED:
                del _asked[next(iter(_asked))]
    return [QueryVector(model.name, known[q]) if q in known else None for q in queries]


def _encode_questions(queries: Sequence[str], model: Encoder) -> "NDArray[np.float32]":
    """Where the encoder did not answer a moment ago it is not waited for again."""
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
        found = cursor.fetchall()
    vectors = read_halfvecs([sent for _, sent in found])
    return {bytes(h): vector for (h, _), vector in zip(found, vectors, strict=True)}


def keep_vectors(
    vectors: "Mapping[bytes, NDArray[np.float32]]", *, organization: Organization, encoder: str
) -> None:
    """Caches vectors by content hash; those that are there stay."""
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
    """Tells the workers, at the end of the transaction, that memories of the organization wait to
    be embedded; if none do, nobody is woken."""
    organization_id = organization.pk if isinstance(organization, Organization) else organization
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_notify(%s, %s) WHERE EXISTS (SELECT FROM memories_memory "
            "WHERE organization_id = %s AND embedding_state = 'pending' AND NOT is_deleted)",
            [EMBED_CHANNEL, str(organization_id), organization_id],
        )


def as_text(vector: "NDArray[np.float32]") -> str:
    """A vector of length 1 in PostgreSQL's spelling, as fine as half precision is. (Short numbers:
    reading them is most of what storing a vector costs.)"""
    return msgspec.json.encode(vector.astype("float64").round(6).tolist()).decode()


def forget_vectors(hashes: Sequence[bytes], *, organization: Organization, encoder: str) -> None:
    """Takes vectors out of the cache. Within tenant()."""
    with connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM memories_cachedvector "
            "WHERE organization_id = %s AND encoder = %s AND hash = ANY (%s)",
            [organization.pk, encoder, list(hashes)],
        )
