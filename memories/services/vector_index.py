"""The HNSW index as a whole: apart from a first load, and mended where it is missing.

Moved into the index one by one a vector costs milliseconds; an index built over rows that are
there already costs a fraction of that. So a first load drops the index while it holds nothing,
its new vectors bear `is_indexed` from the start (none is written twice), and its end builds it.
Meanwhile, and after a load that was killed, what the index would find is found by an exact scan:
slower, never less.

Who loads so holds BUILDING shared, who builds holds it alone, on a connection as the owner: the
lock of a process that was killed is gone. The last of several loads builds.
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
BUILDING = 0x6167_6D76  # of PostgreSQL's advisory locks, those of a session
# Of maintenance_work_mem, while the graph is built; if there is not enough, pgvector goes on on
# disk, many times slower.
GRAPH_BYTES_PER_ROW = 1700
LOOK_EVERY_S = 1.0
WAITS_AT_MOST = "3s"  # for the table, to drop the index: all others wait behind that

_TOO_LITTLE = "53"  # SQLSTATEs of memory, disk and connections

SLOWER = "Until then large organizations are searched without it: slower, not less exactly."
WITHOUT_OWNER = (
    "The index of vectors is missing and only the tables' owner can build it: set "
    f"DATABASE_OWNER_URL and run `manage.py reindex --vectors`. {SLOWER}"
)
NOT_BUILT = (
    "The index of vectors is not built yet. The same command builds it at its end, or "
    f"`manage.py reindex --vectors` now. {SLOWER}"
)

OnProgress = Callable[[int, int, str], None]  # done, total (0: unknown), in words
OnNotice = Callable[[str], None]

_STATE = """
SELECT coalesce((SELECT CASE WHEN indisvalid THEN 'valid' ELSE 'invalid' END
    FROM pg_index WHERE indexrelid = to_regclass(%s)), 'missing')
"""
# By the index memories_memory_vectors, which alone has all of these columns.
_HOLDS_NOTHING = """
SELECT NOT EXISTS (SELECT FROM memories_memory
    WHERE embedding_state = 'ready' AND NOT is_deleted AND is_indexed)
"""
_DROP = "DROP INDEX IF EXISTS memories_memory_embedding"
_DROP_BESIDE = "DROP INDEX CONCURRENTLY IF EXISTS memories_memory_embedding"  # others go on
# For this many bytes, but no more than shared_buffers: that tells what memory the server has.
_MAKE_ROOM = """
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
    """An index that was built, over about so many rows."""

    rows: int
    seconds: float


def index_state() -> str:
    """`valid`, `invalid` (a build that was broken off) or `missing`. One statement."""
    with connection.cursor() as cursor:
        return _state(cursor)


@contextmanager
def first_load(
    *,
    is_large: bool,
    on_progress: OnProgress = lambda done, total, words: None,
    on_notice: OnNotice = lambda words: None,
) -> Iterator[bool]:
    """Whether the vectors of the load inside shall bear `is_indexed`: then the end builds the
    index. So it is with a large load while the index holds nothing, and with any load while there
    is none. A load that raises builds nothing.

    Outside any transaction. One connection more, for as long as the load takes.
    """
    with owner_beside(connection) as owner:
        is_apart = owner is not None and _begin(owner, is_large=is_large, on_notice=on_notice)
        if owner is None and index_state() != "valid":
            on_notice(WITHOUT_OWNER)
        try:
            yield is_apart
        except BaseException:
            if is_apart:
                on_notice(NOT_BUILT)
            raise
        if owner is None or not is_apart:
            return
        try:
            _end(owner, on_progress=on_progress, on_notice=on_notice)
        except OperationalError:  # the load is done; that it is without an index is to be told
            on_notice(NOT_BUILT)


