"""The database roles, and how the owner's place is taken for a while.

agentmem_owner  owns the tables: migrations, backups, test databases.
agentmem_app    the application, its commands and its tests; obeys the walls, owns nothing.
agentmem_admin  nobody signs in as it; the application enters it for work across organizations.
"""

from collections.abc import Iterator
from contextlib import contextmanager

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
    kept_options = connection.settings_dict["OPTIONS"]
    connection.close()
    connection.settings_dict.update(owner)
    # A pool holds the application's connections.
    connection.settings_dict["OPTIONS"] = {k: v for k, v in kept_options.items() if k != "pool"}
    try:
        yield
    finally:
        connection.close()
        connection.settings_dict.update(kept)
        connection.settings_dict["OPTIONS"] = kept_options
