"""Exports memories page by page, as the lines that the bulk loader reads."""

from collections.abc import Iterator
from typing import Any

from django.db.models import F, Q, TextField
from django.db.models.functions import Cast, Coalesce

from accounts.actors import Actor
from accounts.models import AuditEvent, Organization
from accounts.services.audit import record_event
from accounts.tenancy import tenant
from agentmem_site.bulk.export import PAGE_ROWS, Columns, columns_of, encode, read
from memories.bulk import MEMORIES

_VECTOR_COLUMNS = ("embedding", "embedding_model")
_ROW = "_row"


def export_memories(
    rows: Any, *, organization: Organization, actor: Actor, with_vectors: bool
) -> Iterator[bytes]:
    """Yields pages of lines, oldest first; at the end writes one audit event with their number.

    Called outside `tenant()`: each page enters it for itself, so that no connection is held while
    a slow client reads. A memory added meanwhile may be included or not. After a failure the last
    line is `{"error": ...}`.
    """
    columns = {**_columns(with_vectors), _ROW: F("pk")}
    rows, number, status = rows.order_by("created_at", "pk"), 0, AuditEvent.Status.FAILURE
    rest = rows
    try:
        while True:
            with tenant(organization):
                page = list(read(rest[:PAGE_ROWS], columns))
            if not page:
                break
            at, row = page[-1]["created_at"], page[-1][_ROW]
            # (The first condition is an index range, the second a filter within it.)
            rest = rows.filter(created_at__gte=at).filter(Q(created_at__gt=at) | Q(pk__gt=row))
            data = b"".join(encode({n: v for n, v in line.items() if n != _ROW}) for line in page)
            number += len(page)
            yield data
        status = AuditEvent.Status.SUCCESS
    except Exception:
        # A server may end the response as if it were complete (granian does). This last line shows
        # that it is not, and cannot be loaded.
        yield encode({"error": f"The export failed after {number} memories."})
        raise
    finally:
        with tenant(organization):
            record_event(
                organization=organization,
                actor=actor,
                action="exported",
                resource_type="memory",
                changes={"rows": {"memory": number}, "vectors": with_vectors},
                status=status,
            )


def _columns(with_vectors: bool) -> Columns:
    """Users and agents are named by external_id if they have one, so that another organization, or
    another server, can load the lines."""
    columns = columns_of(MEMORIES, leave_out=() if with_vectors else _VECTOR_COLUMNS)
    for name in ("user", "agent"):
        by_id = Cast(f"{name}_id", TextField())
        own_key = F(f"{name}__external_id")
        columns[f"{name}_id"] = Coalesce(own_key, by_id, output_field=TextField())
    return columns
