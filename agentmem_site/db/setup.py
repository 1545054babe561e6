"""Creates what only a superuser can: roles, database, extension, template. Idempotent."""

from collections.abc import Callable
from typing import Any

import psycopg
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import sql

from agentmem_site.db.quiet import QUIET
from agentmem_site.db.refusals import cannot_connect
from agentmem_site.db.roles import ADMIN, APPLICATION, OWNER
from agentmem_site.db.urls import Settings, connection_parameters

TEMPLATE = "agentmem_template"


class SetupRefused(Exception):
    """AgentMem cannot use this PostgreSQL."""


def setup_database(*, superuser: Settings, owner: Settings, application: Settings) -> list[str]:
    """Creates what is missing for `application["NAME"]`, and sets the passwords.

    Returns the log settings that this sign-in may not set for the roles: hosted PostgreSQL gives
    nobody a true superuser. Then these must be set on the server.

    Raises:
        SetupRefused: the server is older than 16 or lacks pgvector 0.8.
        psycopg.Error: the server refused.
    """
    with _connect(superuser) as connection:
        if connection.info.server_version < 160000:
            raise SetupRefused("AgentMem needs PostgreSQL 16 or newer; this server is older.")
        _make_roles(connection, owner, application)
        unset = _make_quiet(connection, {owner["USER"], application["USER"]})
        for name in (TEMPLATE, application["NAME"]):
            _make_database(connection, name, owner["USER"])
        connection.execute(
            sql.SQL("ALTER DATABASE {} WITH IS_TEMPLATE true").format(sql.Identifier(TEMPLATE))
        )
    for name in (TEMPLATE, application["NAME"]):
        with _connect({**superuser, "NAME": name}) as connection:
            _make_extension(connection)
    return unset


def prepare_embedded(connection: Callable[[str], Settings]) -> Callable[[Settings], None]:
    """The function that the embedded server calls with its superuser's connection once it runs.
    `connection` returns that of a role."""

    def prepare(superuser: Settings) -> None:
        setup_database(
            superuser=superuser,
            owner=connection(OWNER),
            application=connection(APPLICATION),
        )

    return prepare


def _connect(settings: Settings) -> "psycopg.Connection[Any]":
    parameters = {"connect_timeout": 5, **connection_parameters(settings)}
    try:
        return psycopg.connect(**parameters, autocommit=True)
    except psycopg.OperationalError as error:
        raise cannot_connect(error, settings, "The superuser's sign-in") from error


def _make_roles(
    connection: "psycopg.Connection[Any]", owner: Settings, application: Settings
) -> None:
    """Creates the three roles. A sign-in with another name becomes a member of its role."""
    existing = {name for (name,) in connection.execute("SELECT rolname FROM pg_roles")}
    wanted = {
        OWNER: sql.SQL("NOLOGIN CREATEDB"),
        APPLICATION: sql.SQL("NOLOGIN NOSUPERUSER NOBYPASSRLS"),
        ADMIN: sql.SQL("NOLOGIN NOSUPERUSER NOBYPASSRLS"),
    }
    for name, attributes in wanted.items():
        if name not in existing:
            connection.execute(
                sql.SQL("CREATE ROLE {} WITH {}").format(sql.Identifier(name), attributes)
            )
    for role, sign_in in ((OWNER, owner), (APPLICATION, application)):
        # A plain password could appear in the server's log and in pg_stat_activity.
        verifier = connection.pgconn.encrypt_password(
            sign_in["PASSWORD"].encode(), sign_in["USER"].encode(), b"scram-sha-256"
        )
        verb = "ALTER" if sign_in["USER"] in existing | set(wanted) else "CREATE"
        connection.execute(
            sql.SQL("{} ROLE {} WITH LOGIN PASSWORD {}").format(
                sql.SQL(verb), sql.Identifier(sign_in["USER"]), sql.Literal(verifier.decode())
            )
        )
        if sign_in["USER"] != role:
            connection.execute(
                sql.SQL("GRANT {} TO {}").format(
                    sql.Identifier(role), sql.Identifier(sign_in["USER"])
                )
            )
    # INHERIT FALSE: only SET ROLE enters it. If it were inherited, its policy would open all walls.
    connection.execute(
        sql.SQL("GRANT {} TO {} WITH INHERIT FALSE, SET TRUE").format(
            sql.Identifier(ADMIN), sql.Identifier(application["USER"])
        )
    )


def _make_quiet(connection: "psycopg.Connection[Any]", sign_ins: set[str]) -> list[str]:
    """Keeps data out of the server's log. Returns the settings that this sign-in may not set."""
    unset = []
    for name, value in QUIET.items():
        statement = sql.SQL("ALTER ROLE {} SET {} = {}")
        try:
            for sign_in in sorted(sign_ins):
                connection.execute(
                    statement.format(sql.Identifier(sign_in), sql.Identifier(name), value)
                )
        except psycopg.errors.InsufficientPrivilege:
            unset.append(name)
    return unset


def _make_database(connection: "psycopg.Connection[Any]", name: str, owner: str) -> None:
    exists = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone()
    if not exists:
        connection.execute(
            sql.SQL("CREATE DATABASE {} OWNER {}").format(
                sql.Identifier(name), sql.Identifier(owner)
            )
        )


def _make_extension(connection: "psycopg.Connection[Any]") -> None:
    [(version, available)] = connection.execute(_EXTENSION).fetchall()
    if version is None and available is None:
        raise SetupRefused(_NOT_INSTALLED)
    connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    [(version, available)] = connection.execute(_EXTENSION).fetchall()
    if fault := _fault_of(version, available):
        raise SetupRefused(fault)


# pgvector's version in this database, and the one that the server could create.
_EXTENSION = (
    "SELECT (SELECT extversion FROM pg_extension WHERE extname = 'vector'), "
    "(SELECT default_version FROM pg_available_extensions WHERE name = 'vector')"
)
_NOT_INSTALLED = (
    "PostgreSQL has no pgvector: install version 0.8 or newer on its machine (Debian: the package "
    "postgresql-18-pgvector), then run `manage.py setup_database`."
)


def vector_fault(connection: BaseDatabaseWrapper) -> str | None:
    """One sentence on what is wrong with pgvector in this database, or None. One statement.

    Raises: django.db.Error.
    """
    with connection.cursor() as cursor:
        cursor.execute(_EXTENSION)
        return _fault_of(*cursor.fetchone())


def _fault_of(version: str | None, available: str | None) -> str | None:
    if version is None and available is None:
        return _NOT_INSTALLED
    if version is None:
        return (
            "The database has no pgvector: run `manage.py setup_database`, or in it, as a "
            "superuser, CREATE EXTENSION vector."
        )
    if tuple(int(part) for part in version.split(".")[:2]) < (0, 8):
        return (
            f"The database has pgvector {version}, and AgentMem needs 0.8 or newer: install it, "
            "then run ALTER EXTENSION vector UPDATE as a superuser."
        )
    return None
