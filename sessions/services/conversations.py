"""Sessions, the runs appended to them, and messages."""

from collections.abc import Mapping
from typing import Any

from django.db import transaction
from django.utils import timezone

from accounts.actors import Actor
from accounts.errors import Invalid, NotFound
from accounts.models import Organization
from accounts.services.records import M, Records
from sessions.models import Message, Run, Session


class AddressedRecords(Records[M]):
    """`key` stands in URLs: a slash there, or the word for the newest, could not be asked for."""

    def __init__(self, model: type[M], key: str, *reserved: str) -> None:
        super().__init__(model)
        self.key, self.reserved = key, reserved

    def derive(self, record: M, changed: frozenset[str], *, is_new: bool) -> frozenset[str]:
        value = getattr(record, self.key)
        if self.key in changed and "/" in value:
            raise Invalid("It stands in URLs: no slash.", field=self.key, code="slash")
        if self.key in changed and value in self.reserved:
            raise Invalid(f"`{value}` has a meaning in URLs.", field=self.key, code="reserved")
        return changed


class MessageRecords(Records[Message]):
    def derive(self, record: Message, changed: frozenset[str], *, is_new: bool) -> frozenset[str]:
        # Said in a session it is of that session's agent and user, where nothing else is told:
        # an agent's messages are asked for without its sessions.
        if not is_new or record.session is None:
            return changed
        followed = {"agent", "user"} - changed
        for name in followed:
            setattr(record, f"{name}_id", getattr(record.session, f"{name}_id"))
        return changed | followed


sessions = AddressedRecords(Session, "session_id")
runs = AddressedRecords(Run, "run_id", "last")
messages = MessageRecords(Message)


def append_run(
    session: Session, *, organization: Organization, actor: Actor, values: Mapping[str, Any]
) -> Run:
    """The new last run of the session; appending the 10,000th costs what the first did.

    Raises: NotFound (the session is gone), Conflict (the run_id is taken), Invalid.
    """
    with transaction.atomic():
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
        rows.update(updated_at=timezone.now(), last_updated_by_id=actor.id)
    return run
