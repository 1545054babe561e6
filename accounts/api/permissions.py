"""What a caller may do: the scopes that a view needs."""

from typing import Any

from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from accounts.errors import Forbidden
from accounts.roles import permission

_VERBS = {"GET": "read", "HEAD": "read", "DELETE": "delete"}
_VERBS_OF_ACTIONS = {"restore": "delete"}  # whoever may not delete may not undo a deletion


class HasScope(BasePermission):
    """A view declares its `resource` (memory, agent, ...), whose scope depends on the method, or
    one `scope` for all methods; and further scopes in `also`. A view with neither is closed."""

    message = "This key does not hold the scope {scope}."

    def has_permission(self, request: Request, view: Any) -> bool:
        if request.auth is None:
            return False
        needed = required_scopes(view, request.method or "")
        missing = [scope for scope in needed if not view.actor.may(scope)]
        self.message = type(self).message.format(scope=(*missing, "for this")[0])
        return bool(needed) and not missing


class AnyKey(BasePermission):
    """Anyone with a valid key, whatever its scopes."""

    def has_permission(self, request: Request, view: Any) -> bool:
        return request.auth is not None


def required_scopes(view: Any, method: str) -> tuple[str, ...]:
    """The scopes that the view needs, e.g. `memory:read`; empty if it declares none."""
    also = tuple(getattr(view, "also", ()))
    if scope := getattr(view, "scope", ""):
        return (str(scope), *also)
    resource = getattr(view, "resource", "")
    if not resource:
        return ()
    verb = _VERBS_OF_ACTIONS.get(getattr(view, "action", None) or "", _VERBS.get(method, "write"))
    return (permission(resource, verb), *also)


def read_scope(view: Any) -> str:
    """The scope that may read the rows of this view; empty if it declares none."""
    resource = getattr(view, "resource", "")
    return permission(resource, "read") if resource else str(getattr(view, "scope", ""))


def require(actor: Any, scope: str) -> None:
    """Checks a scope that depends on more than the route. Raises: Forbidden."""
    if not actor.may(scope):
        raise Forbidden(HasScope.message.format(scope=scope))
