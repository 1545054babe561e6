"""Counts search hits on the memories, a moment later: a thread writes all hits since its last run
in one statement, outside of any request. A process that dies loses the hits not yet written.
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

logger = logging.getLogger("agentmem.memories")
_MAX_KEPT = 100_000  # distinct memories; beyond it, in an outage of the database, hits are dropped

_lock = threading.Lock()
_hits: dict[UUID, Counter[UUID]] = defaultdict(Counter)  # organization -> memory -> times
_last_hit_at: datetime | None = None
_thread: threading.Thread | None = None


def count_hits(organization_id: UUID, memory_ids: Sequence[UUID]) -> None:
    """Counts one hit for each memory; written within about `settings.FOUND_EVERY_S` seconds."""
    global _last_hit_at, _thread  # noqa: PLW0603  (one buffer and one thread per process)
    if not memory_ids:
        return
    with _lock:
        if sum(map(len, _hits.values())) < _MAX_KEPT:
            _hits[organization_id].update(memory_ids)
        _last_hit_at = timezone.now()
        if settings.FOUND_EVERY_S and (_thread is None or not _thread.is_alive()):
            _thread = threading.Thread(target=_keep_writing, name="hits", daemon=True)
            _thread.start()


def write_hits() -> int:
    """Writes the counted hits, one statement per organization; returns the memories updated."""
    with _lock:
        hits, at = dict(_hits), _last_hit_at
        _hits.clear()
    written = 0
    for organization_id in list(hits):
        try:
            written += _write(organization_id, hits[organization_id], at)
            del hits[organization_id]
        except Error as error:
            logger.warning("Hits are not written yet (SQLSTATE %s)", sqlstate(error) or "none")
    with _lock:
        for organization_id, times in hits.items():
            _hits[organization_id].update(times)
    return written


def _write(organization_id: UUID, times: Counter[UUID], at: datetime | None) -> int:
    with tenant(organization_id), connection.cursor() as cursor:
        # Rows are locked in the order of their ids, so that two processes never deadlock.
        cursor.execute(
            "WITH hit AS MATERIALIZED (SELECT m.id, h.times FROM memories_memory m "
            "JOIN unnest(%s::uuid[], %s::integer[]) AS h (id, times) ON h.id = m.id "
            "WHERE m.organization_id = %s ORDER BY m.id FOR NO KEY UPDATE OF m) "
            "UPDATE memories_memory m SET access_count = m.access_count + hit.times, "
            "last_accessed = %s FROM hit WHERE m.id = hit.id AND m.organization_id = %s",
            [list(times), list(times.values()), organization_id, at, organization_id],
        )
        return cursor.rowcount


def _keep_writing() -> None:
    while True:
        time.sleep(settings.FOUND_EVERY_S)
        close_old_connections()
        write_hits()
