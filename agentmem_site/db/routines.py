"""SQL routines as files: each `<app>/sql/NAME.sql` has one routine and its privileges.

`migrate` creates those that changed, in one transaction, as the owner. The table agentmem_routine
records each file and the definition created from it. Why: docs/decisions/0010.
"""

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import ProgrammingError, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations.base import Operation
from psycopg import errors, sql

from agentmem_site.db.roles import ADMIN, APPLICATION

# Line 1 of a file: the routine's name and the types of its arguments, and what it does.
_HEADER = re.compile(r"-- (?P<signature>(?P<name>\w+)\([^)]*\)): \S.*\n")
_COMMENT = re.compile(r"^--.*\n", re.MULTILINE)
_LOCK = 0x4167_4D65_6D52  # against concurrent migrations; any number would do

_TABLE = """
CREATE TABLE IF NOT EXISTS agentmem_routine (
    name text PRIMARY KEY,
    app text NOT NULL,
    checksum text NOT NULL,    -- of the file
    definition text NOT NULL,  -- of what PostgreSQL made of it
    created_at timestamptz NOT NULL DEFAULT statement_timestamp())
"""
_DEFINITIONS = """
SELECT p.proname, md5(string_agg(
    pg_get_functiondef(p.oid) || coalesce(p.proacl::text, ''), '' ORDER BY p.oid))
FROM pg_proc p
WHERE p.pronamespace = 'public'::regnamespace AND p.proname = ANY (%s)
GROUP BY p.proname
"""
_SAME_NAME = """
SELECT p.oid::regprocedure::text FROM pg_proc p
WHERE p.pronamespace = 'public'::regnamespace AND p.proname = %s
    AND p.oid IS DISTINCT FROM to_regprocedure(%s)
"""
_READ_ONLY = (
    f"REVOKE ALL ON agentmem_routine FROM {APPLICATION}, {ADMIN}",
    f"GRANT SELECT ON agentmem_routine TO {APPLICATION}, {ADMIN}",
)
_RECORD = """
INSERT INTO agentmem_routine (name, app, checksum, definition) VALUES (%s, %s, %s, %s)
ON CONFLICT (name) DO UPDATE SET app = EXCLUDED.app, checksum = EXCLUDED.checksum,
    definition = EXCLUDED.definition, created_at = EXCLUDED.created_at
"""


@dataclass(frozen=True, slots=True)
class Routine:
    """A routine's file. `signature` is in the format of regprocedure."""

    app: str
    name: str
    signature: str
    text: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def statements(self) -> Iterator[str]:
        """One by one: a cluster does not accept two in a string. A ; between $$ ends none."""
        statement = ""
        for number, part in enumerate(_COMMENT.sub("", self.text).split("$$")):
            if number % 2:
                statement += f"$${part}$$"
                continue
            *ends, start = part.split(";")
            for end in ends:
                yield (statement + end).strip()
                statement = ""
            statement += start


def installed_routines() -> list[Routine]:
    """The routines of all apps, in the order of INSTALLED_APPS. Raises: ImproperlyConfigured."""
    return [
        _read(app.label, path)
        for app in apps.get_app_configs()
        for path in sorted(Path(app.path, "sql").glob("*.sql"))
    ]


def _read(app: str, path: Path) -> Routine:
    text = path.read_text()
    header = _HEADER.match(text)
    if header is None or header["name"] != path.stem:
        raise ImproperlyConfigured(
            f"{path}: its first line must be `-- {path.stem}(types of the arguments): "
            "what it does`."
        )
    return Routine(app, path.stem, header["signature"], text)


def renew_routines(connection: BaseDatabaseWrapper, routines: Sequence[Routine]) -> list[str]:
    """Creates routines whose file or definition differs from the record, and drops those whose file
    is missing. Skips apps with unapplied migrations. Returns the names, in order.

    Called as the owner.
    """
    migrated = _migrated_apps(connection)
    wanted = {routine.name: routine for routine in routines if routine.app in migrated}
    with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        cursor.execute(_TABLE)
        _run(cursor, _READ_ONLY)
        # A routine may refer to one that is created after it.
        cursor.execute("SET LOCAL check_function_bodies = off")
        recorded = _recorded(cursor)
        removed = _removed(recorded, wanted, migrated)
        for name in removed:
            _drop(cursor, name)
            cursor.execute("DELETE FROM agentmem_routine WHERE name = %s", [name])
        changed = _changed(cursor, wanted.values(), recorded)
        for name in changed:
            _create(cursor, wanted[name])
        definitions = _definitions(cursor, changed)
        for name in changed:
            routine = wanted[name]
            values = [name, routine.app, routine.checksum, definitions[name]]
            cursor.execute(_RECORD, values)
    return [*removed, *changed]


