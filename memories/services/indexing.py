"""Adds vectors to the HNSW index, separately from the writes that store them.

A small organization is scanned exactly and needs no graph. The worker adds the memories of a large
one to the index in batches; those that are not in it yet are scanned exactly.
"""

from django.db import connection

from accounts.models import Organization
from accounts.tenancy import platform, tenant
from memories.search.ranking import EXACT_ROWS

# At most EXACT_ROWS entries of the index memories_memory_vectors per organization. ORDER BY makes
# the planner use it: it might scan the whole table for each.
_LARGE = """
SELECT o.id FROM accounts_organization o CROSS JOIN LATERAL (
    SELECT 1 FROM memories_memory m
    WHERE m.organization_id = o.id AND m.embedding_state = 'ready' AND NOT m.is_deleted
    ORDER BY m.embedding_model, m.is_indexed OFFSET %s LIMIT 1) AS large
WHERE NOT o.is_deleted
"""

BATCH = 200  # rows locked at once: a fifth of a second


def large_organizations() -> list[Organization]:
    """Those whose vectors belong in the index. One statement under platform(), where tenant()
    would take a transaction per organization."""
    with platform(), connection.cursor() as cursor:
        cursor.execute(_LARGE, [EXACT_ROWS])
        ids = [row[0] for row in cursor.fetchall()]
    return list(Organization.objects.filter(pk__in=ids)) if ids else []


def index_vectors(organization: Organization, *, batches: int = 1) -> int:
    """Adds up to `batches` times BATCH vectors to the index and returns how many; 0: all are in it.

    Called outside `tenant()`; concurrent calls take different rows.
    """
    moved = 0
    for _ in range(batches):
        with tenant(organization), connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) > %s FROM (SELECT FROM memories_memory WHERE organization_id = %s "
                "AND embedding_state = 'ready' AND NOT is_deleted LIMIT %s) AS vectors",
                [EXACT_ROWS, organization.pk, EXACT_ROWS + 1],
            )
            if not cursor.fetchone()[0]:
                break
            cursor.execute(
                # (ARRAY is evaluated once, where IN may run for every row. ORDER BY: as above.)
                "UPDATE memories_memory SET is_indexed = true WHERE organization_id = %s "
                "AND id = ANY (ARRAY(SELECT id FROM memories_memory WHERE organization_id = %s "
                "AND embedding_state = 'ready' AND NOT is_deleted AND NOT is_indexed "
                "ORDER BY embedding_model, is_indexed LIMIT %s FOR NO KEY UPDATE SKIP LOCKED))",
                [organization.pk, organization.pk, BATCH],
            )
            if not cursor.rowcount:
                break
            moved += cursor.rowcount
    return moved
