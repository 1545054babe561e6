"""What searches found, counted on the memories a moment later: one statement for all the hits of
a while, by a thread of its own, off every request's path. A process that dies loses that moment.
"""

import logging
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from django.conf import settings
from django.db import Error, close_old_connections, connection
from django.utils import timezone

from accounts.tenancy import tenant
from agentmem_site.db.outages import sqlstate

logger = logging.getLogger("agentmem.found")
_MAX_KEPT = 100_000  # distinct memories; beyond it, while the database is away, hits go uncounted

_lock = threading.Lock()
_hits: dict[UUID, Counter[UUID]] = defaultdict(Counter)  # organization -> memory -> times
_last_hit_at: datetime | None = None
_thread: threading.Thread | None = None


def note_found(organization_id: UUID, memory_ids: Sequence[UUID]) -> None:
    """Counts one hit for each; written within about `settings.FOUND_EVERY_S` seconds."""
    global _last_hit_at, _thread  # noqa: PLW0603  (one buffer and one thread per process)
    if not memory_ids:
        return
    with _lock:
        if sum(map(len, _hits.values())) < _MAX_KEPT:
            _hits[organization_id].update(memory_ids)
        _last_hit_at = timezone.now()
        if settings.FOUND_EVERY_S and (_thread is None or not _thread.is_alive()):
            _thread = threading.Thread(target=_write_on, name="found", daemon=True)
            _thread.start()


def write_found() -> int:
    """Writes what is noted, one statement per organization; how many memories were told."""
    with _lock:
        hits, at = dict(_hits), _last_hit_at
        _hits.clear()
    written = 0
    for organization_id in list(hits):
        try:
            written += _write(organization_id, hits[organization_id], at)
            del hits[organization_id]
        except Error as error:
            logger.warning("Hits are not counted yet (SQLSTATE %s)", sqlstate(error) or "none")
    with _lock:
        for organization_id, times in hits.items():
            _hits[organization_id].update(times)
    return written


def _write(organization_id: UUID, times: Counter[UUID], at: datetime | None) -> int:
    with tenant(organization_id), connection.cursor() as cursor:
        # In the order of their ids, so that two processes never wait for each other in a ring.
        cursor.execute(
            "WITH found AS MATERIALIZED (SELECT m.id, f.times FROM memories_memory m "
            "JOIN unnest(%s::uuid[], %s::integer[]) AS f (id, times) ON f.id = m.id "
            "WHERE m.organization_id = %s ORDER BY m.id FOR NO KEY UPDATE OF m) "
            "UPDATE memories_memory m SET access_count = m.access_count + found.times, "
            "last_accessed = %s FROM found WHERE m.id = found.id AND m.organization_id = %s",
            [list(times), list(times.values()), organization_id, at, organization_id],
        )
        return cursor.rowcount


def _write_on() -> None:
    while True:
        time.sleep(settings.FOUND_EVERY_S)
        close_old_connections()
        write_found()
