"""Checks in the database that the walls between organizations are closed.

Checks tagged `database` run only with `manage.py check --database default`. The server's start and
/health/ready call `database_faults`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import connections

from agentmem_site.db import quiet
from agentmem_site.db.fields import OrganizationKey
from agentmem_site.db.roles import ADMIN, APPLICATION
from agentmem_site.db.routines import installed_routines, stale_routines
from agentmem_site.db.walls import CONTEXT, TenantWall

# The session user, whatever SET ROLE has set. Inheriting (USAGE) another role is enough to have its
# privileges: its tables, its policies.
_ROLE = """
SELECT rolname, rolsuper, rolbypassrls, EXISTS (
    SELECT FROM pg_roles AS admin
    WHERE admin.rolname = %s AND pg_has_role(session_user, admin.oid, 'USAGE'))
FROM pg_roles WHERE rolname = session_user
"""
_TABLES = """
SELECT wanted.name, c.oid IS NOT NULL, c.relrowsecurity,
    pg_has_role(session_user, c.relowner, 'USAGE'),
    ARRAY(
        SELECT concat_ws(' ', p.polname, p.polcmd, p.polroles::regrole[],
            pg_get_expr(p.polqual, c.oid), pg_get_expr(p.polwithcheck, c.oid))
        FROM pg_policy AS p WHERE p.polrelid = c.oid)
FROM unnest(%s::text[]) AS wanted (name)
LEFT JOIN pg_class AS c ON c.oid = to_regclass(quote_ident(wanted.name))
"""
_OF_CONTEXT = (
    f"(organization_id = (NULLIF(current_setting('{CONTEXT}'::text, true), ''::text))::uuid)"
)


def database_faults(alias: str = "default") -> list[str]:
    """The reasons not to serve from this database; empty if there are none. Two statements.

    Raises: django.db.Error, if the database cannot be queried.
    """
    walls = {
        model._meta.db_table: next(
            (c for c in model._meta.constraints if isinstance(c, TenantWall)), None
        )
        for model in apps.get_models()
        if any(isinstance(field, OrganizationKey) for field in model._meta.local_fields)
    }
    with connections[alias].cursor() as cursor:
        cursor.execute(_ROLE, [ADMIN])
        faults = list(_faults_of_role(*cursor.fetchone()))
        cursor.execute(_TABLES, [list(walls)])
        tables = cursor.fetchall()
    if not faults:  # (a superuser owns every table)
        faults += _faults_of_owner(tables)
    return [*faults, *_faults_of_tables(tables, walls)]


def database_warnings(alias: str = "default") -> list[str]:
    """What should be fixed, but does not stop the server. One statement.

    Raises: django.db.Error, if the database cannot be queried.
    """
    with connections[alias].cursor() as cursor:
        cursor.execute(quiet.CURRENT_SETTINGS)
        loud = quiet.loud(dict(zip(quiet.QUIET, cursor.fetchone(), strict=True)))
    if not loud:
        return []
    remedy = "run `manage.py setup_database` again, or set them for the server"
    if settings.EMBEDDED_SERVER is not None:
        remedy = "restart the embedded server (`manage.py database stop`)"
    return [
        f"The log of PostgreSQL may hold statements and what people said ({', '.join(loud)}): "
        f"{remedy} (docs/operations.md)."
    ]


def _faults_of_role(role: str, is_superuser: bool, bypasses: bool, is_admin: bool) -> Iterator[str]:
    if is_superuser:
        yield f"{role} is a superuser and bypasses the walls: use the application's role."
    elif bypasses:
        yield f"{role} bypasses row-level security: run ALTER ROLE {role} NOBYPASSRLS."
    elif is_admin:
        yield f"{role} inherits {ADMIN}, which opens all walls: GRANT it WITH INHERIT FALSE."


def _faults_of_owner(tables: Sequence[Any]) -> Iterator[str]:
    owned = [table for table, _, _, is_owned, _ in tables if is_owned]
    if owned:
        yield (
            f"The role of DATABASE_URL owns {_named(owned)}, and owners bypass the walls: use the "
            "application's role there, and the owner in DATABASE_OWNER_URL."
        )


def _faults_of_tables(tables: Sequence[Any], walls: dict[str, TenantWall | None]) -> Iterator[str]:
    missing = [table for table, exists, *_ in tables if not exists]
    if missing:
        yield f"There is no {_named(missing)}: run `manage.py migrate`."
    open_ones = [
        table
        for table, exists, is_walled, _, policies in tables
        if exists and not (is_walled and set(policies) == _wanted(walls[table]))
    ]
    if open_ones:
        yield (
            f"The wall of {_named(open_ones)} is open: row-level security is off, or the policies "
            "are not those of the migrations."
        )


def _wanted(wall: TenantWall | None) -> set[str]:
    if wall is None:
        return {"a TenantWall among the model's constraints"}
    policies = {
        f"{wall.name} * {{{APPLICATION}}} {_OF_CONTEXT}",
        f"{wall.name}_admin * {{{ADMIN}}} true",
    }
    if wall.admits_orphans:
        policies.add(f"{wall.name}_orphans a {{{APPLICATION}}} (organization_id IS NULL)")
    return policies


def _named(tables: list[str]) -> str:
    more = f" and {len(tables) - 3} more" if len(tables) > 3 else ""
    return ", ".join(sorted(tables)[:3]) + more


@register(Tags.database)
def check_walls(databases: Sequence[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    return [
        Error(fault, id="agentmem.E001")
        for alias in databases or ()
        for fault in database_faults(alias)
    ]


@register(Tags.database)
def check_log(databases: Sequence[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    return [
        Warning(warning, id="agentmem.W001")
        for alias in databases or ()
        for warning in database_warnings(alias)
    ]


@register(Tags.database)
def check_routines(databases: Sequence[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Routines that are not as in their files: missing, or changed by hand or another version."""
    routines = installed_routines()
    stale = [
        name for alias in databases or () for name in stale_routines(connections[alias], routines)
    ]
    if not stale:
        return []
    return [
        Error(
            f"Not in the database as in its file: {_named(stale)}.",
            hint="Run `manage.py migrate`.",
            id="agentmem.E002",
        )
    ]
