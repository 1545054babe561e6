"""Changes or deletes many memories at once, by filter, optionally with a preview.

Each call is one transaction and writes one audit event with its counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import connection, models, transaction
from django.db.models import Q, Value
from django.db.models.expressions import RawSQL
from django.db.models.functions import Cast
from django.utils import timezone
from psycopg import sql
from psycopg.types.json import Jsonb

from accounts.actors import Actor
from accounts.errors import Invalid, named_violations
from accounts.models import Organization
from accounts.roles import permission
from accounts.services.audit import record_event
from accounts.services.dependents import CHUNK_ROWS, track_progress
from memories.models import Memory
from memories.search.filters import MemoryFilter
from memories.services.memories import memories, refuse_to_expire

MAX_ROWS = 100_000  # in one transaction
SAMPLE_ROWS = 10
SETTABLE = ("importance", "memory_type", "scope", "level", "expires_at", "metadata")

# Rows leave the HNSW index and the worker adds them again: a new row version costs 1.6 ms there,
# minutes in all.
# (The same statement writes the history: another one would read all rows again.)
# Parameters: those of {assignments}, at, by, organization, ids, by, by, by, at, at.
_UPDATE = sql.SQL("""
WITH updated AS (
    UPDATE memories_memory m
    SET {assignments}, version = m.version + 1, is_indexed = false, updated_at = %s,
        last_updated_by_id = %s
    WHERE m.organization_id = %s AND m.id = ANY(%s::uuid[])
    RETURNING m.id, m.organization_id, m.version, m.content, m.metadata, m.importance)
INSERT INTO memories_memoryhistory (
    id, organization_id, memory_id, version, change_type, reason, content, memory_metadata,
    importance, changed_by_id, created_by_id, last_updated_by_id, created_at, updated_at,
    metadata, is_deleted)
SELECT agentmem_uuid7(), u.organization_id, u.id, u.version, 'updated', '', u.content, u.metadata,
    u.importance, %s, %s, %s, %s, %s, '{{}}', false
