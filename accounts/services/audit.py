"""The audit log: one event per change, written with it."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from accounts.actors import Actor
from accounts.models import AuditEvent, Organization


def record_event(
    *,
    organization: Organization | UUID | None,
    actor: Actor,
    action: str,
    resource_type: str,
    resource_id: UUID | None = None,
    changes: Mapping[str, Any] | None = None,
    status: str = AuditEvent.Status.SUCCESS,
    duration_ms: int | None = None,
) -> None:
    """Writes one event in the caller's transaction. `changes` must not hold anybody's content."""
    organization_id = organization.pk if isinstance(organization, Organization) else organization
    AuditEvent.objects.create(
        organization_id=organization_id,
        actor_id=actor.id,
        actor_kind=actor.kind,
        actor_name=actor.name[:255],
        action=action,
        resource_type=resource_type,
        resource_id=resource_id,
        request_id=actor.request_id,
        ip=actor.ip,
        user_agent=actor.user_agent,
        status=status,
        duration_ms=duration_ms,
        changes=dict(changes or {}),
    )
