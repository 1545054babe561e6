"""Counts an organization's memories by type, scope, level, embedding, user and agent."""

from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from django.db import OperationalError, connection
from psycopg import errors as postgres

from accounts.errors import Unavailable
from accounts.models import Organization

TIMEOUT_S = 10

# One pass for all groupings. Users and agents are grouping sets too, counted in the outer query: a
# count(DISTINCT ..) would sort the rows. (octet_length reads the length of a text, not the text.)
# grouping() has a bit per column, 0 if it is grouped by.
_COUNT = """
WITH part AS (
    SELECT grouping(m.memory_type, m.scope, m.level, m.embedding_state, m.model, m.user_id,
            m.agent_id) AS bits,
        coalesce(m.memory_type, m.scope, m.level, m.embedding_state, m.model) AS value,
        coalesce(m.user_id, m.agent_id) AS whose,
        count(*) AS memories, sum(octet_length(m.content)) AS bytes,
        min(m.created_at) AS oldest, max(m.created_at) AS newest
    FROM (SELECT *, CASE embedding_state WHEN 'ready' THEN embedding_model END AS model
          FROM memories_memory WHERE organization_id = %s) m
    WHERE NOT m.is_deleted AND (m.expires_at IS NULL OR m.expires_at > now())
        AND (%s::uuid IS NULL OR m.user_id = %s)
        AND (%s::uuid IS NULL OR m.agent_id = %s)
    GROUP BY GROUPING SETS ((), (m.memory_type), (m.scope), (m.level), (m.embedding_state),
        (m.model), (m.user_id), (m.agent_id)))
SELECT ~bits & 127, value, count(whose), sum(memories), sum(bytes), min(oldest), max(newest)
FROM part GROUP BY bits, value ORDER BY sum(memories) DESC, value
"""
_TOTAL, _AGENTS, _USERS = 0, 1, 2
_NAMES = {64: "memory_type", 32: "scope", 16: "level", 8: "embedding_state", 4: "embedding_model"}


@dataclass(slots=True)
class Stats:
    """Of live, unexpired memories. `by` has the counts by value, largest first, of memory_type,
    scope, level, embedding_state and (of memories with a vector) embedding_model."""

    memories: int = 0
    users: int = 0
    agents: int = 0
    content_bytes: int = 0
    oldest: datetime | None = None
    newest: datetime | None = None
    by: dict[str, dict[str, int]] = field(
        default_factory=lambda: {name: {} for name in _NAMES.values()}
    )


def memory_stats(
    *, organization: Organization, user_id: UUID | None = None, agent_id: UUID | None = None
) -> Stats:
    """Counts in one statement and one pass over the matching memories; in a transaction.

    Raises: Unavailable (it takes longer than TIMEOUT_S).
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('statement_timeout', %s, true)", [f"{TIMEOUT_S}s"])
        try:
            cursor.execute(_COUNT, [organization.pk, user_id, user_id, agent_id, agent_id])
        except OperationalError as error:
            if not isinstance(error.__cause__, postgres.QueryCanceled):
                raise
            raise Unavailable(
                f"Counting so many memories takes longer than {TIMEOUT_S} seconds: ask for those "
                "of one user_id or agent_id."
            ) from error
        stats = Stats()
        for grouped_by, value, groups, memories, size, oldest, newest in cursor.fetchall():
            if grouped_by == _TOTAL:
                stats.memories, stats.content_bytes = int(memories), int(size or 0)
                stats.oldest, stats.newest = oldest, newest
            elif grouped_by == _USERS:
                stats.users = groups
            elif grouped_by == _AGENTS:
                stats.agents = groups
            elif value is not None:
                stats.by[_NAMES[grouped_by]][value] = int(memories)
    return stats