def stale_routines(connection: BaseDatabaseWrapper, routines: Sequence[Routine]) -> list[str]:
    """The names of those that `renew_routines` would create or drop. Three statements."""
    migrated = _migrated_apps(connection)
    wanted = {routine.name: routine for routine in routines if routine.app in migrated}
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('agentmem_routine') IS NOT NULL")
        recorded = _recorded(cursor) if cursor.fetchone()[0] else {}
        removed = _removed(recorded, wanted, migrated)
        return [*removed, *_changed(cursor, wanted.values(), recorded)]


def _migrated_apps(connection: BaseDatabaseWrapper) -> set[str]:
    """Apps without unapplied migrations: only these have the tables that their routines use."""
    loader = MigrationLoader(connection)
    return {
        app
        for app in loader.migrated_apps
        if all(leaf in loader.applied_migrations for leaf in loader.graph.leaf_nodes(app))
    }


def _removed(
    recorded: Mapping[str, tuple[str, str, str]], wanted: Collection[str], apps: Collection[str]
) -> list[str]:
    return [n for n, (app, *_) in recorded.items() if app in apps and n not in wanted]


def _recorded(cursor: Any) -> dict[str, tuple[str, str, str]]:
    cursor.execute("SELECT name, app, checksum, definition FROM agentmem_routine ORDER BY name")
    return {name: (app, checksum, definition) for name, app, checksum, definition in cursor}


def _definitions(cursor: Any, names: Sequence[str]) -> dict[str, str]:
    cursor.execute(_DEFINITIONS, [list(names)])
    return dict(cursor.fetchall())


def _changed(
    cursor: Any, wanted: Collection[Routine], recorded: Mapping[str, tuple[str, str, str]]
) -> list[str]:
    definitions = _definitions(cursor, [routine.name for routine in wanted])
    return [
        routine.name
        for routine in wanted
        if recorded.get(routine.name)
        != (routine.app, routine.checksum, definitions.get(routine.name))
    ]


def _create(cursor: Any, routine: Routine) -> None:
    try:
        with transaction.atomic(using=cursor.db.alias):
            _run(cursor, routine.statements())
    except ProgrammingError as error:
        if not isinstance(error.__cause__, errors.InvalidFunctionDefinition):
            raise
        _drop(cursor, routine.name)  # OR REPLACE cannot change the return type
        _run(cursor, routine.statements())
    cursor.execute("SELECT to_regprocedure(%s) IS NOT NULL", [routine.signature])
    if not cursor.fetchone()[0]:
        raise ImproperlyConfigured(
            f"{routine.name}.sql does not create {routine.signature}, as its first line says."
        )
    _drop(cursor, routine.name, but=routine.signature)


def _run(cursor: Any, statements: Iterable[str]) -> None:
    for statement in statements:
        cursor.execute(statement)


def _drop(cursor: Any, name: str, *, but: str | None = None) -> None:
    """Drops all routines of that name, except the one with the signature `but`."""
    cursor.execute(_SAME_NAME, [name, but])
    for (signature,) in cursor.fetchall():
        # (From PostgreSQL, which quotes names and types that need it.)
        cursor.execute(sql.SQL("DROP ROUTINE {}").format(sql.SQL(signature)))


class HandOver(Operation):
    """From here on, files define the routines that earlier migrations created. `texts` has these by
    name, to reverse the migration."""

    reduces_to_sql = False
    reversible = True

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.texts = texts

    def state_forwards(self, app_label: str, state: Any) -> None:
        pass

    def database_forwards(self, app_label: str, editor: Any, before: Any, after: Any) -> None:
        """Nothing: `migrate` creates the routines after all migrations."""

    def database_backwards(self, app_label: str, editor: Any, before: Any, after: Any) -> None:
        with editor.connection.cursor() as cursor:
            cursor.execute(_TABLE)
            cursor.execute(
                "DELETE FROM agentmem_routine WHERE app = %s RETURNING name", [app_label]
            )
            # Later routines too: they may depend on types that earlier migrations drop.
            for name in {*self.texts, *(name for (name,) in cursor.fetchall())}:
                _drop(cursor, name)
            _run(cursor, self.texts.values())

    def describe(self) -> str:
        return "Hand routines over to files"
