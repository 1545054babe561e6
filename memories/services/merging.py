"""Merges two memories."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from accounts.actors import Actor
from accounts.errors import Conflict, Invalid, NotFound, named_violations
from accounts.models import Organization
from accounts.services.audit import record_event
from memories.models import Memory, MemoryHistory
from memories.services.memories import memories

MAX_REASON_LENGTH = 200  # characters, beside what the server says
_MAX_COUNT = 2**31 - 1


def merge_memories(
    kept: Memory,
    other: Memory,
    *,
    organization: Organization,
    actor: Actor,
    values: Mapping[str, Any] | None = None,
    reason: str = "",
) -> Memory:
    """Merges `other` into a new version of `kept`, and moves `other` to the trash.

    Metadata is united (keys of `kept` win), importance is the larger, hits are added up, created_at
    is the earlier, expires_at the later (never, if one never expires). `values` are set on top:
    content, importance or metadata. The vector stays unless the embedded text changes.

    Raises: NotFound (`kept` was deleted), Conflict (`other` was, or a third memory has the same
    content), Invalid.
    """
    if kept.pk == other.pk:
        raise Invalid("A memory cannot be merged with itself: name another one.", field="with")
    with transaction.atomic(), named_violations(Memory):
        pair = Memory.objects.for_organization(organization).filter(pk__in=[kept.pk, other.pk])
        # Locked in the order of their ids, so that two merges of one pair never deadlock.
        locked = {row.pk: row for row in pair.live().order_by("pk").select_for_update(of=("self",))}
        if kept.pk not in locked:
            raise NotFound
        if other.pk not in locked:
            raise Conflict("The other memory was deleted or merged meanwhile.", field="with")
        kept, other = locked[kept.pk], locked[other.pk]
        now = timezone.now()
        stamp = {"updated_at": now, "last_updated_by_id": actor.id}

        # `other` goes first: `kept` may be about to take over its content, which is unique.
        trashed = {"is_deleted": True, "deleted_at": now, "last_updated_by_id": actor.id}
        _set(other, trashed)
        other.save(update_fields=list(trashed))

        wanted = {**_united(kept, other), **(values or {})}
        changed = {name for name, value in wanted.items() if getattr(kept, name) != value}
        _set(kept, {**wanted, **stamp})
        written = memories.derive(kept, frozenset(changed), is_new=False)
        kept.save(update_fields=[*written, *stamp])
        memories.after_update(kept, frozenset(changed))

        end = f": {reason}" if reason else "."
        MemoryHistory.objects.bulk_create(
            [
                _merged(kept, f"Took in {other.pk}{end}", actor.id, now),
                _merged(other, f"Merged into {kept.pk}{end}", actor.id, now),
            ]
        )
        record_event(
            organization=organization,
            actor=actor,
            action="merged",
            resource_type="memory",
            resource_id=kept.pk,
            changes={"with": str(other.pk), "fields": dict.fromkeys(sorted(changed))},
        )
    return kept


def _united(kept: Memory, other: Memory) -> dict[str, Any]:
    accessed = [row.last_accessed for row in (kept, other) if row.last_accessed]
    expiries = [row.expires_at for row in (kept, other) if row.expires_at]
    return {
        "metadata": {**other.metadata, **kept.metadata},
        "importance": max(kept.importance, other.importance),
        "access_count": min(kept.access_count + other.access_count, _MAX_COUNT),
        "last_accessed": max(accessed, default=None),
        "created_at": min(kept.created_at, other.created_at),
        "expires_at": max(expiries) if len(expiries) == 2 else None,
    }


def _set(row: Memory, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(row, name, value)


def _merged(row: Memory, reason: str, actor_id: UUID | None, now: datetime) -> MemoryHistory:
    return MemoryHistory(
        organization_id=row.organization_id,
        memory=row,
        version=row.version,
        change_type=MemoryHistory.Change.MERGED,
        reason=reason,
        content=row.content,
        memory_metadata=row.metadata,
        importance=row.importance,
        changed_by_id=actor_id,
        created_by_id=actor_id,
        last_updated_by_id=actor_id,
        created_at=now,
        updated_at=now,
    )
