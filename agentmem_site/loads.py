"""Loads: a resource's lines for an organization, by an actor. All doors come through here."""

from collections.abc import Callable, Iterable
from functools import partial

from accounts.actors import Actor
from accounts.bulk import USERS
from accounts.models import AuditEvent, Organization
from accounts.services.audit import record_event
from accounts.tenancy import tenant
from agentmem_site.bulk import LoadOptions, LoadReport, load
from agentmem_site.bulk.loader import LoadStopped
from agentmem_site.bulk.readers import NumberedLine
from memories.bulk import AGENT_BLOCKS, AGENT_TOOLS, AGENTS, BLOCKS, MEMORIES, TOOLS
from sessions.bulk import MESSAGES, SESSIONS

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
) -> LoadReport:
    """Loads and leaves one audit event with the counts. Raises: LoadStopped."""
    try:
        report = load(
            lines,
            {**RESOURCES, **LINKS}[resource],
            organization_id=organization.pk,
            actor_id=actor.id,
            transaction=partial(tenant, organization),
            options=options,
            on_batch=on_batch,
        )
    except LoadStopped as stopped:
        if stopped.report.batches and not options.dry_run:
            _note(organization, actor, stopped.report, AuditEvent.Status.FAILURE)
        raise
    if not options.dry_run:
        _note(organization, actor, report, AuditEvent.Status.SUCCESS)
    return report


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
