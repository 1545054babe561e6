"""Builds the HNSW index after a first load, and rebuilds it where it is missing.

Adding vectors to the index one by one costs milliseconds each; building the index over existing
rows costs a fraction of that. So a first load drops the index while it is empty, writes its
vectors with `is_indexed` set (no row is written twice), and builds the index at its end. Until
then, and after a load that was killed, searches scan exactly: slower, but they miss nothing.

Such a load holds the advisory lock BUILDING shared, a build holds it exclusively, both on a
connection as the owner. A killed process loses its lock. Of several loads the last one builds.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from django.db import Error, OperationalError, connection
from django.db.backends.base.base import BaseDatabaseWrapper

from accounts.errors import Forbidden, Unavailable
from agentmem_site.db.roles import owner_beside
from memories.models import Memory

INDEX = "memories_memory_embedding"
BUILDING = 0x6167_6D76  # the key of a session-level advisory lock
# maintenance_work_mem that the build of the graph needs. With less, pgvector continues on disk,
# many times slower.
GRAPH_BYTES_PER_ROW = 1700
POLL_EVERY_S = 1.0
DROP_LOCK_TIMEOUT = "3s"  # all other statements queue behind this lock request

_INSUFFICIENT_RESOURCES = "53"  # class of SQLSTATEs: memory, disk, connections

SLOWER = "Until then large organizations are searched without it: slower, not less exactly."
WITHOUT_OWNER = (
    "The index of vectors is missing and only the tables' owner can build it: set "
    f"DATABASE_OWNER_URL and run `manage.py reindex --vectors`. {SLOWER}"
)
NOT_BUILT = (
    "The index of vectors is not built yet. The same command builds it at its end, or "
    f"`manage.py reindex --vectors` now. {SLOWER}"
)

OnProgress = Callable[[int, int, str], None]  # done, total (0: unknown), message
OnNotice = Callable[[str], None]

_STATE = """
SELECT coalesce((SELECT CASE WHEN indisvalid THEN 'valid' ELSE 'invalid' END
    FROM pg_index WHERE indexrelid = to_regclass(%s)), 'missing')
"""
# Uses the index memories_memory_vectors, the only one with all of these columns.
_IS_EMPTY = """
SELECT NOT EXISTS (SELECT FROM memories_memory
    WHERE embedding_state = 'ready' AND NOT is_deleted AND is_indexed)
"""
_DROP = "DROP INDEX IF EXISTS memories_memory_embedding"
_DROP_CONCURRENTLY = "DROP INDEX CONCURRENTLY IF EXISTS memories_memory_embedding"
# At most shared_buffers, which shows how much memory the server has.
_RAISE_WORK_MEM = """
SELECT set_config('maintenance_work_mem', greatest(
    pg_size_bytes(current_setting('maintenance_work_mem')),
    least(%s, pg_size_bytes(current_setting('shared_buffers')))) / 1024 || 'kB', false)
"""
_PROGRESS = """
SELECT phase, blocks_done, blocks_total, tuples_done FROM pg_stat_progress_create_index
WHERE pid = %s
"""


@dataclass(frozen=True, slots=True)
class Built:
    """A finished build; `rows` is the planner's estimate."""

    rows: int
    seconds: float


def index_state() -> str:
    """`valid`, `invalid` (an interrupted build) or `missing`. One statement."""
    with connection.cursor() as cursor:
        return _state(cursor)


@contextmanager
def first_load(
    *,
    is_large: bool,
    on_progress: OnProgress = lambda done, total, message: None,
    on_notice: OnNotice = lambda message: None,
) -> Iterator[bool]:
    """Yields whether the index is built after the load: then the load sets `is_indexed` on its
    vectors. True for a large load while the index is empty, and for any load while it is missing.
    If the load raises, nothing is built.

    Outside any transaction. Holds one more connection for as long as the load takes.
    """
    with owner_beside(connection) as owner:
        is_built_after = owner is not None and _begin(owner, is_large=is_large, on_notice=on_notice)
        if owner is None and index_state() != "valid":
            on_notice(WITHOUT_OWNER)
        try:
            yield is_built_after
        except BaseException:
            if is_built_after:
                on_notice(NOT_BUILT)
            raise
        if owner is None or not is_built_after:
            return
        try:
            _end(owner, on_progress=on_progress, on_notice=on_notice)
        except OperationalError:  # the load has succeeded, but its index is missing
            on_notice(NOT_BUILT)


