"""API keys: issue, revoke, and record their use."""

import secrets
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from django.db.models import Q
from django.utils import timezone

from accounts.access import LAST_USED_EVERY, hash_key
from accounts.actors import Actor
from accounts.errors import Forbidden
from accounts.models import ApiKey, Member, Organization
from accounts.roles import ALL_PERMISSIONS
from accounts.services.authority import refuse_missing
from accounts.services.records import Records


class KeyRecords(Records[ApiKey]):
    """Nobody changes or restores a key that has permissions they lack."""

    def before_update(
        self, record: ApiKey, values: Any, *, organization: Organization, actor: Actor
    ) -> None:
        _check_may_change(actor, record.scopes)

    def before_move(self, rows: Any, *, organization: Organization, actor: Actor) -> None:
        for scopes in rows.order_by().values_list("scopes", flat=True):
            _check_may_change(actor, scopes)


def _check_may_change(actor: Actor, scopes: Iterable[str]) -> None:
    # (A permission that no longer exists grants nothing.)
    refuse_missing(actor, set(scopes) & {*ALL_PERMISSIONS}, whose="This key")


api_keys = KeyRecords(ApiKey)


def issue_key(
    *,
    organization: Organization,
    actor: Actor,
    name: str,
    scopes: Iterable[str],
    member: Member | None = None,
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """The stored key and the secret itself, which cannot be read again.

    Raises: Forbidden (a scope that the actor or the member's role lacks).
    """
    wanted = sorted(set(scopes))
    missing = [scope for scope in wanted if not actor.may(scope)]
    if missing:
        raise Forbidden(f"You cannot grant scopes that you do not have: {', '.join(missing)}.")
    beyond = [scope for scope in wanted if member and scope not in member.permissions]
    if member is not None and beyond:
        raise Forbidden(
            f"The role of the key's member ({member.role}) does not allow: {', '.join(beyond)}."
        )
    prefix = secrets.token_hex(4)
    secret = f"agm_{prefix}_{secrets.token_urlsafe(32)}"
    values = {
        "name": name,
        "prefix": f"agm_{prefix}",
        "hash": hash_key(secret),
        "scopes": wanted,
        "member": member,
        "expires_at": expires_at,
    }
    return api_keys.create(organization=organization, actor=actor, values=values), secret


def revoke_key(key: ApiKey, *, organization: Organization, actor: Actor) -> ApiKey:
    """Revokes the key: the next request with it is refused."""
    values = {"revoked_at": timezone.now()}
    return api_keys.update(key, organization=organization, actor=actor, values=values)


def record_use(actor: Actor, *, organization: Organization) -> None:
    """Sets last_used_at of the actor's key, at most once a minute.

    Skips a row that another request has locked: that lock lasts as long as its transaction.
    """
    now = timezone.now()
    stale = Q(last_used_at__isnull=True) | Q(last_used_at__lt=now - LAST_USED_EVERY)
    keys = ApiKey.objects.for_organization(organization)
    free = keys.filter(stale, pk=actor.id).select_for_update(skip_locked=True)
    keys.filter(pk__in=free.values("pk")).update(last_used_at=now)
