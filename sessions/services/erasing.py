"""Erasing a person: everything of theirs for good, in every app, with a tombstone in the audit log.

It stands in this app as the uppermost that holds any of it.
"""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

from django.db import IntegrityError, connection, transaction

from accounts.actors import Actor
from accounts.errors import Conflict, NotFound
from accounts.models import AuditEvent, Organization, User
from accounts.services.audit import record_event
from accounts.services.dependents import (
    CHUNK_ROWS,
    Chunk,
    Counts,
    Pick,
    Progress,
    RowCounter,
    RowKeys,
    fetch_keys,
    pick_all,
    remove,
    track_progress,
    walk,
)
from accounts.services.records import Records
from memories.models import Memory
from sessions.models import Message, Session

# The cache knows a vector by the hash of what was said, in every version there was of it: what
# no memory says any more goes.
_FORGET_VECTORS = """
DELETE FROM memories_cachedvector c WHERE c.organization_id = %s AND NOT EXISTS (
    SELECT FROM memories_memory m WHERE m.organization_id = %s AND m.hash = c.hash)
"""


class PeopleRecords(Records[User]):
    """Users whose deletion for good is erasure."""

    def purge(self, rows: Any, *, organization: Organization, actor: Actor) -> Counts:
        total: Counts = {}
        with transaction.atomic(), track_progress("erase users") as progress:
            for user in rows.for_organization(organization).order_by("pk"):
                counts = _erase(user, organization, actor, progress)
                total = {k: total.get(k, 0) + counts.get(k, 0) for k in {**total, **counts}}
            _forget_vectors(organization)
        return total

    def count_affected(
        self, rows: Any, *, organization: Organization, at_most: int, for_good: bool = False
    ) -> Counts:
        if not for_good:
            return super().count_affected(rows, organization=organization, at_most=at_most)
        counter = RowCounter(pick_all, for_good=True, at_most=at_most)
        return counter.count(
            chunk
            for user in rows.for_organization(organization)
            for chunk in _everything_of(user, organization, counter.pick)
        )


people = PeopleRecords(User)


def count_person(user: User, *, organization: Organization) -> Counts:
    """How many rows of which model `erase_person` would take; cached vectors are not counted."""
    counter = RowCounter(pick_all, for_good=True)
    return counter.count(_everything_of(user, organization, counter.pick))


def erase_person(user: User, *, organization: Organization, actor: Actor) -> Counts:
    """Removes the user and all that is theirs, also from the trash; how many rows of which model.

    Chunk by chunk: a hundred thousand memories cost little memory here. The audit event tells the
    counts and the uuid, no name and no key of the caller's: a hash of one could be guessed back.
    Raises: NotFound (gone meanwhile), Conflict, Unavailable (it takes longer than a request may).
    """
    with transaction.atomic(), track_progress("erase user") as progress:
        counts = _erase(user, organization, actor, progress)
        _forget_vectors(organization)
    return counts


def _erase(user: User, organization: Organization, actor: Actor, progress: Progress) -> Counts:
    own = User.objects.for_organization(organization).filter(pk=user.pk)
    # Whoever would add a row of theirs waits, and finds nobody then.
    if not own.select_for_update().exists():
        raise NotFound
    # What another said in a session of theirs stays, and forgets in which.
    for said in _said_in_sessions_of(user, organization):
        for found in fetch_keys(said.exclude(user=None).exclude(user=user)):
            others = Chunk(Memory, found).rows(organization)
            others.update(session_id=None, line_hash=None)
    counts: Counts = {}
    try:
        remove(_everything_of(user, organization, pick_all), organization, counts, progress)
    except IntegrityError as error:
        raise Conflict("A row was added to a session of theirs meanwhile: ask again.") from error
    record_event(
        organization=organization,
        actor=actor,
        action="erased",
        resource_type="user",
        resource_id=user.pk,
        changes={"rows": counts},
    )
    return counts


def _forget_vectors(organization: Organization) -> None:
    with connection.cursor() as cursor:
        # All vectors against all memories: never one by one, whatever is expected of them.
        cursor.execute("SET LOCAL enable_nestloop = off")
        cursor.execute(_FORGET_VECTORS, [organization.pk, organization.pk])
        cursor.execute("SET LOCAL enable_nestloop TO DEFAULT")


def erased_and_back(organization: Organization) -> list[UUID]:
    """The users who were erased and are there again: an older export was imported."""
    events = AuditEvent.objects.for_organization(organization)
    erased = events.filter(action="erased", resource_type="user").values("resource_id")
    rows = User.objects.for_organization(organization).filter(pk__in=erased)
    return list(rows.order_by("pk").values_list("pk", flat=True))


def _said_in_sessions_of(user: User, organization: Organization) -> Iterator[Any]:
    """Anybody's memories of sessions of theirs, of CHUNK_ROWS sessions at a time."""
    sessions = Session.objects.for_organization(organization).filter(user=user)
    keys = list(sessions.order_by().values_list("session_id", flat=True))
    memories = Memory.objects.for_organization(organization).order_by()
    for start in range(0, len(keys), CHUNK_ROWS):
        yield memories.filter(session_id__among=keys[start : start + CHUNK_ROWS])


def _everything_of(user: User, organization: Organization, pick: Pick) -> Iterator[Chunk]:
    """The rows, what refers to others first."""
    messages = Message.objects.for_organization(organization).order_by()
    for found in fetch_keys(messages.filter(user=user)):
        yield Chunk(Message, found)
    for said in _said_in_sessions_of(user, organization):
        # Learnt in a session of theirs, and of nobody else.
        for learnt in fetch_keys(said.filter(user=None)):
            yield from walk(Memory, learnt, organization, pick, for_good=True)
    roots = RowKeys([user.pk], [user.deleted_at])
    yield from walk(User, roots, organization, pick, for_good=True)
