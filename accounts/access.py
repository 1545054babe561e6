"""From a name, an address or a key to the organization: the only look-ups outside a context."""

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

USE_NOTED_EVERY = timedelta(minutes=1)
PLATFORM = "-"  # where a slug is asked for; no organization can have it


class KeyHolder(NamedTuple):
    """What a key opens, and whether its last use is to be noted again (services/keys.py)."""

    organization: Organization
    actor: Actor
    is_stale: bool


def organization_by_slug(slug: str) -> Organization:
    """Raises: NotFound, also for a deleted one."""
    organization = Organization.objects.live().filter(slug=slug).first()
    if organization is None:
        raise NotFound(f"There is no organization {slug!r}: `create_organization {slug}` makes it.")
    return organization


def organization_by_id(organization_id: UUID) -> Organization:
    """Raises: NotFound, also for a deleted one."""
    organization = Organization.objects.live().filter(pk=organization_id).first()
    if organization is None:
        raise NotFound
    return organization


def member_by_email(email: str, *, slug: str = "") -> Member:
    """The member of this address, of the organization of this slug (`at_slug`).

    Raises: NotFound, also for a deleted or inactive one, or one of a deleted organization;
    Conflict (several organizations have such a member, and no slug is given).
    """
    members = Member.objects.live().exclude(organization__is_deleted=True)
    rows = at_slug(members.filter(email=as_address(email), is_active=True), slug)
    found = list(rows.select_related("organization"))
    if not found:
        raise NotFound(f"There is no active member {email!r}{slug and ' of ' + slug}.")
    if len(found) > 1:
        slugs = sorted(row.organization.slug if row.organization else PLATFORM for row in found)
        raise Conflict(f"{email!r} is a member of several: say which, {' or '.join(slugs)}.")
    return found[0]


def at_slug(members: Any, slug: str) -> Any:
    """Those of the organization of this slug, the platform's own for "-"; without one all of them:
    an address may be known to several."""
    if not slug:
        return members
    if slug == PLATFORM:
        return members.filter(organization=None)
    return members.filter(organization__slug=slug.strip().lower())


def as_address(text: str) -> str:
    """As addresses are kept: in lower case. A text that no column could hold is nobody's."""
    return "" if "\0" in text else text.strip().lower()


def member_actor(member: Member) -> Actor:
    return Actor(kind="member", name=member.email, id=member.pk, permissions=member.permissions)


def hash_key(key: str) -> bytes:
    """What is kept of an API key. 256 random bits need no salt and no slow hash."""
    return hashlib.sha256(key.encode()).digest()


def authenticate_key(key: str) -> KeyHolder | None:
    """Whose key it is; None for an unknown, revoked or expired one, or one of a member who left.

    A member's key opens at most what the role allows now. Two statements.
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
    is_stale = last_used_at is None or last_used_at < timezone.now() - USE_NOTED_EVERY
    return KeyHolder(Organization.objects.get(pk=organization_id), actor, is_stale)
