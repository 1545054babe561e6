"""Signing in to the console, and what the audit log keeps of it."""

from contextlib import nullcontext

from accounts.actors import Actor
from accounts.models import AuditEvent, Member
from accounts.services.audit import record_event
from accounts.tenancy import tenant


def may_sign_in(member: Member) -> bool:
    """Staff, active, not deleted, and of an organization that is not deleted either."""
    if not (member.is_active and member.is_staff) or member.is_deleted:
        return False
    return member.organization is None or not member.organization.is_deleted


def note_sign_in(*, email: str, succeeded: bool, actor: Actor) -> None:
    """Writes who signed in, or tried to, from outside a context.

    It stands in the log of the member's organization; an attempt under an unknown address, and a
    platform superuser, in no organization's.
    """
    member = Member.objects.filter(email=email).first()
    organization_id = member.organization_id if member else None
    with tenant(organization_id) if organization_id else nullcontext():
        record_event(
            organization=organization_id,
            actor=actor,
            action="signed_in",
            resource_type="member",
            resource_id=member.pk if member else None,
            status=AuditEvent.Status.SUCCESS if succeeded else AuditEvent.Status.FAILURE,
        )
