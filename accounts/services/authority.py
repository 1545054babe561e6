"""Who may change whom: nobody grants or revokes permissions that they do not have themselves.

The same rules for members and keys, at every door.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from django.db import transaction

from accounts.actors import Actor
from accounts.errors import Conflict, Forbidden
from accounts.models import Member, Organization
from accounts.roles import MANAGE_ROLES, PERMISSIONS, Role

_SHOWN = 3  # missing permissions in a message


def refuse_missing(actor: Actor, permissions: Collection[str], *, whose: str) -> None:
    """Raises: Forbidden, if `actor` lacks some of these. `whose` is the subject of the message."""
    missing = sorted(set(permissions) - actor.permissions)
    if missing:
        rest = len(missing) - _SHOWN
        more = f" and {rest} more" if rest > 0 else ""
        raise Forbidden(
            f"{whose} has permissions that you lack: {', '.join(missing[:_SHOWN])}{more}."
        )


def check_may_change(actor: Actor, member: Member) -> None:
    """Raises: Forbidden, if the member has permissions that the actor lacks."""
    refuse_missing(actor, member.permissions, whose=f"The role {member.role}")


def check_may_assign(actor: Actor, role: str) -> None:
    """Whoever creates, restores or deletes a member, or lets one sign in again, assigns or revokes
    a role. Only viewer, the lowest, does not need `roles:manage`. Raises: Forbidden."""
    if role != Role.VIEWER and not actor.may(MANAGE_ROLES):
        raise Forbidden(
            f"Assigning or revoking the role {role} needs the permission {MANAGE_ROLES}."
        )
    # (An unknown role is refused when the values are checked.)
    refuse_missing(actor, PERMISSIONS.get(role, ()), whose=f"The role {role}")


@contextmanager
def keep_an_owner(organization: Organization | None) -> Iterator[None]:
    """Rolls the change back if it leaves the organization without an owner who can sign in. Changes
    of the members of one organization wait for each other here.

    Raises: Conflict.
    """
    if organization is None:  # platform superusers
        yield
        return
    with transaction.atomic():
        rows = Organization.objects.filter(pk=organization.pk)
        rows.select_for_update(no_key=True).first()  # (rows that refer to it need not wait)
        owners = Member.objects.for_organization(organization).live()
        owners = owners.filter(role=Role.OWNER, is_active=True, is_staff=True)
        has_owner = owners.exists()
        yield
        if has_owner and not owners.exists():
            raise Conflict(
                "This is the last active owner: make another member an owner first.",
                code="last_owner",
            )
