"""Many memories with vectors, and the results of an exact search."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from django.db import connection
from numpy.typing import NDArray

from accounts.models import Organization, User
from accounts.tenancy import tenant
from memories.models import EMBEDDING_DIM, Memory, content_hash
from memories.search.filters import MemoryFilter
from memories.search.ranking import QueryVector, Ranked, Weights, rank

ENCODER = "test"
MEANING_ALONE = Weights(dense=1, lexical=0)


def make_vectors(count: int, *, seed: int) -> NDArray[np.float32]:
    """(count, EMBEDDING_DIM) unit rows around 50 centres, as the vectors of texts are."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((50, EMBEDDING_DIM))
    rows = centres[random.integers(0, 50, count)]
    rows = rows + 0.7 * random.standard_normal((count, EMBEDDING_DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def store(
    organization: Organization,
    vectors: NDArray[np.float32],
    *,
    contents: Sequence[str] | None = None,
    users: Sequence[User | None] = (None,),
    **over: Any,
) -> list[Memory]:
    """One memory for each vector, for each user in turn."""
    contents = contents or [f"Fact {n}." for n in range(len(vectors))]
    with tenant(organization):
        return Memory.objects.bulk_create(
            Memory(
                **{
                    "organization": organization,
                    "user": users[n % len(users)],
                    "content": content,
                    "hash": content_hash(None, content),
                    "external_id": f"{content} {n}"[:255],
                    "embedding": vector,
                    "embedding_model": ENCODER,
                    "embedding_state": "ready",
                    "metadata": {"n": n, "parity": "odd" if n % 2 else "even"},
                    **over,
                }
            )
            for n, (vector, content) in enumerate(zip(vectors, contents, strict=True))
        )


def index_all(organization: Organization) -> None:
    """Puts every vector into the HNSW index, however small the organization is."""
    with tenant(organization), connection.cursor() as cursor:
        cursor.execute(
            "UPDATE memories_memory SET is_indexed = true WHERE organization_id = %s",
            [organization.pk],
        )


def vector_of(row: NDArray[np.float32], encoder: str = ENCODER) -> QueryVector:
    return QueryVector(encoder, str(row.tolist()))


def ranked(
    organization: Organization,
    *vectors: QueryVector,
    query: str = "",
    limit: int = 10,
    exact_rows: int = 10_000,
    weights: Weights = MEANING_ALONE,
    **conditions: Any,
) -> list[Ranked]:
    with tenant(organization):
        return rank(
            organization=organization,
            query=query,
            language="english",
            memory_filter=MemoryFilter(**conditions),
            vectors=vectors,
            weights=weights,
            limit=limit,
            exact_rows=exact_rows,
        )


def nearest(
    rows: Sequence[Memory], vectors: NDArray[np.float32], query: Any, limit: int = 10
) -> list[Any]:
    """The ids of the `limit` rows whose vectors are nearest, by numpy."""
    order = np.argsort(-(vectors @ query), kind="stable")[:limit]
    return [rows[n].pk for n in order]
