"""The loader as a Python call."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any
from uuid import UUID

from agentmem_site.bulk.loader import load
from agentmem_site.bulk.options import DEFAULTS, LoadOptions
from agentmem_site.bulk.readers import source_of_rows
from agentmem_site.bulk.report import LoadReport
from agentmem_site.bulk.spec import LineError, LoadSpec


def bulk_upsert(
    spec: LoadSpec,
    rows: Iterable[Mapping[str, Any]],
    *,
    organization_id: UUID,
    transaction: Callable[[], AbstractContextManager[None]],
    actor_id: UUID | None = None,
    options: LoadOptions = DEFAULTS,
    on_batch: Callable[[LoadReport], None] = lambda report: None,
    on_reject: Callable[[Sequence[LineError]], None] = lambda errors: None,
) -> LoadReport:
    """Inserts new rows, updates those that really differ, and reports exact counts.

    `rows` are dicts with the fields of the spec's lines, from any iterable, which is read batch by
    batch. Dates, UUIDs, decimals and numpy arrays are fine. "Lines" of the report are rows, counted
    from 1. `transaction` opens a transaction in the organization's context, for each batch:

        from functools import partial
        from accounts.tenancy import tenant
        from agentmem_site.bulk import bulk_upsert
        from sessions.bulk import SESSIONS

        report = bulk_upsert(
            SESSIONS,
            ({"session_id": s.key, "user_id": s.customer} for s in their_sessions()),
            organization_id=acme.pk,
            transaction=partial(tenant, acme),
        )
        print(report.counts.inserted, report.counts.updated)

    It writes no audit event, embeds nothing and keeps no checkpoint: `agentmem_site.services.loads`
    adds these for the doors. Called outside a transaction.
    Raises: LoadStopped; its report has what is committed.
    """
    return load(
        source_of_rows(rows).lines(),
        spec,
        organization_id=organization_id,
        actor_id=actor_id,
        transaction=transaction,
        options=options,
        on_batch=on_batch,
        on_reject=on_reject,
    )
