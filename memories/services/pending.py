"""The queue of memories to embed: the pending rows themselves.

A claim sets `embedding_due_at` to the end of its lease, encoding happens outside of transactions,
and a vector is written only if the row still has the text that was embedded. A killed worker
leaves nothing to clean up: its lease expires.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from django.db import Error, connection
from django.db.models.functions import Now

from accounts.models import Organization
from accounts.tenancy import platform, tenant
from memories.embeddings import EncoderError, encode_texts, get_encoder
from memories.models import Memory
from memories.services.embedding import Utterance, as_text, embed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_ATTEMPTS = 5
FIRST_RETRY = timedelta(seconds=30)  # doubled with each attempt
MAX_COUNTED = 1_000_000
_PROBE = "Is anybody there?"

# One probe of the index memories_memory_pending per organization. ORDER BY makes the planner use
# it: it expects to find a pending row soon, and would scan the whole table for each organization
# that has none.
_ORGANIZATIONS = """
SELECT o.id FROM accounts_organization o CROSS JOIN LATERAL (
    SELECT 1 FROM memories_memory m
    WHERE m.organization_id = o.id AND m.embedding_state = 'pending' AND NOT m.is_deleted
    ORDER BY m.created_at LIMIT 1) AS pending
WHERE NOT o.is_deleted
"""

# statement_timestamp, as Django's Now: now() is the start of the transaction.
_CLAIM = """
WITH due AS MATERIALIZED (
    SELECT id FROM memories_memory
    WHERE organization_id = %(organization)s AND embedding_state = 'pending' AND NOT is_deleted
        AND (embedding_due_at IS NULL OR embedding_due_at <= statement_timestamp())
    ORDER BY created_at LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED)
UPDATE memories_memory m SET embedding_due_at = statement_timestamp() + %(lease)s
FROM due WHERE m.organization_id = %(organization)s AND m.id = due.id
RETURNING m.embedding_due_at, m.id, m.hash, m.speaker, m.content, m.embedding_attempts
"""

# Rows are locked in the order of their ids, so that two writers never deadlock. `replaced` is the
# encoder whose vectors are replaced; NULL: the rows are pending. A NULL vector: the encoder cannot
# read the row.
_WRITE = """
WITH matched AS MATERIALIZED (
    SELECT m.id, v.embedding FROM memories_memory m
    JOIN unnest(%(ids)s::uuid[], %(hashes)s::bytea[], %(vectors)s::text[])
        AS v (id, hash, embedding) ON v.id = m.id AND v.hash = m.hash
    WHERE m.organization_id = %(organization)s
        AND CASE WHEN %(replaced)s::text IS NULL THEN m.embedding_state = 'pending'
            ELSE m.embedding_state IN ('ready', 'unreadable')
                AND m.embedding_model = %(replaced)s END
    ORDER BY m.id FOR NO KEY UPDATE OF m)
UPDATE memories_memory m SET embedding = matched.embedding::halfvec, embedding_model = %(encoder)s,
    embedding_state = CASE WHEN matched.embedding IS NULL THEN 'unreadable' ELSE 'ready' END,
    embedding_attempts = 0, embedding_error = '',
    embedding_due_at = NULL, is_indexed = false,
    line_hash = CASE WHEN %(replaced)s::text IS NULL THEN m.line_hash END
