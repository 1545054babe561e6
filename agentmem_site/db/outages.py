"""When nothing can be saved: what callers are told, and for how long a retry makes no sense."""

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
_PROBED_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Outage:
    """`wait_s`: seconds after which the same request is worth sending again."""

    code: str
    words: str
    wait_s: int


AWAY = Outage(
    "unavailable",
    "The database cannot answer right now; the same request may well succeed in a while.",
    1,
)
DISK_FULL = Outage(
    "disk_full",
    "The server's disk is full: nothing can be saved until somebody has made room. What was asked "
    "is not done; what is stored can be read.",
    60,
)
READ_ONLY = Outage(
    "read_only",
    "The database is read-only now: nothing can be saved. What was asked is not done; what is "
    "stored can be read.",
    60,
)
_BY_STATE = {DISK_FULL_STATE: DISK_FULL, READ_ONLY_STATE: READ_ONLY}


def sqlstate(error: BaseException) -> str:
    """PostgreSQL's code, of Django's errors and of psycopg's; "" where there is none."""
    return getattr(error.__cause__ or error, "sqlstate", None) or ""


def outage_of(error: BaseException | None) -> Outage | None:
    """What an error of the database, or of a file, tells of; None: it is no outage."""
    found = _BY_STATE.get(sqlstate(error)) if error else None
    match error:
        case OperationalError() | psycopg.OperationalError():
            # (PostgreSQL says it with 53100, or while it starts in words alone.)
            return found or (DISK_FULL if _NO_SPACE in str(error) else AWAY)
        case InterfaceError():
            return AWAY
        case InternalError() | psycopg.InternalError():
            return found
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return DISK_FULL
    return None


# -- asked beforehand -----------------------------------------------------------------------------

# A set of rows that does not fit into 64 kB of memory goes into a temporary file: 0.5 MB of the
# data's disk, written and removed. It leaves no dead row and no WAL behind, and works where tables
# are read-only. (Where the disk of the WAL is full, PostgreSQL ends: it cannot be reached.)
_SPILL = "SELECT count(*) FROM generate_series(1, 20000)"
_IS_READ_ONLY = (
    "SELECT set_config('work_mem', '64kB', true), "
    "pg_is_in_recovery() OR current_setting('default_transaction_read_only')::boolean"
)


def write_outage(connection: BaseDatabaseWrapper) -> Outage | None:
    """Whether the database can write: DISK_FULL, READ_ONLY, or None. Two statements, 10 ms.

    Raises: django.db.Error, for whatever else is wrong.
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
    """`write_outage`, asked at most every 5 s, and since when it is so."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.forget()

    def forget(self) -> None:
        self._asked_s = float("-inf")
        self._found: Outage | None = None
        self._since: datetime | None = None

    def ask(self, connection: BaseDatabaseWrapper) -> tuple[Outage, datetime] | None:
        """The outage and its beginning, as far as this process has seen it.

        Raises: django.db.Error.
        """
        with self._lock:
            if time.monotonic() - self._asked_s >= _PROBED_EVERY_S:
                found = write_outage(connection)
                if found is not self._found:
                    self._since = datetime.now(UTC)
                self._found, self._asked_s = found, time.monotonic()
            if self._found is None or self._since is None:
                return None
            return self._found, self._since