def repair_index(*, on_progress: OnProgress = lambda done, total, words: None) -> Built | None:
    """Builds the index where it is missing or invalid; None where it is neither. Nobody waits for
    it: rows are written, and found, meanwhile. Outside any transaction.

    Raises: Forbidden (not as the owner), Unavailable (a first load or a build is at work).
    """
    if index_state() == "valid":
        return None
    with owner_beside(connection) as owner:
        if owner is None:
            raise Forbidden(WITHOUT_OWNER)
        with owner.cursor() as cursor:
            if not _lock_alone(cursor):
                raise Unavailable(
                    "A first load or a build is at work: that builds the index of vectors."
                )
        return _build(owner, on_progress)


def _begin(owner: BaseDatabaseWrapper, *, is_large: bool, on_notice: OnNotice) -> bool:
    with owner.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock_shared(%s)", [BUILDING])
        if not cursor.fetchone()[0]:
            return False  # it is being built: the worker moves what comes now
        state = _state(cursor)
        if state == "missing":
            return True
        if state == "valid" and not (is_large and _holds_nothing(cursor)):
            owner.close()  # what is held goes with it
            return False
        try:
            cursor.execute("SELECT set_config('lock_timeout', %s, false)", [WAITS_AT_MOST])
            cursor.execute(_DROP)
        except OperationalError:
            on_notice(
                "The table of memories is in use by a long transaction, so its index of vectors "
                "stays: the worker moves the vectors of this load into it."
            )
            owner.close()
            return False
    return True


def _end(owner: BaseDatabaseWrapper, *, on_progress: OnProgress, on_notice: OnNotice) -> None:
    try:
        with owner.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_unlock_shared(%s)", [BUILDING])
    except OperationalError:  # it was cut off during the load, and its lock with it
        owner.close()
    with owner.cursor() as cursor:
        if _lock_alone(cursor):
            _build(owner, on_progress)
        else:
            on_notice("Another load is at work: the last one builds the index of vectors.")


def _build(owner: BaseDatabaseWrapper, on_progress: OnProgress) -> Built | None:
    """Under BUILDING, alone. None: it stands already."""
    started = time.monotonic()
    with owner.cursor() as cursor:
        # It waits for whoever is writing, for as long as that takes.
        cursor.execute("SET lock_timeout = 0; SET statement_timeout = 0")
        if _state(cursor) == "valid":
            return None
        cursor.execute(_DROP_BESIDE)
        on_progress(0, 0, "rows are counted")
        # First: it tells how many there are, and what was planned for an empty table is forgotten.
        cursor.execute("ANALYZE memories_memory")
        cursor.execute(
            "SELECT reltuples::bigint FROM pg_class WHERE oid = 'memories_memory'::regclass"
        )
        rows: int = max(cursor.fetchone()[0], 0)
        cursor.execute(_MAKE_ROOM, [rows * GRAPH_BYTES_PER_ROW])
        with _watched(owner, on_progress):
            try:
                _create(owner)
            except OperationalError as error:
                if not str(getattr(error.__cause__, "sqlstate", "")).startswith(_TOO_LITTLE):
                    raise
                # No shared memory for helpers (/dev/shm of a container): alone, then.
                cursor.execute(_DROP_BESIDE)
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


def _holds_nothing(cursor: Any) -> bool:
    cursor.execute("SET enable_seqscan = off")
    cursor.execute(_HOLDS_NOTHING)
    return bool(cursor.fetchone()[0])


def _lock_alone(cursor: Any) -> bool:
    cursor.execute("SELECT pg_try_advisory_lock(%s)", [BUILDING])
    return bool(cursor.fetchone()[0])


@contextmanager
def _watched(owner: BaseDatabaseWrapper, on_progress: OnProgress) -> Iterator[None]:
    """Tells how far the build on `owner` is, from a thread with a connection of its own."""
    pid = owner.connection.info.backend_pid
    is_over = threading.Event()

    def watch() -> None:
        beside = owner.copy()
        try:
            with suppress(Error), beside.cursor() as cursor:
                while not is_over.wait(LOOK_EVERY_S):
                    cursor.execute(_PROGRESS, [pid])
                    for phase, done, total, rows in cursor.fetchall():
                        on_progress(done, total, f"index of vectors, {phase}: {rows:,} rows")
        finally:
            beside.close()

    watcher = threading.Thread(target=watch, name="watch_build", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()
