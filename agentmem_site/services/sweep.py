"""The sweep removes expired memories, and what an organization's retention rules select.

Batch by batch, each in its own transaction, through the same `Records` as a person's deletions:
with history, and with one audit event per batch. Rows that others have locked are skipped.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

from django.db.models import Q
from django.utils import timezone

from accounts.actors import Actor
from accounts.models import LoadPart, Organization
from accounts.organization_settings import Retention, retention_of
from accounts.services.keys import api_keys
from accounts.services.records import Records
from accounts.services.users import users
from accounts.tenancy import tenant
from memories.models import CachedVector, Memory
from memories.services.agents import agent_blocks, agent_tools, agents, blocks, tools
from memories.services.memories import memories
from sessions.services.conversations import messages, runs, sessions

BATCH_SIZE = 1000
MAX_COUNT = 100_000  # a preview stops counting here
ABANDONED_AFTER = timedelta(days=30)  # an interrupted load that was not resumed

# Children first: purging a parent then has no dependent rows to purge in the same statement.
_PURGED: tuple[Records[Any], ...] = (
    messages,
    runs,
    sessions,
    memories,
    agent_blocks,
    agent_tools,
    blocks,
    tools,
    agents,
    users,
    api_keys,
)


@dataclass(slots=True)
class Swept:
    """How many rows of an organization were removed, or would be."""

    organization: str
    expired: int = 0
    aged: int = 0
    unfound: int = 0
    purged: dict[str, int] = field(default_factory=dict)  # by model
    cached_vectors: int = 0
    abandoned_loads: int = 0  # workers of loads that nobody resumed

    @property
    def total(self) -> int:
        trashed = self.expired + self.aged + self.unfound
        return trashed + sum(self.purged.values()) + self.cached_vectors + self.abandoned_loads

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class _Rule(NamedTuple):
    """Which live memories go to the trash, and the indexed column for finding them in batches."""

    name: str
    condition: Q
    key: str


def sweep(*, organization: Organization, actor: Actor, is_dry_run: bool = False) -> Swept:
    """Called outside tenant(). Raises: Invalid (settings.retention)."""
    take = partial(_count if is_dry_run else _walk, organization)
    return _sweep(organization, actor, retention_of(organization.settings), take)


def would_sweep(*, organization: Organization, settings: Mapping[str, Any]) -> Swept:
    """What a sweep with these settings would remove now; MAX_COUNT + 1 means more. Called within
    the context; changes nothing. Raises: Invalid (settings.retention)."""
    nobody = Actor(kind="system", name="preview")
    return _sweep(organization, nobody, retention_of(settings), _count_some)


def _sweep(
    organization: Organization, actor: Actor, retention: Retention, take: Callable[..., int]
) -> Swept:
    now = timezone.now()
    by: dict[str, Any] = {"organization": organization, "actor": actor}
    swept = Swept(organization.slug)

    rows = Memory.objects.for_organization(organization).live()
    for rule in _rules(retention, now):
        number = take(rows.filter(rule.condition), rule.key, partial(memories.delete, **by))
        setattr(swept, rule.name, number)
        rows = rows.exclude(rule.condition)  # a memory counts only for the first matching rule

    for records, deleted in _overdue(organization, retention, now):
        if number := take(deleted, "deleted_at", partial(records.purge, **by)):
            swept.purged[records.name] = number

    since = now - timedelta(days=retention.cached_vector_days)
    vectors = CachedVector.objects.for_organization(organization).filter(created_at__lt=since)
    # (No audit event: these are not rows that a person would name.)
    swept.cached_vectors = take(vectors, "created_at", lambda batch: batch._raw_delete(batch.db))
    loads = LoadPart.objects.for_organization(organization)
    loads = loads.filter(created_at__lt=now - ABANDONED_AFTER, updated_at__lt=now - ABANDONED_AFTER)
    swept.abandoned_loads = take(loads, "created_at", lambda batch: batch._raw_delete(batch.db))
    return swept


def _rules(retention: Retention, now: datetime) -> Iterator[_Rule]:
    yield _Rule("expired", Q(expires_at__lte=now), "expires_at")
    if retention.memory_days is not None:
        since = now - timedelta(days=retention.memory_days)
        yield _Rule("aged", Q(created_at__lt=since), "created_at")
    if retention.unfound_days is not None:
        since = now - timedelta(days=retention.unfound_days)
        # Memories that were imported or changed recently had no time to be found.
        condition = Q(
            Q(last_accessed__lt=since) | Q(last_accessed__isnull=True),
            importance__lt=retention.unfound_below_importance,
            created_at__lt=since,
            updated_at__lt=since,
        )
        yield _Rule("unfound", condition, "created_at")


def _overdue(
    organization: Organization, retention: Retention, now: datetime
) -> Iterator[tuple[Records[Any], Any]]:
    """Rows that have been in the trash for too long, by model."""
    if retention.trash_days is None:
        return
    since = now - timedelta(days=retention.trash_days)
    for records in _PURGED:
        rows = records.model.objects.for_organization(organization).deleted()
        yield records, rows.filter(deleted_at__lt=since)


def _count(organization: Organization, rows: Any, key: str, take: Callable[[Any], Any]) -> int:
    with tenant(organization):
        return int(rows.order_by().count())


def _count_some(rows: Any, key: str, take: Callable[[Any], Any]) -> int:
    return int(rows.order_by().values("pk")[: MAX_COUNT + 1].count())


def _walk(organization: Organization, rows: Any, key: str, take: Callable[[Any], Any]) -> int:
    """Locks `rows` and passes them to `take`, which removes them from the queryset: a batch per
    transaction, in the order of `key`. Returns their number."""
    done, after = 0, None
    while True:
        with tenant(organization):
            rest = rows if after is None else rows.filter(**{f"{key}__gte": after})
            # (Not ordered by id too: each batch would sort all of a million rows with equal keys.)
            locked = rest.order_by(key).select_for_update(skip_locked=True, of=("self",))
            batch = list(locked.values_list(key, "pk")[:BATCH_SIZE])
            if not batch:
                return done
            own = rows.model.objects.for_organization(organization)
            take(own.filter(pk__among=[pk for _, pk in batch]))
        done += len(batch)
        after = batch[-1][0]
