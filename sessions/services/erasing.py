"""Erases a person: all their data in every app, permanently, with a tombstone in the audit log.

It is in this app because no app above holds personal data.
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

# The cache has vectors by the hash of their text, of older versions too: all whose text no memory
# has any more are removed.
_FORGET_VECTORS = """
DELETE FROM memories_cachedvector c WHERE c.organization_id = %s AND NOT EXISTS (
    SELECT FROM memories_memory m WHERE m.organization_id = %s AND m.hash = c.hash)
"""


class PeopleRecords(Records[User]):
    """Users; purging one erases the person."""

    def purge(self, rows: Any, *, organization: Organization, actor: Actor) -> Counts:
        total: Counts = {}
        with transaction.atomic(), track_progress("erase users") as progress:
            for user in rows.for_organization(organization).order_by("pk").select_for_update():
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
    """How many rows per model `erase_person` would remove, without cached vectors."""
    counter = RowCounter(pick_all, for_good=True)
    return counter.count(_everything_of(user, organization, counter.pick))


def erase_person(user: User, *, organization: Organization, actor: Actor) -> Counts:
    """Removes the user and all their data, also from the trash; returns the rows per model.

    Works in chunks, so that many rows take little memory. The audit event has the counts and the
    uuid, but no name and no external_id: even a hash of these could be reversed by guessing.
    Raises: NotFound (deleted meanwhile), Conflict, Unavailable (longer than a request may take).
    """
    with transaction.atomic(), track_progress("erase user") as progress:
        counts = _erase(user, organization, actor, progress)
        _forget_vectors(organization)
    return counts


def _erase(user: User, organization: Organization, actor: Actor, progress: Progress) -> Counts:
    own = User.objects.for_organization(organization).filter(pk=user.pk)
    # Transactions that add a row for the user wait for this lock, and then fail.
    if not own.select_for_update().exists():
        raise NotFound
    # Memories of other users in this user's sessions stay, without their session_id.
    for memories in _memories_in_sessions_of(user, organization):
        for keys in fetch_keys(memories.exclude(user=None).exclude(user=user)):
            others = Chunk(Memory, keys).rows(organization)
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
        # A hash join of all vectors and all memories, whatever the planner estimates.
        cursor.execute("SET LOCAL enable_nestloop = off")
        cursor.execute(_FORGET_VECTORS, [organization.pk, organization.pk])
        cursor.execute("SET LOCAL enable_nestloop TO DEFAULT")


def erased_and_back(organization: Organization) -> list[UUID]:
    """Users who were erased and exist again, because an older export was imported."""
    events = AuditEvent.objects.for_organization(organization)
    erased = events.filter(action="erased", resource_type="user").values("resource_id")
    rows = User.objects.for_organization(organization).filter(pk__in=erased)
    return list(rows.order_by("pk").values_list("pk", flat=True))


def _memories_in_sessions_of(user: User, organization: Organization) -> Iterator[Any]:
    """All memories, of any user, in this user's sessions, CHUNK_ROWS sessions at a time."""
    sessions = Session.objects.for_organization(organization).filter(user=user)
    keys = list(sessions.order_by().values_list("session_id", flat=True))
    memories = Memory.objects.for_organization(organization).order_by()
    for start in range(0, len(keys), CHUNK_ROWS):
        yield memories.filter(session_id__among=keys[start : start + CHUNK_ROWS])


def _everything_of(user: User, organization: Organization, pick: Pick) -> Iterator[Chunk]:
    """The rows to remove; referencing rows come before the referenced ones."""
    messages = Message.objects.for_organization(organization).order_by()
    for keys in fetch_keys(messages.filter(user=user)):
        yield Chunk(Message, keys)
    for memories in _memories_in_sessions_of(user, organization):
        # Memories without a user are taken for this user's.
        for keys in fetch_keys(memories.filter(user=None)):
            yield from walk(Memory, keys, organization, pick, for_good=True)
    roots = RowKeys([user.pk], [user.deleted_at])
    yield from walk(User, roots, organization, pick, for_good=True)
