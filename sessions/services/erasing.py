"""Erasing a person: everything of theirs for good, in every app, with a tombstone in the audit log.

It stands in this app as the uppermost that holds any of it.
"""

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from django.db import IntegrityError, connection, transaction

from accounts.actors import Actor
from accounts.errors import Conflict, NotFound
from accounts.models import AuditEvent, Organization, User
from accounts.services.audit import record_event
from accounts.services.records import Records
from memories.models import AgentBlock, Block, Memory, MemoryHistory
from sessions.models import Message, Run, Session

Counts = dict[str, int]  # rows by model, e.g. {"memory": 12, "user": 1}

# The cache knows a vector by the hash of what was said, in every version there was of it: what
# no memory says any more goes.
_FORGET_VECTORS = """
DELETE FROM memories_cachedvector c WHERE c.organization_id = %s AND NOT EXISTS (
    SELECT FROM memories_memory m WHERE m.organization_id = %s AND m.hash = c.hash)
"""


class PeopleRecords(Records[User]):
    """Users whose deletion for good is erasure."""

    def purge(self, rows: Any, *, organization: Organization, actor: Actor) -> Counts:
        with transaction.atomic():
            return _added(
                erase_person(user, organization=organization, actor=actor)
                for user in rows.for_organization(organization).order_by("pk")
            )

    def reach(
        self, rows: Any, *, organization: Organization, at_most: int, for_good: bool = False
    ) -> Counts:
        if not for_good:
            return super().reach(rows, organization=organization, at_most=at_most)
        return _added(
            count_person(user, organization=organization)
            for user in rows.for_organization(organization)
        )


people = PeopleRecords(User)


def _added(parts: Iterable[Counts]) -> Counts:
    total: Counts = {}
    for counts in parts:
        for name, number in counts.items():
            total[name] = total.get(name, 0) + number
    return total


def count_person(user: User, *, organization: Organization) -> Counts:
    """How many rows of which model `erase_person` would take; cached vectors are not counted."""
    parts: dict[str, list[Any]] = {}
    for rows in _everything_of(user, organization):
        parts.setdefault(str(rows.model._meta.model_name), []).append(rows.order_by().values("pk"))
    # Reached on two ways, a row counts once.
    counts = {name: found[0].union(*found[1:]).count() for name, found in parts.items()}
    return {name: number for name, number in counts.items() if number}


def erase_person(user: User, *, organization: Organization, actor: Actor) -> Counts:
    """Removes the user and all that is theirs, also from the trash; how many rows of which model.

    Set by set in the database: a hundred thousand memories cost no memory here. The audit event
    tells the counts and the uuid, no name and no key of the caller's: a hash of one could be
    guessed back. Raises: NotFound (gone meanwhile), Conflict.
    """
    with transaction.atomic():
        own = User.objects.for_organization(organization).filter(pk=user.pk)
        # Whoever would add a row of theirs waits, and finds nobody then.
        if not own.select_for_update().exists():
            raise NotFound
        # What another said in a session of theirs stays, and forgets in which.
        _said_in_sessions_of(user, organization).exclude(user=None).exclude(user=user).update(
            session_id=None, line_hash=None
        )
        counts = _remove(_everything_of(user, organization))
        with connection.cursor() as cursor:
            cursor.execute(_FORGET_VECTORS, [organization.pk, organization.pk])
        record_event(
            organization=organization,
            actor=actor,
            action="erased",
            resource_type="user",
            resource_id=user.pk,
            changes={"rows": counts},
        )
    return counts


def erased_and_back(organization: Organization) -> list[UUID]:
    """The users who were erased and are there again: an older export was imported."""
    events = AuditEvent.objects.for_organization(organization)
    erased = events.filter(action="erased", resource_type="user").values("resource_id")
    rows = User.objects.for_organization(organization).filter(pk__in=erased)
    return list(rows.order_by("pk").values_list("pk", flat=True))


def _remove(sets: list[Any]) -> Counts:
    counts: Counts = {}
    try:
        for rows in sets:
            # Not .delete(): Django would collect the rows in Python and go by id alone.
            if number := rows._raw_delete(rows.db):
                name = str(rows.model._meta.model_name)
                counts[name] = counts.get(name, 0) + number
    except IntegrityError as error:
        raise Conflict("A row was added to a session of theirs meanwhile: ask again.") from error
    return counts


def _said_in_sessions_of(user: User, organization: Organization) -> Any:
    sessions = Session.objects.for_organization(organization).filter(user=user)
    memories = Memory.objects.for_organization(organization)
    return memories.filter(session_id__in=sessions.values("session_id"))


def _everything_of(user: User, organization: Organization) -> list[Any]:
    """The rows, what refers to others first. Nested querysets: nothing comes to Python."""
    sessions = Session.objects.for_organization(organization).filter(user=user)
    runs = Run.objects.for_organization(organization).filter(session__in=sessions.values("pk"))
    said = Message.objects.for_organization(organization)
    memories = Memory.objects.for_organization(organization).filter(user=user)
    # Learnt in a session of theirs, and of nobody else.
    learnt = _said_in_sessions_of(user, organization).filter(user=None)
    history = MemoryHistory.objects.for_organization(organization)
    blocks = Block.objects.for_organization(organization).filter(user=user)
    links = AgentBlock.objects.for_organization(organization)
    return [
        said.filter(user=user),
        said.filter(session__in=sessions.values("pk")),
        said.filter(run__in=runs.values("pk")),
        history.filter(memory__in=memories.values("pk")),
        history.filter(memory__in=learnt.values("pk")),
        memories,
        learnt,
        runs,
        sessions,
        links.filter(block__in=blocks.values("pk")),
        blocks,
        User.objects.for_organization(organization).filter(pk=user.pk),
    ]
