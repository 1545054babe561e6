"""The database roles, and connections as the owner.

agentmem_owner  owns the tables: migrations, backups, test databases.
agentmem_app    the application, its commands and its tests; obeys the walls, owns nothing.
agentmem_admin  cannot sign in; the application switches to it for work across organizations.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from django.db import OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper

OWNER = "agentmem_owner"
APPLICATION = "agentmem_app"
ADMIN = "agentmem_admin"


@contextmanager
def as_owner(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Connects as the owner inside the block, and as the application after it.

    Without an OWNER in the settings, the connection stays as it is: DATABASE_URL is the owner's.
    (If both are the same role, the site refuses to serve: checks.py.)
    """
    owner = connection.settings_dict.get("OWNER") or {}
    if not owner.get("USER") or connection.settings_dict["USER"] == owner["USER"]:
        yield
        return
    kept = {key: connection.settings_dict[key] for key in owner}
    connection.close()
    connection.settings_dict.update(_unpooled(owner))
    try:
        yield
    finally:
        connection.close()
        connection.settings_dict.update(kept)


@contextmanager
def owner_beside(connection: BaseDatabaseWrapper) -> Iterator[BaseDatabaseWrapper | None]:
    """A second connection as the owner, in autocommit; None if this process has no such role.

    `connection` stays as it is, and so do those of other threads, which share its settings.
    """
    beside = connection.copy()
    owner = beside.settings_dict.get("OWNER") or {}
    beside.settings_dict.update(_unpooled(owner if owner.get("USER") else beside.settings_dict))
    try:
        yield beside if _is_owner(beside) else None
    finally:
        beside.close()


def _unpooled(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without a connection pool: the pool's connections are the application's."""
    options = settings["OPTIONS"]
    return {**settings, "OPTIONS": {k: v for k, v in options.items() if k != "pool"}}


def _is_owner(connection: BaseDatabaseWrapper) -> bool:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_has_role(%s, 'USAGE')", [OWNER])
            return bool(cursor.fetchone()[0])
    except OperationalError:  # a wrong URL counts as none
        return False
