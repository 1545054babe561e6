"""Finds the organization of a slug, an address or a key: the only look-ups outside a context."""

import hashlib
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connection
from django.utils import timezone

from accounts.actors import Actor
from accounts.errors import Conflict, NotFound
from accounts.models import Member, Organization
from accounts.roles import PERMISSIONS

LAST_USED_EVERY = timedelta(minutes=1)
PLATFORM = "-"  # in place of a slug; no organization can have it


class KeyHolder(NamedTuple):
    """A key's organization and actor, and whether `last_used_at` is due (services/keys.py)."""

    organization: Organization
    actor: Actor
    is_use_due: bool


def organization_by_slug(slug: str) -> Organization:
    """Raises: NotFound, also for a deleted one."""
    organization = Organization.objects.live().filter(slug=slug).first()
    if organization is None:
        raise NotFound(
            f"There is no organization {slug!r}. To create it: `create_organization {slug}`."
        )
    return organization


def organization_by_id(organization_id: UUID) -> Organization:
    """Raises: NotFound, also for a deleted one."""
    organization = Organization.objects.live().filter(pk=organization_id).first()
    if organization is None:
        raise NotFound
    return organization


def member_by_email(email: str, *, slug: str = "") -> Member:
    """The member with this address, in the organization with this slug (`filter_by_slug`).

    Raises: NotFound (also if the member is inactive, or the member or organization is deleted),
    Conflict (several organizations have such a member, and no slug is given).
    """
    members = Member.objects.live().exclude(organization__is_deleted=True)
    rows = filter_by_slug(members.filter(email=normalized_email(email), is_active=True), slug)
    matches = list(rows.select_related("organization"))
    if not matches:
        raise NotFound(f"There is no active member {email!r}{slug and ' of ' + slug}.")
    if len(matches) > 1:
        slugs = sorted(row.organization.slug if row.organization else PLATFORM for row in matches)
        raise Conflict(
            f"{email!r} is a member of several organizations: name one of {', '.join(slugs)}."
        )
    return matches[0]


def filter_by_slug(members: Any, slug: str) -> Any:
    """The members of the organization with this slug; platform superusers for "-"; all for ""."""
    if not slug:
        return members
    if slug == PLATFORM:
        return members.filter(organization=None)
    return members.filter(organization__slug=slug.strip().lower())


def normalized_email(text: str) -> str:
    """As addresses are stored: in lower case. Empty for text that no column can hold."""
    return "" if "\0" in text else text.strip().lower()


def member_actor(member: Member) -> Actor:
    return Actor(kind="member", name=member.email, id=member.pk, permissions=member.permissions)


def hash_key(key: str) -> bytes:
    """The stored hash of an API key. 256 random bits need no salt and no slow hash."""
    return hashlib.sha256(key.encode()).digest()


def authenticate_key(key: str) -> KeyHolder | None:
    """The holder of a key; None if it is unknown, revoked or expired, or its member is inactive.

    A member's key is limited to what the role allows now. Two statements.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM agentmem_find_api_key(%s)", [hash_key(key)])
        row = cursor.fetchone()
    if row is None:
        return None
    key_id, organization_id, name, scopes, last_used_at, role = row
    permissions = frozenset(scopes)
    if role is not None:
        permissions &= PERMISSIONS[role]
    actor = Actor(kind="api_key", name=name, id=key_id, permissions=permissions)
    is_use_due = last_used_at is None or last_used_at < timezone.now() - LAST_USED_EVERY
    return KeyHolder(Organization.objects.get(pk=organization_id), actor, is_use_due)
