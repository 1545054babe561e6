"""What a caller may do: the scope that a view names, and an absent scope denies."""

from typing import Any

from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from accounts.roles import permission

_VERBS = {"GET": "read", "HEAD": "read", "DELETE": "delete"}


class HasScope(BasePermission):
    """A view names its `resource` (memory, agent, ...), whose scope follows from the method, or
    one `scope` for all methods. A view that names neither is closed."""

    message = "This key does not hold the scope {scope}."

    def has_permission(self, request: Request, view: Any) -> bool:
        if request.auth is None:
            return False
        scope = required_scope(view, request.method or "")
        self.message = type(self).message.format(scope=scope or "that would open this")
        return bool(scope) and view.actor.may(scope)


class AnyKey(BasePermission):
    """Whoever holds a key, whatever it opens."""

    def has_permission(self, request: Request, view: Any) -> bool:
        return request.auth is not None


def required_scope(view: Any, method: str) -> str:
    """`memory:read`; empty where nothing is named."""
    if scope := getattr(view, "scope", ""):
        return str(scope)
    resource = getattr(view, "resource", "")
    return permission(resource, _VERBS.get(method, "write")) if resource else ""
