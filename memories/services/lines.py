"""Vectors for lines of memories that are about to be stored (memories/bulk.py).

Called outside `tenant()`, like everything that encodes.
"""

from collections.abc import Sequence
from itertools import product

from django.db import connection

from accounts.models import Organization
from accounts.tenancy import tenant
from memories.bulk import MemoryLine
from memories.services.embedding import embed


def embed_lines(lines: Sequence[MemoryLine], *, organization: Organization) -> None:
    """Sets the vector of each line that has none and is readable. Raises: EncoderError."""
    missing = [line for line in lines if line.embedding is None]
    if not missing:
        return
    vectors = embed([(line.speaker, line.content) for line in missing], organization=organization)
    for line, row in zip(missing, vectors.rows, strict=True):
        line.set_vector(None if row is None else row.astype(">f2").tobytes(), vectors.encoder)


def embed_new_lines(lines: Sequence[MemoryLine], *, organization: Organization) -> None:
    """The same, except for lines whose memory exists with the same text: it keeps its vector, or
    waits for the worker. Raises: EncoderError."""
    identities = [(_key(line), line.hash) for line in lines]
    keys = [key for key, _ in identities if key]
    hashes = [hash_ for key, hash_ in identities if not key]
    with tenant(organization), connection.cursor() as cursor:
        cursor.execute(
            "SELECT external_id, hash FROM memories_memory "
            "WHERE organization_id = %s AND external_id = ANY (%s)",
            [organization.pk, keys],
        )
        by_external_id = {(key, bytes(hash_)) for key, hash_ in cursor.fetchall()}
        cursor.execute(
            "SELECT m.hash, ARRAY[a.external_id, a.id::text], ARRAY[u.external_id, u.id::text] "
            "FROM memories_memory m "
            "LEFT JOIN memories_agent a ON a.organization_id = %s AND a.id = m.agent_id "
            "LEFT JOIN accounts_user u ON u.organization_id = %s AND u.id = m.user_id "
            "WHERE m.organization_id = %s AND m.hash = ANY (%s) "
            "AND m.external_id IS NULL AND NOT m.is_deleted",
            [organization.pk, organization.pk, organization.pk, hashes],
        )
        by_content = {
            (bytes(hash_), agent, user)
            for hash_, agents, users in cursor.fetchall()
            for agent, user in product(_names(agents), _names(users))
        }
    new = [
        line
        for line, (key, hash_) in zip(lines, identities, strict=True)
        if (key, hash_) not in by_external_id
        and (key or (hash_, line.agent_id, line.user_id) not in by_content)
    ]
    embed_lines(new, organization=organization)


def _key(line: MemoryLine) -> str:
    """As it is stored; what is no key is refused later."""
    return "" if line.external_id is None else str(line.external_id).strip()


def _names(ids: Sequence[str | None]) -> list[str | None]:
    """How a line may refer to it: by external_id or id; None without an agent or user."""
    return [name for name in ids if name] or [None]
