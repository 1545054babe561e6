"""New rows inserted, rows whose key is taken left as they are, unless they are gone: for doors that
answer line by line.
(A file goes through loader.py.)
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
from agentmem_site.bulk.sql import Stage, Stamp

_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Taken:
    """The row that stands where a staged one would, and what its compared column holds."""

    id: UUID
    is_deleted: bool
    is_gone: bool
    compared: Any


@dataclass(slots=True)
class Inserted:
    """Of rows by their ids: those that are new; those that were written over a row that was gone
    (spec.Gone), with its id; of the others, the row that has their key.

    A row that is nowhere lost its key to one that was purged before it could be read.
    """

    new: set[UUID] = field(default_factory=set)
    again: dict[UUID, UUID] = field(default_factory=dict)
    taken: dict[UUID, Taken] = field(default_factory=dict)

    def id_of(self, row_id: UUID) -> UUID | None:
        """That of the row in which a row was written."""
        return row_id if row_id in self.new else self.again.get(row_id)


def insert_new(rows: Sequence[Row], stage: Stage, stamp: Stamp, *, compare: str) -> Inserted:
    """Writes rows of different keys within the open transaction.

    Raises: LineError, of a value that only PostgreSQL can tell to be too large.
    """
    done = Inserted()
    own = {row.id for row in rows}
    over: set[UUID] = set()  # ids of the rows that were written over
    with connection.cursor() as cursor:
        create = sql.SQL("{}; {}").format(stage.create_rows(), statements.LOOK_UPS)
        copy_rows(cursor, create, stage, [row.data for row in rows], [row.number for row in rows])
        for _ in range(_ATTEMPTS):
            for key in stage.spec.keys:
                cursor.execute(statements.insert_new(stage, key, stamp))
                done.new |= {row_id for (row_id,) in cursor.fetchall()}
            if len(done.new) == len(rows):
                break
            met = _met(cursor, stage, stamp, compare)
            if gone := [n for n, there in met.items() if there.is_gone and there.id not in over]:
                for key in stage.spec.keys:
                    cursor.execute(statements.insert_over_gone(stage, key, stamp, gone))
                    written = {row_id for (row_id,) in cursor.fetchall()}
                    done.new |= written & own
                    over |= written - own
                met = _met(cursor, stage, stamp, compare)
            met = {n: there for n, there in met.items() if n not in done.new}
            done.again = {n: there.id for n, there in met.items() if there.id in over}
            done.taken = {n: there for n, there in met.items() if n not in done.again}
            if len(done.new) + len(met) == len(rows):
                break
        cursor.execute(sql.SQL("DROP TABLE {}; {}").format(stage.rows, statements.ANY_PLANS))
    return done


def _met(cursor: Any, stage: Stage, stamp: Stamp, compare: str) -> dict[UUID, Taken]:
    """Staged id -> the row that stands there."""
    met: dict[UUID, Taken] = {}
    for key in stage.spec.keys:
        cursor.execute(statements.met_rows(stage, key, stamp, compare=compare))
        met |= {staged_id: Taken(*there) for staged_id, *there in cursor.fetchall()}
    return met
