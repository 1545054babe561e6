"""Long-term memories: changed by version, kept in history. (Added: adding.py.)"""

from collections.abc import Mapping, Sequence
from typing import Any

from accounts.actors import Actor
from accounts.errors import Forbidden
from accounts.models import Organization
from accounts.organization_settings import language_of
from accounts.roles import permission
from accounts.services.records import Records
from memories.models import Memory, content_hash
from memories.services.embedding import wake_worker

_EMBEDDED = frozenset({"content", "speaker"})
_NOT_EMBEDDED_YET: dict[str, Any] = {
    "embedding": None,
    "embedding_model": "",
    "embedding_state": Memory.EmbeddingState.PENDING,
    "embedding_attempts": 0,
    "embedding_error": "",
    "embedding_due_at": None,
    "is_indexed": False,
}


class MemoryRecords(Records[Memory]):
    def derive(self, record: Memory, changed: frozenset[str], *, is_new: bool) -> frozenset[str]:
        derived = dict[str, Any]()
        if is_new or changed & _EMBEDDED:
            derived["hash"] = content_hash(record.speaker, record.content)
        if is_new:
            derived["language"] = language_of(record.organization)
        if is_new and record.embedding is not None:
            derived["embedding_state"] = Memory.EmbeddingState.READY
        if not is_new:
            derived["version"] = record.version + 1
            if changed & _EMBEDDED:  # the vector is of what it said before
                derived |= _NOT_EMBEDDED_YET
        for name, value in derived.items():
            setattr(record, name, value)
        return changed | derived.keys()

    def before_update(
        self,
        record: Memory,
        values: Mapping[str, Any],
        *,
        organization: Organization,
        actor: Actor,
    ) -> None:
        expires_at = values.get("expires_at")
        if expires_at and (record.expires_at is None or expires_at < record.expires_at):
            refuse_to_expire(actor)

    def create_many(
        self, *, organization: Organization, actor: Actor, rows: Sequence[Mapping[str, Any]]
    ) -> list[Memory]:
        records = super().create_many(organization=organization, actor=actor, rows=rows)
        wake_worker(organization)
        return records

    def after_update(self, record: Memory, changed: frozenset[str]) -> None:
        if changed & _EMBEDDED:
            wake_worker(record.organization_id)


def refuse_to_expire(actor: Actor) -> None:
    """A memory that expires sooner than it would have is deleted, then. Raises: Forbidden."""
    if not actor.may(permission("memory", "delete")):
        raise Forbidden(
            "A memory would expire sooner than now: that deletes it, and takes memory:delete.",
            field="expires_at",
        )


memories = MemoryRecords(Memory)
