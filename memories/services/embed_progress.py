"""How many of an organization's memories are embedded, and whether a worker is running.

A worker writes to a row when it last took an organization's pending memories. Every server sees it,
through any pooler, and it costs nothing when nothing is pending.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import connection
from django.utils import timezone

from accounts.models import Organization
from accounts.tenancy import tenant
from memories.models import EmbedVisit, Memory

# Without a visit for so long, a worker counts as dead: longer than its longest pause or a batch. So
# does one that is building the index of vectors: it embeds nothing meanwhile.
GONE_AFTER = timedelta(minutes=2)
MAX_PENDING = 1_000_000  # counted: a tenth of a second for 200,000
MAX_OTHERS = 100_000  # of each other state

_VISIT = """
INSERT INTO memories_embedvisit (
    id, organization_id, created_at, updated_at, is_deleted, is_failing)
VALUES (agentmem_uuid7(), %s, statement_timestamp(), statement_timestamp(), false, %s)
ON CONFLICT (organization_id) DO UPDATE
SET updated_at = EXCLUDED.updated_at, is_failing = EXCLUDED.is_failing
"""
_STATES = Memory.EmbeddingState


@dataclass(frozen=True, slots=True)
class Counted:
    number: int
    is_more: bool = False  # counting stopped at `number`


@dataclass(frozen=True, slots=True)
class Progress:
    """Live memories by embedding state, and when a worker last came for the pending ones."""

    counts: dict[str, Counted]
    visited_at: datetime | None
    is_failing: bool  # the encoder could not be used then

    @property
    def has_worker(self) -> bool:
        return self.visited_at is not None and timezone.now() - self.visited_at < GONE_AFTER


def note_visit(organization: Organization, *, is_failing: bool) -> None:
    """Records that a worker came for the organization's pending memories."""
    with tenant(organization), connection.cursor() as cursor:
        cursor.execute(_VISIT, [organization.pk, is_failing])


def embed_progress(organization: Organization) -> Progress:
    """Counts each state by its partial index, up to a limit. Within tenant()."""
    rows = Memory.objects.for_organization(organization).live().order_by()
    counts = {}
    for state in _STATES.values:
        most = MAX_PENDING if state == _STATES.PENDING else MAX_OTHERS
        number = rows.filter(embedding_state=state).values("pk")[: most + 1].count()
        counts[state] = Counted(min(number, most), number > most)
    visit = EmbedVisit.objects.for_organization(organization).first()
    return Progress(
        counts, visit.updated_at if visit else None, visit.is_failing if visit else False
    )
