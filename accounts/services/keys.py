"""API keys: issued once, shown once, revoked at any time."""

import secrets
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from django.db.models import Q
from django.utils import timezone

from accounts.access import USE_NOTED_EVERY, hash_key
from accounts.actors import Actor
from accounts.errors import Forbidden
from accounts.models import ApiKey, Member, Organization
from accounts.roles import ALL_PERMISSIONS
from accounts.services.authority import refuse_more_than_held
from accounts.services.records import Records


class KeyRecords(Records[ApiKey]):
    """Nobody acts on a key that opens more than they may do (restored, it opens it again)."""

    def before_update(
        self, record: ApiKey, values: Any, *, organization: Organization, actor: Actor
    ) -> None:
        _may_act_on(actor, record.scopes)

    def before_move(self, rows: Any, *, organization: Organization, actor: Actor) -> None:
        for scopes in rows.order_by().values_list("scopes", flat=True):
            _may_act_on(actor, scopes)


def _may_act_on(actor: Actor, scopes: Iterable[str]) -> None:
    # (A word that has gone since opens nothing.)
    refuse_more_than_held(actor, set(scopes) & {*ALL_PERMISSIONS}, whose="This key")


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
    """The stored key and the secret itself, which is shown now and never again.

    Raises:
        Forbidden: a scope that the actor does not have, or that the member's role lacks.
    """
    wanted = sorted(set(scopes))
    missing = [scope for scope in wanted if not actor.may(scope)]
    if missing:
        raise Forbidden(f"You cannot give what you do not have: {', '.join(missing)}.")
    beyond = [scope for scope in wanted if member and scope not in member.permissions]
    if member is not None and beyond:
        raise Forbidden(
            f"A key opens at most what its member's role ({member.role}) allows, which is not: "
            f"{', '.join(beyond)}."
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
    """The key opens nothing from the next request on."""
    values = {"revoked_at": timezone.now()}
    return api_keys.update(key, organization=organization, actor=actor, values=values)


def note_use(actor: Actor, *, organization: Organization) -> None:
    """Moves last_used_at of the actor's key, at most once a minute.

    Where another request is noting it already nobody waits: that lock lasts as long as its
    transaction.
    """
    now = timezone.now()
    stale = Q(last_used_at__isnull=True) | Q(last_used_at__lt=now - USE_NOTED_EVERY)
    keys = ApiKey.objects.for_organization(organization)
    free = keys.filter(stale, pk=actor.id).select_for_update(skip_locked=True)
    keys.filter(pk__in=free.values("pk")).update(last_used_at=now)
