"""Loads: a resource's lines for an organization, by an actor. All doors use this module."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from uuid import UUID

from django.db import DatabaseError
from django.db.models import Model
from psycopg.sql import SQL

from accounts.actors import Actor
from accounts.bulk import USERS
from accounts.errors import Conflict
from accounts.models import AuditEvent, Organization
from accounts.organization_settings import language_of
from accounts.roles import permission
from accounts.services.audit import record_event
from accounts.services.load_parts import JobTaken, LoadParts
from accounts.services.records import Records
from accounts.services.users import users
from accounts.tenancy import tenant
from agentmem_site.bulk.loader import load
from agentmem_site.bulk.notices import Notices
from agentmem_site.bulk.options import DEFAULTS, LoadOptions, Preparation, PreparationFailed
from agentmem_site.bulk.readers import NumberedLine
from agentmem_site.bulk.report import BadLine, Interrupted, LoadReport, LoadStopped
from agentmem_site.bulk.spec import LineError
from agentmem_site.bulk.writing import CannotRestore
from agentmem_site.db.ids import uuid7
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
from memories.models import Block, Tool
from memories.services.agents import agents, blocks, tools
from memories.services.embedding import wake_worker
from memories.services.lines import embed_new_lines
from memories.services.memories import memories
from sessions.bulk import MESSAGES, SESSIONS
from sessions.models import Run
from sessions.services.conversations import messages, runs, sessions

logger = logging.getLogger("agentmem.loads")

LOGGED_EVERY_S = 10.0
# Models that lines refer to and that have no scope of their own.
_SCOPED_BY: dict[type[Model], str] = {Run: "session", Block: "agent", Tool: "agent"}
SUCCESS, FAILURE = AuditEvent.Status.SUCCESS, AuditEvent.Status.FAILURE
EMBED_FIRST = 10_000  # a small load is searchable at once, a large one does not wait for vectors

RESOURCES = {
    spec.resource: spec for spec in (USERS, AGENTS, BLOCKS, TOOLS, SESSIONS, MESSAGES, MEMORIES)
}
# What an export has in addition; loaded only with ids.
LINKS = {spec.resource: spec for spec in (AGENT_BLOCKS, AGENT_TOOLS)}
# Referenced resources first.
EXPORTED = ["users", "agents", "blocks", "tools", *LINKS, "sessions", "messages", "memories"]

RECORDS: dict[type[Model], Records[Any]] = {
    records.model: records
    for records in (users, agents, blocks, tools, sessions, runs, messages, memories)
}


def run_load(
    resource: str,
    lines: Iterable[NumberedLine],
    *,
    organization: Organization,
    actor: Actor,
    options: LoadOptions = DEFAULTS,
    on_begin: Callable[[LoadReport], None] = lambda report: None,
    on_batch: Callable[[LoadReport], None] = lambda report: None,
    on_reject: Callable[[Sequence[LineError]], None] = lambda errors: None,
    embed_first: int | None = EMBED_FIRST,
    job: str = "",
    is_new: bool = False,
    is_index_built_after: bool = False,
    notices: Notices | None = None,
) -> LoadReport:
    """Loads, and records one audit event with the counts. Memories of the file's first
    `embed_first` lines (None: all) get their vectors during the load, the others from a worker.

    A load with the name `job` resumes where the last one of that name was interrupted, unless it
    `is_new`. With `is_index_built_after` the caller builds the index of vectors afterwards
    (memories/services/vector_index.py). Called outside `tenant()`. Raises: LoadStopped.
    """
    parts = LoadParts(
        job or f"once {uuid7()}", organization=organization, actor=actor, resource=resource
    )
    own: dict[str, Any] = {"transaction": partial(tenant, organization)}
    if resource == MEMORIES.resource:
        own |= _for_memories(organization, embed_first, options)
        if is_index_built_after:
            is_indexed = {"is_indexed": SQL("(s.embedding IS NOT NULL)")}
            own["constants"] = {**own.get("constants", {}), **is_indexed}
    with ExitStack() as stack:
        log = stack.enter_context(_logged(resource, organization, job, options))
        try:
            if job and not options.dry_run:
                stack.enter_context(parts.alone())
            if is_new:
                with tenant(organization):
                    parts.forget()
            report = load(
                lines,
                {**RESOURCES, **LINKS}[resource],
                organization_id=organization.pk,
                actor_id=actor.id,
                options=options,
                on_begin=_both(log.started, on_begin),
                on_batch=_both(log.progressed, on_batch),
                on_reject=on_reject,
                checkpoint=None if options.dry_run else parts,
                may_create=lambda r: actor.may(permission(str(r.model._meta.model_name), "write")),
                restore=partial(_restore, organization, actor),
                may_restore=lambda r: actor.may(
                    permission(_SCOPED_BY.get(r.model, str(r.model._meta.model_name)), "delete")
                ),
                notices=notices,
                **own,
            )
        except JobTaken as error:
            raise Interrupted(str(error), LoadReport(resource)) from error
        except LoadStopped as stopped:
            if not options.dry_run:
                is_over = not job or isinstance(stopped, BadLine)
                _end(parts, organization, actor, stopped.report, is_over, FAILURE)
            raise
        if not options.dry_run:
            _end(parts, organization, actor, report, True, SUCCESS)
        log.finished(report)
    return report


def _both(
    first: Callable[[LoadReport], None], second: Callable[[LoadReport], None]
) -> Callable[[LoadReport], None]:
    def call_both(report: LoadReport) -> None:
        first(report)
        second(report)

    return call_both


class _LoadLog:
    """Logs a load's counts, and nothing of its lines."""

    def __init__(self, **load_fields: Any) -> None:
        self._load_fields = load_fields
        self._report: LoadReport | None = None
        self._logged_s = 0.0

    def started(self, report: LoadReport) -> None:
        self._report = report
        self._logged_s = time.monotonic()
        self._log("A load of %s started", report)

    def progressed(self, report: LoadReport) -> None:
        """Logs at most every 10 s."""
        if time.monotonic() - self._logged_s >= LOGGED_EVERY_S:
            self._logged_s = time.monotonic()
            self._log("A load of %s is in progress", report)

    def finished(self, report: LoadReport) -> None:
        self._log("A load of %s is done", report)

    def stopped(self, error: BaseException) -> None:
        report = error.report if isinstance(error, LoadStopped) else self._report
        # (Without the message: that of a bad line may quote it.)
        cause = error.__cause__.__cause__ if error.__cause__ else None
        state = getattr(cause, "sqlstate", None)
        why = {"stopped_by": type(error).__name__, **({"sqlstate": state} if state else {})}
        resource = self._load_fields["resource"]
        self._log("A load of %s stopped", report or LoadReport(resource), **why)

    def _log(self, message: str, report: LoadReport, **more: Any) -> None:
        fields = {**self._load_fields, **report.as_dict(), **more}
        logger.info(message, report.resource, extra={"fields": fields})


