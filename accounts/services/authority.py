"""Who may act on whom: nobody gives, or takes from another, more than they hold themselves.

One rule book for members and keys, whichever door they come to.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from django.db import transaction

from accounts.actors import Actor
from accounts.errors import Conflict, Forbidden
from accounts.models import Member, Organization
from accounts.roles import MANAGE_ROLES, PERMISSIONS, Role

_SHOWN = 3  # of the permissions that somebody lacks


def refuse_more_than_held(actor: Actor, permissions: Collection[str], *, whose: str) -> None:
    """Raises: Forbidden, where `actor` lacks some of these. `whose` begins the sentence."""
    missing = sorted(set(permissions) - actor.permissions)
    if missing:
        rest = len(missing) - _SHOWN
        more = f" and {rest} more" if rest > 0 else ""
        raise Forbidden(f"{whose} allows what you may not do: {', '.join(missing[:_SHOWN])}{more}.")


def may_act_on(actor: Actor, member: Member) -> None:
    """Raises: Forbidden, of a member who may do what the actor may not."""
    refuse_more_than_held(actor, member.permissions, whose=f"The role {member.role}")


def may_give_role(actor: Actor, role: str) -> None:
    """Making, restoring or dismissing a member, letting one sign in anew: all of these give or
    take the role. The least one, viewer, needs no `roles:manage`. Raises: Forbidden."""
    if role != Role.VIEWER and not actor.may(MANAGE_ROLES):
        raise Forbidden("Only who manages roles may give or take one.")
    # (One that there is not is refused with the values.)
    refuse_more_than_held(actor, PERMISSIONS.get(role, ()), whose=f"The role {role}")


@contextmanager
def an_owner_stays(organization: Organization | None) -> Iterator[None]:
    """The change within is taken back where it leaves an organization without the last owner who
    can sign in. Changes of an organization's members wait for each other here.

    Raises: Conflict.
    """
    if organization is None:  # the superusers'
        yield
        return
    with transaction.atomic():
        rows = Organization.objects.filter(pk=organization.pk)
        rows.select_for_update(no_key=True).first()  # (what refers to it need not wait)
        owners = Member.objects.for_organization(organization).live()
        owners = owners.filter(role=Role.OWNER, is_active=True, is_staff=True)
        has_owner = owners.exists()
        yield
        if has_owner and not owners.exists():
            raise Conflict(
                "This is the last active owner: make another member owner first.",
                code="last_owner",
            )
