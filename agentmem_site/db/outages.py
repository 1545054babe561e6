"""When nothing can be saved: the message to callers, and when a retry makes sense."""

import errno
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime

import psycopg
from django.db import InterfaceError, InternalError, OperationalError, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

DISK_FULL_STATE, READ_ONLY_STATE = "53100", "25006"
_NO_SPACE = "No space left on device"
_PROBE_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Outage:
    """`wait_s`: the seconds after which a retry makes sense."""

    code: str
    message: str
    wait_s: int


AWAY = Outage(
    "unavailable",
    "The database cannot answer right now; the same request may succeed later.",
    1,
)
DISK_FULL = Outage(
    "disk_full",
    "The server's disk is full: nothing can be saved until an operator frees space. The request "
    "was not carried out; stored data can be read.",
    60,
)
READ_ONLY = Outage(
    "read_only",
    "The database is read-only: nothing can be saved. The request was not carried out; stored "
    "data can be read.",
    60,
)
_BY_STATE = {DISK_FULL_STATE: DISK_FULL, READ_ONLY_STATE: READ_ONLY}


def sqlstate(error: BaseException) -> str:
    """The SQLSTATE of an error of Django or psycopg; "" if there is none."""
    return getattr(error.__cause__ or error, "sqlstate", None) or ""


def outage_of(error: BaseException | None) -> Outage | None:
    """The outage that caused an error of the database or of a file; None if it was no outage."""
    outage = _BY_STATE.get(sqlstate(error)) if error else None
    match error:
        case OperationalError() | psycopg.OperationalError():
            # (A full disk has SQLSTATE 53100, but only a message while PostgreSQL starts.)
            return outage or (DISK_FULL if _NO_SPACE in str(error) else AWAY)
        case InterfaceError():
            return AWAY
        case InternalError() | psycopg.InternalError():
            return outage
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return DISK_FULL
    return None


# -- probes ---------------------------------------------------------------------------------------

# Rows that do not fit into 64 kB of memory spill into a temporary file: 0.5 MB on the disk of the
# data, written and removed. This leaves no dead rows and no WAL, and works on a read-only database.
# (If the disk of the WAL is full, PostgreSQL stops and cannot be reached.)
_SPILL = "SELECT count(*) FROM generate_series(1, 20000)"
_IS_READ_ONLY = (
    "SELECT set_config('work_mem', '64kB', true), "
    "pg_is_in_recovery() OR current_setting('default_transaction_read_only')::boolean"
)


def write_outage(connection: BaseDatabaseWrapper) -> Outage | None:
    """DISK_FULL, READ_ONLY, or None if the database can write. Two statements, 10 ms.

    Raises: django.db.Error, for anything else.
    """
    try:
        with transaction.atomic(connection.alias), connection.cursor() as cursor:
            cursor.execute(_IS_READ_ONLY)
            is_read_only = cursor.fetchone()[1]
            cursor.execute(_SPILL)
    except OperationalError as error:
        if outage_of(error) is not DISK_FULL:
            raise
        return DISK_FULL
    return READ_ONLY if is_read_only else None


class WriteProbe:
    """Calls `write_outage` at most every 5 s, and remembers since when there is an outage."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.forget()

    def forget(self) -> None:
        self._probed_s = float("-inf")
        self._outage: Outage | None = None
        self._since: datetime | None = None

    def ask(self, connection: BaseDatabaseWrapper) -> tuple[Outage, datetime] | None:
        """The outage, and when this process first saw it.

        Raises: django.db.Error.
        """
        with self._lock:
            if time.monotonic() - self._probed_s >= _PROBE_EVERY_S:
                outage = write_outage(connection)
                if outage is not self._outage:
                    self._since = datetime.now(UTC)
                self._outage, self._probed_s = outage, time.monotonic()
            if self._outage is None or self._since is None:
                return None
            return self._outage, self._since
