"""New rows inserted, rows whose key is taken left as they are: for doors that answer line by line.
(A file goes through loader.py.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db import connection
from psycopg import sql

from agentmem_site.bulk import sql as statements
from agentmem_site.bulk.copying import copy_rows
from agentmem_site.bulk.encode import Row
from agentmem_site.bulk.sql import Stage, Stamp

_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Taken:
    """The row that stands where a staged one would, and what its compared column holds."""

    id: UUID
    is_deleted: bool
    compared: Any


def insert_new(
    rows: Sequence[Row], stage: Stage, stamp: Stamp, *, compare: str
) -> tuple[set[UUID], dict[UUID, Taken]]:
    """Writes rows of different keys within the open transaction: the ids of those inserted; for
    each of the others, by its id, the row that has its key.

    A row that is in neither lost its key to one that was gone before it could be read.
    Raises: LineError, of a value that only PostgreSQL can tell to be too large.
    """
    inserted: set[UUID] = set()
    taken: dict[UUID, Taken] = {}
    with connection.cursor() as cursor:
        create = sql.SQL("{}; {}").format(stage.create_rows(), statements.LOOK_UPS)
        copy_rows(cursor, create, stage, [row.data for row in rows], [row.number for row in rows])
        for _ in range(_ATTEMPTS):
            for key in stage.spec.keys:
                cursor.execute(statements.insert_new(stage, key, stamp))
                inserted |= {row_id for (row_id,) in cursor.fetchall()}
            if len(inserted) < len(rows):
                for key in stage.spec.keys:
                    cursor.execute(statements.met_rows(stage, key, stamp, compare=compare))
                    for staged_id, row_id, is_deleted, compared in cursor.fetchall():
                        if staged_id not in inserted:
                            taken[staged_id] = Taken(row_id, is_deleted, compared)
            if len(inserted) + len(taken) == len(rows):
                break
        cursor.execute(sql.SQL("DROP TABLE {}; {}").format(stage.rows, statements.ANY_PLANS))
    return inserted, taken
