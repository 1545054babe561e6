"""Long-term memories: added once, changed by version, kept in history."""

from collections.abc import Mapping
from typing import Any

from accounts.actors import Actor
from accounts.errors import Conflict
from accounts.models import Organization
from accounts.organization_settings import language_of
from accounts.services.records import Records
from memories.models import MEMORY_CONTENT_UNIQUE, Memory, content_hash

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


memories = MemoryRecords(Memory)


def add_memory(
    *, organization: Organization, actor: Actor, values: Mapping[str, Any]
) -> tuple[Memory, bool]:
    """The memory, and whether it is new: said before by the same speaker to the same agent and
    user, and without an external_id, the row that is there is the answer.

    Raises: Conflict (the external_id is taken), Invalid.
    """
    try:
        return memories.create(organization=organization, actor=actor, values=values), True
    except Conflict as conflict:
        if conflict.constraint != MEMORY_CONTENT_UNIQUE:
            raise
        same = (
            Memory.objects.for_organization(organization)
            .live()
            .filter(
                external_id=None,
                hash=content_hash(values.get("speaker"), values["content"]),
                agent=values.get("agent"),
                user=values.get("user"),
            )
        )
        if (there := same.first()) is None:  # deleted meanwhile
            raise
    return there, False
