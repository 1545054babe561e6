"""Who is acting, and from where: determined once at the door, passed to every service."""

from dataclasses import dataclass, replace
from typing import Literal, Self
from uuid import UUID

from accounts.roles import ALL_PERMISSIONS

ActorKind = Literal["member", "api_key", "command", "system"]


@dataclass(frozen=True, slots=True)
class Actor:
    """The member, key or command that makes a change; `id` is written to the audit columns."""

    kind: ActorKind
    name: str
    id: UUID | None = None
    permissions: frozenset[str] = frozenset()
    request_id: str = ""
    ip: str | None = None
    user_agent: str = ""

    def may(self, permission: str) -> bool:
        """Whether the actor has this permission."""
        return permission in self.permissions

    def at(self, *, request_id: str, ip: str | None, user_agent: str) -> Self:
        """The same actor with the origin of a request."""
        return replace(
            self, request_id=request_id, ip=ip, user_agent=user_agent.replace("\0", "")[:300]
        )


def command_actor(name: str) -> Actor:
    """The operator of the machine, running `manage.py <name>`: may do everything."""
    return Actor(kind="command", name=name, permissions=frozenset(ALL_PERMISSIONS))
