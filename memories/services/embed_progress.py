"""How far an organization's memories are embedded, and whether anybody is at it.

A worker notes in a row when it came for an organization's pending memories: that is seen from every
server and through any pooler, and costs nothing where nothing is pending.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import connection
from django.utils import timezone

from accounts.models import Organization
from accounts.tenancy import tenant
from memories.models import EmbedVisit, Memory

# A worker that has died is known after so long: longer than its longest pause, or a batch, takes.
# One that builds the index of vectors meanwhile is taken for dead too: it embeds nothing then.
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
    is_more: bool = False  # than `number`: no further was counted


@dataclass(frozen=True, slots=True)
class Progress:
    """Live memories by embedding state, and when a worker last came for those that are pending."""

    counts: dict[str, Counted]
    visited_at: datetime | None
    is_failing: bool  # the encoder could not be used then

    @property
    def has_worker(self) -> bool:
        return self.visited_at is not None and timezone.now() - self.visited_at < GONE_AFTER


def note_visit(organization: Organization, *, is_failing: bool) -> None:
    """A worker has come for the organization's pending memories."""
    with tenant(organization), connection.cursor() as cursor:
        cursor.execute(_VISIT, [organization.pk, is_failing])


def embed_progress(organization: Organization) -> Progress:
    """Each state is counted by its own partial index, up to a bound. Within tenant()."""
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