FROM matched WHERE m.organization_id = %(organization)s AND m.id = matched.id
RETURNING matched.embedding IS NULL
"""


class Row(NamedTuple):
    """A memory to embed, as it was when it was read."""

    id: UUID
    hash: bytes
    utterance: Utterance
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Encoded:
    """Vectors of rows by one encoder, None where it cannot read the row; and the rows that failed,
    each with the reason."""

    encoder: str
    vectors: "list[tuple[Row, NDArray[np.float32] | None]]"
    failures: list[tuple[Row, str]]


class Written(NamedTuple):
    """How many rows got a vector, and how many were marked as unreadable."""

    embedded: int = 0
    unreadable: int = 0


@dataclass(frozen=True, slots=True)
class Claim:
    """Rows leased to this worker until `leased_until`, by which it recognizes them as its own."""

    organization: Organization
    rows: list[Row]
    leased_until: datetime

    def settle(self, encoded: Encoded) -> Written:
        """Writes the vectors, counts an attempt for each failure, releases rows whose text has
        changed."""
        with tenant(self.organization):
            written = write_vectors(encoded, organization=self.organization)
            for row, reason in encoded.failures:
                self._charge(row, reason)
            if sum(written) + len(encoded.failures) < len(self.rows):
                self._still_claimed(self.rows).update(embedding_due_at=None)
        return written

    def release(self) -> None:
        """Makes the rows that are still pending available at once."""
        with tenant(self.organization):
            self._still_claimed(self.rows).update(embedding_due_at=None)

    def _charge(self, row: Row, reason: str) -> None:
        attempts = row.attempts + 1
        is_last = attempts >= MAX_ATTEMPTS
        states = Memory.EmbeddingState
        self._still_claimed([row]).update(
            embedding_attempts=attempts,
            embedding_error=reason,
            embedding_state=states.FAILED if is_last else states.PENDING,
            embedding_due_at=None if is_last else Now() + FIRST_RETRY * 2**row.attempts,
        )

    def _still_claimed(self, rows: Sequence[Row]) -> Any:
        # (A row that was changed meanwhile has no due date, or another one.)
        return Memory.objects.for_organization(self.organization).filter(
            pk__in=[row.id for row in rows],
            embedding_state=Memory.EmbeddingState.PENDING,
            embedding_due_at=self.leased_until,
        )


def organizations_with_pending() -> list[Organization]:
    """Those with pending memories, due or not. One statement under platform(), where tenant()
    would take a transaction per organization, every few seconds."""
    with platform(), connection.cursor() as cursor:
        cursor.execute(_ORGANIZATIONS)
        ids = [row[0] for row in cursor.fetchall()]
    return list(Organization.objects.filter(pk__in=ids)) if ids else []


def count_pending(organization: Organization) -> int:
    """Counts live pending memories, up to MAX_COUNTED."""
    with tenant(organization):
        rows = Memory.objects.for_organization(organization).live()
        pending = rows.filter(embedding_state=Memory.EmbeddingState.PENDING).order_by()
        return int(pending.values("pk")[:MAX_COUNTED].count())


def claim(*, organization: Organization, limit: int, lease_s: float) -> Claim | None:
    """Claims the oldest pending memories that are due and not leased; None if there are none."""
    values: dict[str, Any] = {
        "organization": organization.pk,
        "limit": limit,
        "lease": timedelta(seconds=lease_s),
    }
    with tenant(organization), connection.cursor() as cursor:
        cursor.execute(_CLAIM, values)
        claimed = cursor.fetchall()
    if not claimed:
        return None
    rows = [
        Row(pk, bytes(content_hash), (speaker, content), attempts)
        for _, pk, content_hash, speaker, content, attempts in claimed
    ]
    return Claim(organization, rows, leased_until=claimed[0][0])


def encode_rows(rows: Sequence[Row], *, organization: Organization, encoder: str = "") -> Encoded:
    """Vectors of the rows. If the encoder fails, the batch is halved until the text that it fails
    on is alone, so that the other rows get their vectors.

    Raises: EncoderError (the encoder fails on any text, not because of these).
    """
    utterances = [row.utterance for row in rows]
    try:
        vectors = embed(utterances, organization=organization, encoder=encoder)
    except Error:
        raise
    except Exception as error:
        if isinstance(error, EncoderError):
            encode_texts([_PROBE], get_encoder(encoder))  # raises, too, unless the text is at fault
        if len(rows) == 1:
            # Only the type: the message of an exception may quote the text.
            reason = f"The encoder refused this text ({type(error).__name__})."
            return Encoded("", [], [(rows[0], reason)])
        half = len(rows) // 2
        first, second = (
            encode_rows(part, organization=organization, encoder=encoder)
            for part in (rows[:half], rows[half:])
        )
        return Encoded(
            first.encoder or second.encoder,
            first.vectors + second.vectors,
            first.failures + second.failures,
        )
    encoded = Encoded(vectors.encoder, [], [])
    for row, vector in zip(rows, vectors.rows, strict=True):
        if vector is None or _has_direction(vector):
            encoded.vectors.append((row, vector))
        else:
            encoded.failures.append((row, "The encoder gave no vector for this text."))
    return encoded


def write_vectors(
    encoded: Encoded, *, organization: Organization, replaced: str | None = None
) -> Written:
    """Compare and set: writes to rows that still have the embedded text and are pending or, given
    `replaced`, have a vector of that encoder or were unreadable for it. Within tenant()."""
    if not encoded.vectors:
        return Written()
    values: dict[str, Any] = {
        "organization": organization.pk,
        "ids": [row.id for row, _ in encoded.vectors],
        "hashes": [row.hash for row, _ in encoded.vectors],
        "vectors": [None if vector is None else as_text(vector) for _, vector in encoded.vectors],
        "encoder": encoded.encoder,
        "replaced": replaced,
    }
    with connection.cursor() as cursor:
        cursor.execute(_WRITE, values)
        are_unreadable = [it_is for (it_is,) in cursor.fetchall()]
    return Written(are_unreadable.count(False), are_unreadable.count(True))


def _has_direction(vector: "NDArray[np.float32]") -> bool:
    halves = vector.astype("float16")
    return bool((abs(halves) < math.inf).all() and halves.any())
