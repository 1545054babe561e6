"""Changes to sessions, runs and messages."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from accounts.actors import Actor
from accounts.errors import NotFound
from accounts.models import Organization
from accounts.services.naming import add_named, is_new
from accounts.services.records import Records
from sessions.models import Message, Run, Session


class MessageRecords(Records[Message]):
    def create_many(
        self, *, organization: Organization, actor: Actor, rows: Sequence[Mapping[str, Any]]
    ) -> list[Message]:
        for row in rows:
            session: Any = row.get("session")
            if is_new(session):
                session.agent, session.user = row.get("agent"), row.get("user")
        return super().create_many(organization=organization, actor=actor, rows=rows)

    def derive(self, record: Message, changed: frozenset[str], *, is_new: bool) -> frozenset[str]:
        # Agent and user default to those of the session, because lists of an agent's messages do
        # not join sessions.
        if not is_new or record.session is None:
            return changed
        inherited = {"agent", "user"} - changed
        for name in inherited:
            setattr(record, f"{name}_id", getattr(record.session, f"{name}_id"))
        return changed | inherited


class SessionRecords(Records[Session]):
    """Sessions are locked before their dependent rows, in the order of their key. Loads do the
    same, so that a transaction waiting for a run holds its session."""

    lock_order = ("session_id",)


class RunRecords(Records[Run]):
    """Changing a run also sets `updated_at` of its session."""

    def update(
        self,
        record: Run,
        *,
        organization: Organization,
        actor: Actor,
        values: Mapping[str, Any],
        seen: Mapping[str, str] | None = None,
    ) -> Run:
        with transaction.atomic():
            _lock(Session.objects.for_organization(organization).filter(pk=record.session_id))
            return super().update(
                record, organization=organization, actor=actor, values=values, seen=seen
            )

    def after_update(self, record: Run, changed: frozenset[str]) -> None:
        _touch(
            record.organization_id,
            [record.session_id],
            at=record.updated_at,
            by=record.last_updated_by_id,
        )

    def before_move(self, rows: Any, *, organization: Organization, actor: Actor) -> None:
        moved = set(rows.order_by().values_list("session_id", flat=True))
        _touch(organization.pk, moved, at=timezone.now(), by=actor.id)


def _lock(sessions: Any) -> None:
    locked = sessions.order_by("session_id").select_for_update(of=("self",))
    for _ in locked.values_list("pk").iterator():  # (however many there are)
        pass


def _touch(
    organization_id: UUID, session_ids: Collection[UUID], *, at: datetime, by: UUID | None
) -> None:
    rows = Session.objects.for_organization(organization_id).filter(pk__among=session_ids)
    rows.update(updated_at=at, last_updated_by_id=by)


sessions = SessionRecords(Session)
runs = RunRecords(Run)
messages = MessageRecords(Message)


def append_run(
    session: Session, *, organization: Organization, actor: Actor, values: Mapping[str, Any]
) -> Run:
    """Appends a run to the session, which is created if it is new (naming.py). The cost does not
    depend on the number of runs.

    Raises: NotFound (the session was deleted), Conflict (the run_id is taken), Forbidden, Invalid.
    """
    with transaction.atomic():
        add_named({"session": session}, organization=organization, actor=actor)
        rows = Session.objects.for_organization(organization).live().filter(pk=session.pk)
        if not rows.select_for_update().exists():
            raise NotFound
        before = Run.objects.for_organization(organization).filter(session=session)
        last = before.order_by("-position").values_list("position", flat=True).first()
        position = 0 if last is None else last + 1
        run = runs.create(
            organization=organization,
            actor=actor,
            values={"position": position, **values, "session": session},
        )
        _touch(organization.pk, [session.pk], at=timezone.now(), by=actor.id)
    return run
