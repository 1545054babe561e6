"""Loads: a resource's lines for an organization, by an actor. All doors come through here."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from accounts.actors import Actor
from accounts.bulk import USERS
from accounts.models import AuditEvent, Organization
from accounts.organization_settings import language_of
from accounts.services.audit import record_event
from accounts.tenancy import tenant
from agentmem_site.bulk import LoadOptions, LoadReport, load
from agentmem_site.bulk.loader import LoadStopped, Preparation, PreparationFailed
from agentmem_site.bulk.readers import NumberedLine
from memories.bulk import (
    AGENT_BLOCKS,
    AGENT_TOOLS,
    AGENTS,
    BLOCKS,
    MEMORIES,
    TOOLS,
    MemoryLine,
)
from memories.embeddings import EncoderError
from memories.services.embedding import wake_worker
from memories.services.lines import embed_new_lines
from sessions.bulk import MESSAGES, SESSIONS

EMBED_FIRST = 10_000  # a small load is searchable at once, a large one does not wait for vectors

RESOURCES = {
    spec.resource: spec for spec in (USERS, AGENTS, BLOCKS, TOOLS, SESSIONS, MESSAGES, MEMORIES)
}
# What an export has beside them; loaded with their ids alone.
LINKS = {spec.resource: spec for spec in (AGENT_BLOCKS, AGENT_TOOLS)}
# In the order in which they refer to each other.
EXPORTED = ["users", "agents", "blocks", "tools", *LINKS, "sessions", "messages", "memories"]


def run_load(
    resource: str,
    lines: Iterable[NumberedLine],
    *,
    organization: Organization,
    actor: Actor,
    options: LoadOptions,
    on_batch: Callable[[LoadReport], None],
    embed_first: int | None = EMBED_FIRST,
) -> LoadReport:
    """Loads and leaves one audit event with the counts. Of memories, those of the load's first
    `embed_first` rows (None: of all) get their vectors with the load, the others from a worker.

    Raises: LoadStopped.
    """
    own: dict[str, Any] = {"transaction": partial(tenant, organization)}
    if resource == MEMORIES.resource:
        own |= _for_memories(organization, embed_first, options)
    try:
        report = load(
            lines,
            {**RESOURCES, **LINKS}[resource],
            organization_id=organization.pk,
            actor_id=actor.id,
            options=options,
            on_batch=on_batch,
            **own,
        )
    except LoadStopped as stopped:
        if stopped.report.batches and not options.dry_run:
            _note(organization, actor, stopped.report, AuditEvent.Status.FAILURE)
        raise
    if not options.dry_run:
        _note(organization, actor, report, AuditEvent.Status.SUCCESS)
    return report


def _for_memories(
    organization: Organization, embed_first: int | None, options: LoadOptions
) -> dict[str, Any]:
    def complete(lines: Sequence[MemoryLine]) -> None:
        try:
            embed_new_lines(lines, organization=organization)
        except EncoderError as error:
            raise PreparationFailed(str(error), is_temporary=error.is_temporary) from error

    @contextmanager
    def waking_workers() -> Iterator[None]:
        with tenant(organization):
            yield
            wake_worker(organization)

    own: dict[str, Any] = {"transaction": waking_workers}
    if not options.preserve_ids:  # an export says both of each row
        own["constants"] = {"language": language_of(organization)}
        own["preparation"] = Preparation(complete, first_rows=embed_first)
    if options.dry_run:  # one transaction: nothing can be encoded meanwhile
        own.pop("preparation", None)
        own["transaction"] = partial(tenant, organization)
    return own


def _note(organization: Organization, actor: Actor, report: LoadReport, status: str) -> None:
    with tenant(organization):
        record_event(
            organization=organization,
            actor=actor,
            action="loaded",
            resource_type=report.resource,
            changes=report.as_dict(),
            status=status,
            duration_ms=int(report.seconds * 1000),
        )
