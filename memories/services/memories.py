"""Changes to memories: each makes a version, kept in the history. (New memories: adding.py.)"""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from django.db import transaction

from accounts.actors import Actor, command_actor
from accounts.errors import Forbidden
from accounts.models import Organization
from accounts.organization_settings import language_of
from accounts.roles import permission
from accounts.services.dependents import CHUNK_ROWS, Counts
from accounts.services.records import Records
from memories.models import Memory, content_hash
from memories.services.embedding import wake_worker

_CONTENT_KEY = ("hash", "agent_id", "user_id")  # the key of memories without an external_id
_IDENTITY = frozenset({"content", "speaker", "agent", "user", "external_id"})
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
        """Moves an expired memory with the same content to the trash, ahead of the sweep."""
        derived = dict[str, Any]()
        if is_new or changed & _EMBEDDED:
            derived["hash"] = content_hash(record.speaker, record.content)
        if is_new:
            derived["language"] = language_of(record.organization.settings)
        if is_new and record.embedding is not None:
            derived["embedding_state"] = Memory.EmbeddingState.READY
        if not is_new:
            derived["version"] = record.version + 1
            if changed & _EMBEDDED:  # the vector is of the previous text
                derived |= _NOT_EMBEDDED_YET
        for name, value in derived.items():
            setattr(record, name, value)
        if is_new or changed & _IDENTITY:
            _trash_expired_duplicates(record)
        return changed | derived.keys()

    def restore(self, rows: Any, *, organization: Organization, actor: Actor) -> Counts:
        """Moves expired memories with the content of one of `rows` to the trash, too."""
        restored = rows.for_organization(organization).filter(
            deleted_at__isnull=False, external_id=None
        )
        with transaction.atomic():
            keys = set(map(_key, restored.order_by().values_list(*_CONTENT_KEY)))
            if ids := _expired_with(keys, organization):
                expired = Memory.objects.for_organization(organization).filter(pk__among=ids)
                self.delete(expired, organization=organization, actor=actor)
            return super().restore(rows, organization=organization, actor=actor)

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


def _trash_expired_duplicates(record: Memory) -> None:
    if record.external_id is not None:
        return
    expired = _expired(record.organization_id).exclude(pk=record.pk)
    key = {name: getattr(record, name) for name in _CONTENT_KEY}
    if ids := list(expired.filter(**key).values_list("pk", flat=True)):
        rows = Memory.objects.for_organization(record.organization_id).filter(pk__in=ids)
        memories.delete(rows, organization=record.organization, actor=command_actor("sweep"))


def _expired(organization: Organization | UUID) -> Any:
    """Expired memories whose key is their content."""
    return Memory.objects.for_organization(organization).live().expired().filter(external_id=None)


def _expired_with(keys: set[tuple[Any, ...]], organization: Organization) -> list[UUID]:
    hashes = list({row_hash for row_hash, *_ in keys})
    ids: list[UUID] = []
    for start in range(0, len(hashes), CHUNK_ROWS):
        rows = _expired(organization).filter(hash__among=hashes[start : start + CHUNK_ROWS])
        ids += [pk for pk, *key in rows.values_list("pk", *_CONTENT_KEY) if _key(key) in keys]
    return ids


def _key(values: Sequence[Any]) -> tuple[Any, ...]:
    content_hash, *owners = values
    return (bytes(content_hash), *owners)


def refuse_to_expire(actor: Actor) -> None:
    """Expiring a memory earlier amounts to deleting it. Raises: Forbidden."""
    if not actor.may(permission("memory", "delete")):
        raise Forbidden(
            "Expiring a memory earlier deletes it, which needs memory:delete.",
            field="expires_at",
        )


memories = MemoryRecords(Memory)
