"""Copies encoded rows into a staging table, by binary COPY."""

import re
from collections.abc import Sequence
from typing import Any

from django.db import DatabaseError, connection
from psycopg import sql

from agentmem_site.bulk import binary
from agentmem_site.bulk.faults import LIMIT_EXCEEDED
from agentmem_site.bulk.spec import LineError
from agentmem_site.bulk.sql import Staging

_VALUE_REFUSED = ("22", LIMIT_EXCEEDED)  # 22: data exception
_ROWS = 256  # rows joined for one write: about a megabyte
# Where a COPY failed, in any language of the server: "COPY load_x, line 1, column state".
_PLACE = re.compile(r"COPY [^,]*, \S+ (\d+), \S+ (\w+)")


def copy_rows(
    cursor: Any,
    create: sql.Composable,
    stage: Staging,
    rows: Sequence[bytes],
    lines: Sequence[int],
) -> None:
    """Creates the tables and fills the staging table; `lines` has the line number of each row.

    Raises: LineError, for a value that only PostgreSQL knows to be too large.
    """
    cursor.execute(create)
    try:
        with connection.wrap_database_errors, cursor.copy(stage.copy()) as copy:
            copy.write(binary.HEADER)
            for start in range(0, len(rows), _ROWS):
                copy.write(b"".join(rows[start : start + _ROWS]))
            copy.write(binary.TRAILER)
    except DatabaseError as error:
        diagnosis: Any = getattr(error.__cause__, "diag", None)
        place = _PLACE.match((diagnosis and diagnosis.context) or "")
        if place and diagnosis.sqlstate[:2] in _VALUE_REFUSED:
            message = diagnosis.message_primary
            raise LineError(
                "invalid_value", place[2], message, line=lines[int(place[1]) - 1]
            ) from error
        raise
