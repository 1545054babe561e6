"""From a name, an address or a key to the organization: the only look-ups outside a context."""

import hashlib
from datetime import timedelta
from typing import NamedTuple
from uuid import UUID

from django.db import connection
from django.utils import timezone

from accounts.actors import Actor
from accounts.errors import NotFound
from accounts.models import Member, Organization

USE_NOTED_EVERY = timedelta(minutes=1)


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


def member_by_email(email: str) -> Member:
    """Raises: NotFound, also for a deleted or inactive one, or one of a deleted organization."""
    members = Member.objects.live().exclude(organization__is_deleted=True)
    member = members.filter(email=email.lower(), is_active=True).first()
    if member is None:
        raise NotFound(f"There is no active member {email!r}.")
    return member


def member_actor(member: Member) -> Actor:
    return Actor(kind="member", name=member.email, id=member.pk, permissions=member.permissions)


def hash_key(key: str) -> bytes:
    """What is kept of an API key. 256 random bits need no salt and no slow hash."""
    return hashlib.sha256(key.encode()).digest()


def authenticate_key(key: str) -> KeyHolder | None:
    """Whose key it is; None for an unknown, revoked or expired one. Two statements."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM agentmem_find_api_key(%s)", [hash_key(key)])
        row = cursor.fetchone()
    if row is None:
        return None
    key_id, organization_id, name, scopes, last_used_at = row
    actor = Actor(kind="api_key", name=name, id=key_id, permissions=frozenset(scopes))
    is_stale = last_used_at is None or last_used_at < timezone.now() - USE_NOTED_EVERY
    return KeyHolder(Organization.objects.get(pk=organization_id), actor, is_stale)
