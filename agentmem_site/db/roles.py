"""The database roles, and how the owner's place is taken for a while.

agentmem_owner  owns the tables: migrations, backups, test databases.
agentmem_app    the application, its commands and its tests; obeys the walls, owns nothing.
agentmem_admin  nobody signs in as it; the application enters it for work across organizations.
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
    """Connects as the owner inside the block, as the application again after it.

    Without an OWNER in the settings the connection stays as it is: then DATABASE_URL is the
    owner's already (a database server where both are one refuses to serve: checks.py).
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
    """A second connection, in autocommit, as the owner; None where this process cannot be that.

    `connection` stays as it is, and with it those of other threads, whose settings are the same
    object: for processes that go on meanwhile.
    """
    beside = connection.copy()
    owner = beside.settings_dict.get("OWNER") or {}
    beside.settings_dict.update(_unpooled(owner if owner.get("USER") else beside.settings_dict))
    try:
        yield beside if _is_owner(beside) else None
    finally:
        beside.close()


def _unpooled(settings: Mapping[str, Any]) -> dict[str, Any]:
    """(A pool holds the application's connections.)"""
    options = settings["OPTIONS"]
    return {**settings, "OPTIONS": {k: v for k, v in options.items() if k != "pool"}}


def _is_owner(connection: BaseDatabaseWrapper) -> bool:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_has_role(%s, 'USAGE')", [OWNER])
            return bool(cursor.fetchone()[0])
    except OperationalError:  # the URL is wrong: it is as if there were none
        return False
