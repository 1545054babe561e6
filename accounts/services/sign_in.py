"""Signing in to the console, and what the audit log keeps of it."""

from contextlib import nullcontext
from typing import Any

from django.contrib.auth.backends import BaseBackend
from django.contrib.auth.hashers import make_password

from accounts.access import as_address, at_slug
from accounts.actors import Actor
from accounts.errors import Conflict
from accounts.models import AuditEvent, Member
from accounts.services.audit import record_event
from accounts.tenancy import tenant


class SeveralFit(Conflict):
    """This email and password are those of several organizations: name the one to open."""


class MemberBackend(BaseBackend):
    """For Django: who signs in by email and password, and whose session it is."""

    def authenticate(  # type: ignore[override]
        self,
        request: Any,
        username: str | None = None,
        password: str | None = None,
        organization: str = "",
    ) -> Member | None:
        """Raises: SeveralFit."""
        if username is None or password is None:
            return None
        fitting = members_who_fit(email=username, password=password, slug=organization)
        if len(fitting) > 1:
            raise SeveralFit
        return fitting[0] if fitting else None

    def get_user(self, user_id: Any) -> Member | None:
        return Member.objects.filter(pk=user_id).first()


def members_who_fit(*, email: str, password: str, slug: str = "") -> list[Member]:
    """The members of this address who may sign in, and have this password.

    An address that is nobody's takes as long as one that is somebody's: one hash.
    """
    rows = at_slug(Member.objects.filter(email=as_address(email)), slug)
    members = [row for row in rows.select_related("organization") if may_sign_in(row)]
    if not members:
        make_password(password)
    return [member for member in members if member.check_password(password)]


def may_sign_in(member: Member) -> bool:
    """Staff, active, not deleted, and of an organization that is not deleted either."""
    if not (member.is_active and member.is_staff) or member.is_deleted:
        return False
    return member.organization is None or not member.organization.is_deleted


def note_sign_in(*, email: str, slug: str = "", succeeded: bool, actor: Actor) -> None:
    """Writes who signed in, or tried to, from outside a context.

    It stands in the log of the member's organization, an attempt in that of each organization that
    has a member of this address; an attempt under an unknown one, and a platform superuser, in no
    organization's.
    """
    rows = at_slug(Member.objects.filter(email=as_address(email)), slug)
    if succeeded:
        rows = Member.objects.filter(pk=actor.id)
    status = AuditEvent.Status.SUCCESS if succeeded else AuditEvent.Status.FAILURE
    for member_id, organization_id in list(rows.values_list("pk", "organization")) or [
        (None, None)
    ]:
        with tenant(organization_id) if organization_id else nullcontext():
            record_event(
                organization=organization_id,
                actor=actor,
                action="signed_in",
                resource_type="member",
                resource_id=member_id,
                status=status,
            )