@contextmanager
def _logged(
    resource: str, organization: Organization, job: str, options: LoadOptions
) -> Iterator[_LoadLog]:
    log = _LoadLog(
        resource=resource, organization_id=organization.pk, job=job, workers=options.workers
    )
    try:
        yield log
    except BaseException as error:  # Ctrl-C, too
        log.stopped(error)
        raise


def _end(
    parts: LoadParts,
    organization: Organization,
    actor: Actor,
    report: LoadReport,
    is_over: bool,
    status: str,
) -> None:
    """Records the audit event, if anything was stored. Unless the load `is_over`, its checkpoint
    stays."""
    try:
        with tenant(organization):
            if is_over:
                # (A corrected file is another file, and is read from its first line.)
                parts.forget()
            if report.batches or status == SUCCESS:
                record_event(
                    organization=organization,
                    actor=actor,
                    action="loaded",
                    resource_type=report.resource,
                    changes=report.as_dict(),
                    status=status,
                    duration_ms=int(report.seconds * 1000),
                )
    except DatabaseError:
        if status == SUCCESS:
            raise
        # The database is away, which the caller's error says already.


def _restore(
    organization: Organization, actor: Actor, model: type[Model], ids: Sequence[UUID]
) -> None:
    """Restores rows from the trash, each with the rows that were deleted with it."""
    rows = model._default_manager.filter(pk__among=ids)
    try:
        RECORDS[model].restore(rows, organization=organization, actor=actor)
    except Conflict as error:
        raise CannotRestore(str(error)) from error


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
    if not options.preserve_ids:  # an export has both for each row
        own["constants"] = {"language": language_of(organization.settings)}
        own["preparation"] = Preparation(complete, until_line=embed_first)
    if options.dry_run:  # one transaction, in which nothing may be encoded
        own.pop("preparation", None)
        own["transaction"] = partial(tenant, organization)
    return own
