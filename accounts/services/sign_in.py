"""Signing in to the console, and its audit events."""

from contextlib import nullcontext
from typing import Any

from django.contrib.auth.backends import BaseBackend
from django.contrib.auth.hashers import make_password

from accounts.access import filter_by_slug, normalized_email
from accounts.actors import Actor
from accounts.errors import Conflict
from accounts.models import AuditEvent, Member
from accounts.services.audit import record_event
from accounts.tenancy import tenant


class AmbiguousSignIn(Conflict):
    """This email and password belong to several organizations: name one of them."""


class MemberBackend(BaseBackend):
    """Django's authentication backend: by email and password, and by session."""

    def authenticate(  # type: ignore[override]
        self,
        request: Any,
        username: str | None = None,
        password: str | None = None,
        organization: str = "",
    ) -> Member | None:
        """Raises: AmbiguousSignIn."""
        if username is None or password is None:
            return None
        matches = matching_members(email=username, password=password, slug=organization)
        if len(matches) > 1:
            raise AmbiguousSignIn
        return matches[0] if matches else None

    def get_user(self, user_id: Any) -> Member | None:
        return Member.objects.filter(pk=user_id).first()


def matching_members(*, email: str, password: str, slug: str = "") -> list[Member]:
    """The members with this address and password who may sign in.

    An unknown address takes as long as a known one: one hash.
    """
    rows = filter_by_slug(Member.objects.filter(email=normalized_email(email)), slug)
    members = [row for row in rows.select_related("organization") if may_sign_in(row)]
    if not members:
        make_password(password)
    return [member for member in members if member.check_password(password)]


def may_sign_in(member: Member) -> bool:
    """Staff and active, and neither the member nor the organization is deleted."""
    if not (member.is_active and member.is_staff) or member.is_deleted:
        return False
    return member.organization is None or not member.organization.is_deleted


def record_sign_in(*, email: str, slug: str = "", succeeded: bool, actor: Actor) -> None:
    """Writes the audit event of a sign-in or a failed attempt. Called outside any context.

    A sign-in is logged in the member's organization, a failed attempt in each organization that has
    a member with this address. Unknown addresses and platform superusers have no organization.
    """
    rows = filter_by_slug(Member.objects.filter(email=normalized_email(email)), slug)
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
