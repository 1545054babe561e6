"""Roles and their permissions, for the API, the console and the commands."""

from django.db import models


class Role(models.TextChoices):
    OWNER = "owner", "Owner"
    ADMIN = "admin", "Admin"
    USER = "user", "User"
    VIEWER = "viewer", "Viewer"


RESOURCES = ("memory", "session", "agent", "user", "organization")
MANAGE_ROLES = "roles:manage"
MANAGE_KEYS = "keys:manage"
MANAGE_MEMBERS = "members:manage"
VIEW_AUDIT = "audit:read"
SET_RETENTION = "organization:retention"  # its rules delete rows automatically


def permission(resource: str, verb: str) -> str:
    """`memory`, `read` -> "memory:read": a permission of a role, a scope of a key."""
    return f"{resource}:{verb}"


_READ = frozenset(permission(resource, "read") for resource in RESOURCES)
_ALL = frozenset(
    permission(resource, verb) for resource in RESOURCES for verb in ("read", "write", "delete")
) | {MANAGE_ROLES, MANAGE_KEYS, MANAGE_MEMBERS, VIEW_AUDIT, SET_RETENTION}

PERMISSIONS: dict[str, frozenset[str]] = {
    Role.OWNER: _ALL,
    Role.ADMIN: _ALL,
    Role.USER: _READ
    | {permission(resource, verb) for resource in ("memory", "session") for verb in ("write",)},
    Role.VIEWER: _READ,
}
ALL_PERMISSIONS = tuple(sorted(_ALL))