def repair_index(*, on_progress: OnProgress = lambda done, total, message: None) -> Built | None:
    """Builds the index if it is missing or invalid, else returns None. Blocks neither writes nor
    searches. Outside any transaction.

    Raises: Forbidden (not as the owner), Unavailable (a first load or a build is running).
    """
    if index_state() == "valid":
        return None
    with owner_beside(connection) as owner:
        if owner is None:
            raise Forbidden(WITHOUT_OWNER)
        with owner.cursor() as cursor:
            if not _lock_alone(cursor):
                raise Unavailable(
                    "A first load or a build is running: it builds the index of vectors."
                )
        return _build(owner, on_progress)


def _begin(owner: BaseDatabaseWrapper, *, is_large: bool, on_notice: OnNotice) -> bool:
    with owner.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock_shared(%s)", [BUILDING])
        if not cursor.fetchone()[0]:
            return False  # a build is running: the worker indexes the rows of this load
        state = _state(cursor)
        if state == "missing":
            return True
        if state == "valid" and not (is_large and _is_empty(cursor)):
            owner.close()  # releases the lock
            return False
        try:
            cursor.execute("SELECT set_config('lock_timeout', %s, false)", [DROP_LOCK_TIMEOUT])
            cursor.execute(_DROP)
        except OperationalError:
            on_notice(
                "A long transaction is using the table of memories, so its index of vectors "
                "stays: the worker adds the vectors of this load to it."
            )
            owner.close()
            return False
    return True


def _end(owner: BaseDatabaseWrapper, *, on_progress: OnProgress, on_notice: OnNotice) -> None:
    try:
        with owner.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_unlock_shared(%s)", [BUILDING])
    except OperationalError:  # the connection was lost during the load, and its lock with it
        owner.close()
    with owner.cursor() as cursor:
        if _lock_alone(cursor):
            _build(owner, on_progress)
        else:
            on_notice("Another load is running: the last one builds the index of vectors.")


def _build(owner: BaseDatabaseWrapper, on_progress: OnProgress) -> Built | None:
    """Called with BUILDING held exclusively. None: the index is valid already."""
    started = time.monotonic()
    with owner.cursor() as cursor:
        # CREATE INDEX CONCURRENTLY waits for all writers, however long they take.
        cursor.execute("SET lock_timeout = 0; SET statement_timeout = 0")
        if _state(cursor) == "valid":
            return None
        cursor.execute(_DROP_CONCURRENTLY)
        on_progress(0, 0, "counting rows")
        # First: it estimates the rows, and discards statistics of the empty table.
        cursor.execute("ANALYZE memories_memory")
        cursor.execute(
            "SELECT reltuples::bigint FROM pg_class WHERE oid = 'memories_memory'::regclass"
        )
        rows: int = max(cursor.fetchone()[0], 0)
        cursor.execute(_RAISE_WORK_MEM, [rows * GRAPH_BYTES_PER_ROW])
        with _watched(owner, on_progress):
            try:
                _create(owner)
            except OperationalError as error:
                state = str(getattr(error.__cause__, "sqlstate", ""))
                if not state.startswith(_INSUFFICIENT_RESOURCES):
                    raise
                # Too little shared memory (a container's /dev/shm): without parallel workers.
                cursor.execute(_DROP_CONCURRENTLY)
                cursor.execute("SET max_parallel_maintenance_workers = 0")
                _create(owner)
    return Built(rows, time.monotonic() - started)


def _create(owner: BaseDatabaseWrapper) -> None:
    (index,) = (index for index in Memory._meta.indexes if index.name == INDEX)
    with owner.schema_editor(atomic=False) as editor:
        editor.add_index(Memory, index, concurrently=True)  # type: ignore[call-arg]


def _state(cursor: Any) -> str:
    cursor.execute(_STATE, [INDEX])
    return str(cursor.fetchone()[0])


def _is_empty(cursor: Any) -> bool:
    cursor.execute("SET enable_seqscan = off")
    cursor.execute(_IS_EMPTY)
    return bool(cursor.fetchone()[0])


def _lock_alone(cursor: Any) -> bool:
    cursor.execute("SELECT pg_try_advisory_lock(%s)", [BUILDING])
    return bool(cursor.fetchone()[0])


@contextmanager
def _watched(owner: BaseDatabaseWrapper, on_progress: OnProgress) -> Iterator[None]:
    """Reports the progress of the build on `owner`, from a thread with its own connection."""
    pid = owner.connection.info.backend_pid
    is_over = threading.Event()

    def watch() -> None:
        second = owner.copy()
        try:
            with suppress(Error), second.cursor() as cursor:
                while not is_over.wait(POLL_EVERY_S):
                    cursor.execute(_PROGRESS, [pid])
                    for phase, done, total, rows in cursor.fetchall():
                        on_progress(done, total, f"index of vectors, {phase}: {rows:,} rows")
        finally:
            second.close()

    watcher = threading.Thread(target=watch, name="watch_build", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()
