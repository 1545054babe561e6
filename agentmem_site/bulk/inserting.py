"""Inserts new rows and leaves existing ones as they are, unless they have expired.

For requests that are answered row by row; files go through loader.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django.db import connection
from psycopg import sql

from agentmem_site.bulk import sql as statements
from agentmem_site.bulk.copying import copy_rows
from agentmem_site.bulk.lines import Row
from agentmem_site.bulk.sql import Staging, Stamp

_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class ConflictingRow:
    """The existing row with a staged row's key, and the value of its compared column."""

    id: UUID
    is_deleted: bool
    is_expired: bool
    compared: Any


@dataclass(slots=True)
class InsertResult:
    """Staged ids: of new rows; of rows written over an expired one (spec.Expiry), with its id; of
    rows not written, with the row that has their key.

    A row in none of them conflicted with one that was purged before it could be read.
    """

    new: set[UUID] = field(default_factory=set)
    overwritten: dict[UUID, UUID] = field(default_factory=dict)
    conflicts: dict[UUID, ConflictingRow] = field(default_factory=dict)

    def id_of(self, row_id: UUID) -> UUID | None:
        """The id under which a staged row was written."""
        return row_id if row_id in self.new else self.overwritten.get(row_id)


def insert_new(rows: Sequence[Row], stage: Staging, stamp: Stamp, *, compare: str) -> InsertResult:
    """Writes rows of different keys within the open transaction.

    Raises: LineError, for a value that only PostgreSQL knows to be too large.
    """
    result = InsertResult()
    staged = {row.id for row in rows}
    overwritten: set[UUID] = set()  # ids of existing rows
    with connection.cursor() as cursor:
        create = sql.SQL("{}; {}").format(stage.create_rows(), statements.INDEX_SCANS_ONLY)
        copy_rows(cursor, create, stage, [row.data for row in rows], [row.number for row in rows])
        for _ in range(_ATTEMPTS):
            for key in stage.spec.keys:
                cursor.execute(statements.insert_new(stage, key, stamp))
                result.new |= {row_id for (row_id,) in cursor.fetchall()}
            if len(result.new) == len(rows):
                break
            conflicts = _conflicts(cursor, stage, stamp, compare)
            expired = [i for i, r in conflicts.items() if r.is_expired and r.id not in overwritten]
            if expired:
                for key in stage.spec.keys:
                    cursor.execute(statements.insert_over_expired(stage, key, stamp, expired))
                    written = {row_id for (row_id,) in cursor.fetchall()}
                    result.new |= written & staged
                    overwritten |= written - staged
                conflicts = _conflicts(cursor, stage, stamp, compare)
            conflicts = {i: r for i, r in conflicts.items() if i not in result.new}
            result.overwritten = {i: r.id for i, r in conflicts.items() if r.id in overwritten}
            result.conflicts = {i: r for i, r in conflicts.items() if r.id not in overwritten}
            if len(result.new) + len(conflicts) == len(rows):
                break
        cursor.execute(sql.SQL("DROP TABLE {}; {}").format(stage.rows, statements.ALL_SCANS))
    return result


def _conflicts(
    cursor: Any, stage: Staging, stamp: Stamp, compare: str
) -> dict[UUID, ConflictingRow]:
    """Staged id -> the existing row with its key."""
    conflicts: dict[UUID, ConflictingRow] = {}
    for key in stage.spec.keys:
        cursor.execute(statements.conflicting_rows(stage, key, stamp, compare=compare))
        conflicts |= {staged_id: ConflictingRow(*row) for staged_id, *row in cursor.fetchall()}
    return conflicts