FROM updated u
""")
_MERGED_METADATA = "(metadata || %s) - %s::text[]"


@dataclass(frozen=True, slots=True)
class Changed:
    """How many rows match the filter, and how many of them changed or, in a preview, would change.
    `sample` has some of the latter, newest first; only in a preview."""

    matched: int
    changed: int
    sample: list[Memory]


def update_memories(
    *,
    organization: Organization,
    actor: Actor,
    memory_filter: MemoryFilter,
    values: Mapping[str, Any],
    expired: str | None = None,
    is_preview: bool = False,
) -> Changed:
    """Sets `values` (of SETTABLE) on the live memories that match; rows that have these values stay
    as they are. `expired`: as in MemoryQuerySet.by_expiry.

    `metadata` is merged into the existing one: its keys are set, keys with None are removed.
    Raises: Invalid (nothing to set, another field, more than MAX_ROWS match).
    """
    if not values:
        raise Invalid("There is nothing to set.", field="set", code="required")
    if unknown := values.keys() - set(SETTABLE):
        raise Invalid(
            f"{sorted(unknown)[0]!r} cannot be set on many memories at once; {', '.join(SETTABLE)} "
            "can.",
            field="set",
            code="fixed",
        )
    rows = memory_filter.apply_to(
        Memory.objects.for_organization(organization).live().by_expiry(expired)
    )
    with transaction.atomic(), named_violations(Memory):
        matched = _bounded(rows.order_by().values("pk")[: MAX_ROWS + 1].count())
        differing = rows.filter(_differs(values))
        _refuse_to_expire_any(rows, values, actor)
        if is_preview:
            return Changed(matched, differing.count(), _sample(differing))
        changed = _update(differing, values, organization, actor.id, timezone.now())
        if changed:
            record_event(
                organization=organization,
                actor=actor,
                action="updated",
                resource_type="memory",
                changes={
                    "rows": {"memory": changed},
                    "fields": dict.fromkeys(sorted(values)),
                    "filter": _named(memory_filter),
                },
            )
    return Changed(matched, changed, [])


def _refuse_to_expire_any(rows: Any, values: Mapping[str, Any], actor: Actor) -> None:
    expires_at = values.get("expires_at")
    if expires_at is None or actor.may(permission("memory", "delete")):
        return
    if rows.filter(Q(expires_at=None) | Q(expires_at__gt=expires_at)).exists():
        refuse_to_expire(actor)


def delete_memories(
    *,
    organization: Organization,
    actor: Actor,
    memory_filter: MemoryFilter,
    expired: str | None = None,
    is_preview: bool = False,
) -> Changed:
    """Moves the matching live memories to the trash; `expired`: as in MemoryQuerySet.by_expiry.
    Raises: Invalid (more than MAX_ROWS match)."""
    return _delete(
        memory_filter.apply_to(Memory.objects.for_organization(organization).by_expiry(expired)),
        organization,
        actor,
        is_preview,
    )


def delete_named_memories(
    names: Sequence[str], *, organization: Organization, actor: Actor, is_preview: bool = False
) -> tuple[Changed, list[str]]:
    """Moves these memories (uuid or external_id) to the trash; also returns the unknown names.

    Two statements for all names. As everywhere, an id takes precedence over an external_id.
    """
    by_text = {name.lower(): pk for name in names if (pk := _uuid(name))}
    live = Memory.objects.for_organization(organization).live()
    with transaction.atomic():
        matches = live.filter(Q(pk__in=by_text.values()) | Q(external_id__in=set(names)))
        pairs = list(matches.values_list("pk", "external_id"))
        ids, keys = {pk for pk, _ in pairs}, {key: pk for pk, key in pairs}
        by_name = {n: pk if (pk := by_text.get(n.lower())) in ids else keys.get(n) for n in names}
        rows = live.filter(pk__among={pk for pk in by_name.values() if pk})
        done = _delete(rows, organization, actor, is_preview)
    return done, [name for name, pk in by_name.items() if pk is None]


def _delete(rows: Any, organization: Organization, actor: Actor, is_preview: bool) -> Changed:
    live = rows.live()
    with transaction.atomic():
        if is_preview:
            matched = _bounded(live.order_by().values("pk")[: MAX_ROWS + 1].count())
            return Changed(matched, matched, _sample(live))
        # Locked, so that history, trash and count cover the same rows.
        locked = live.order_by("pk").select_for_update(of=("self",)).values_list("pk", flat=True)
        ids = list(locked[: MAX_ROWS + 1])
        matched = _bounded(len(ids))
        own = Memory.objects.for_organization(organization).filter(pk__among=ids)
        counts = memories.delete(own, organization=organization, actor=actor)
    return Changed(matched, counts.get("memory", 0), [])


def _update(
    rows: Any, values: Mapping[str, Any], organization: Organization, by: UUID | None, at: datetime
) -> int:
    locked = rows.order_by("pk").select_for_update(no_key=True, of=("self",))
    ids = list(locked.values_list("pk", flat=True))
    assignments = []
    set_to: list[Any] = []
    for name, value in values.items():
        if name == "metadata":
            assignments.append(sql.SQL("metadata = ") + sql.SQL(_MERGED_METADATA))
            set_to += _merge_parameters(value)
        else:
            assignments.append(sql.SQL("{} = %s").format(sql.Identifier(name)))
            set_to.append(value)
    statement = _UPDATE.format(assignments=sql.SQL(", ").join(assignments))
    changed = 0
    with track_progress("update memory") as progress, connection.cursor() as cursor:
        for start in range(0, len(ids), CHUNK_ROWS):
            chunk = ids[start : start + CHUNK_ROWS]
            cursor.execute(statement, [*set_to, at, by, organization.pk, chunk, by, by, by, at, at])
            changed += cursor.rowcount
            progress.add(cursor.rowcount)
    return changed


def _differs(values: Mapping[str, Any]) -> Q:
    """Matches rows that do not have these values yet."""
    differs = Q()
    for name, value in values.items():
        if name == "metadata":
            parameters = _merge_parameters(value)
            merged = RawSQL(_MERGED_METADATA, parameters, models.JSONField())  # noqa: S611  a constant
            differs |= ~Q(metadata=merged)
        elif value is None:
            differs |= Q(**{f"{name}__isnull": False})
        else:
            field: Any = Memory._meta.get_field(name)
            as_stored = Cast(Value(value), field)  # 0.1 as a real is not 0.1 as a double
            differs |= ~Q(**{name: as_stored}) | Q(**{f"{name}__isnull": True})
    return differs


def _merge_parameters(changes: Mapping[str, Any]) -> list[Any]:
    """The parameters of _MERGED_METADATA."""
    kept = {key: value for key, value in changes.items() if value is not None}
    return [Jsonb(kept), [key for key, value in changes.items() if value is None]]


def _bounded(matched: int) -> int:
    if matched > MAX_ROWS:
        raise Invalid(
            f"More than {MAX_ROWS:,} memories match, the most that one call changes: narrow the "
            "filter, for instance by `since` and `until`, and call several times.",
            field="filter",
            code="too_many",
        )
    return matched


def _sample(rows: Any) -> list[Memory]:
    return list(rows.newest_first()[:SAMPLE_ROWS])


def _named(memory_filter: MemoryFilter) -> list[str]:
    """The names of the conditions; their values may be personal."""
    return [
        field.name
        for field in fields(memory_filter)
        if getattr(memory_filter, field.name) is not None
    ]


def _uuid(name: str) -> UUID | None:
    try:
        return UUID(name) if len(name) == 36 else None
    except ValueError:
        return None
