"""The HNSW index, filled apart from the writes that make the vectors.

A small organization is searched exactly and needs no graph. The memories of a large one are moved
into the index by the worker, some at a time: what is not there yet is scanned exactly.
"""

from django.db import connection

from accounts.models import Organization
from accounts.tenancy import platform, tenant
from memories.search.ranking import EXACT_ROWS

# For each organization at most EXACT_ROWS entries of the index memories_memory_vectors, whose
# order this is: without it the planner may read the whole table for each.
_LARGE = """
SELECT o.id FROM accounts_organization o CROSS JOIN LATERAL (
    SELECT 1 FROM memories_memory m
    WHERE m.organization_id = o.id AND m.embedding_state = 'ready' AND NOT m.is_deleted
    ORDER BY m.embedding_model, m.is_indexed OFFSET %s LIMIT 1) AS large
WHERE NOT o.is_deleted
"""

BATCH = 200  # rows locked at once: a fifth of a second


def large_organizations() -> list[Organization]:
    """Those whose vectors belong into the index. One statement under platform(): organization by
    organization it would be a transaction each."""
    with platform(), connection.cursor() as cursor:
        cursor.execute(_LARGE, [EXACT_ROWS])
        ids = [row[0] for row in cursor.fetchall()]
    return list(Organization.objects.filter(pk__in=ids)) if ids else []


def index_vectors(organization: Organization, *, batches: int = 1) -> int:
    """Moves up to `batches` times BATCH vectors into the index; how many. Call until it gives 0.

    Called outside `tenant()`; several at once take different rows.
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
                # (ARRAY: asked once. As IN the planner may ask it again for every row. ORDER BY:
                # the index's own order, as above.)
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
