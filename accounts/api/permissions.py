"""What a caller may do: the scopes that a view names, and an absent scope denies."""

from typing import Any

from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from accounts.errors import Forbidden
from accounts.roles import permission

_VERBS = {"GET": "read", "HEAD": "read", "DELETE": "delete"}
_VERBS_OF_ACTIONS = {"restore": "delete"}  # who may not delete does not undo it either


class HasScope(BasePermission):
    """A view names its `resource` (memory, agent, ...), whose scope follows from what is asked, or
    one `scope` for all of it; and those that it needs `also`. A view that names neither resource
    nor scope is closed."""

    message = "This key does not hold the scope {scope}."

    def has_permission(self, request: Request, view: Any) -> bool:
        if request.auth is None:
            return False
        needed = required_scopes(view, request.method or "")
        missing = [scope for scope in needed if not view.actor.may(scope)]
        self.message = type(self).message.format(scope=(*missing, "that would open this")[0])
        return bool(needed) and not missing


class AnyKey(BasePermission):
    """Whoever holds a key, whatever it opens."""

    def has_permission(self, request: Request, view: Any) -> bool:
        return request.auth is not None


def required_scopes(view: Any, method: str) -> tuple[str, ...]:
    """`memory:read`; empty where nothing is named."""
    also = tuple(getattr(view, "also", ()))
    if scope := getattr(view, "scope", ""):
        return (str(scope), *also)
    resource = getattr(view, "resource", "")
    if not resource:
        return ()
    verb = _VERBS_OF_ACTIONS.get(getattr(view, "action", None) or "", _VERBS.get(method, "write"))
    return (permission(resource, verb), *also)


def read_scope(view: Any) -> str:
    """What shows the rows of this view; empty where nothing is named."""
    resource = getattr(view, "resource", "")
    return permission(resource, "read") if resource else str(getattr(view, "scope", ""))


def require(actor: Any, scope: str) -> None:
    """For what depends on more than the route. Raises: Forbidden."""
    if not actor.may(scope):
        raise Forbidden(HasScope.message.format(scope=scope))
