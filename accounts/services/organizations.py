"""Organizations and their members: the identity plane."""

from collections.abc import Mapping
from typing import Any

from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.db import transaction

from accounts.actors import Actor
from accounts.errors import Forbidden, Invalid, named_violations
from accounts.models import Member, Organization
from accounts.roles import MANAGE_ROLES, Role
from accounts.services.audit import record_event
from accounts.services.records import Records


class OrganizationRecords(Records[Organization]):
    """An organization is its own tenant."""

    def create(  # type: ignore[override]
        self, *, organization: None = None, actor: Actor, values: Mapping[str, Any]
    ) -> Organization:
        """The new organization, from within `platform()`. Raises: Conflict, Invalid."""
        made = Organization(created_by_id=actor.id, last_updated_by_id=actor.id, **values)
        try:
            made.clean_fields()
        except ValidationError as error:
            field, messages = next(iter(error.message_dict.items()))
            raise Invalid(messages[0], field=field) from error
        with transaction.atomic(), named_violations(Organization):
            made.save(force_insert=True)
            record_event(
                organization=made,
                actor=actor,
                action="created",
                resource_type=self.name,
                resource_id=made.pk,
            )
        return made


class MemberRecords(Records[Member]):
    """`values` may hold a `password` in clear; it is checked and hashed, and never audited."""

    def derive(self, record: Member, changed: frozenset[str], *, is_new: bool) -> frozenset[str]:
        if is_new and not record.password:
            record.set_unusable_password()
        elif "password" in changed:
            try:
                validate_password(record.password, record)
            except ValidationError as error:
                raise Invalid(" ".join(error.messages), field="password") from error
            record.set_password(record.password)
        return changed

    def create_many(self, *, actor: Actor, rows: Any, **kwargs: Any) -> list[Member]:
        for values in rows:
            _may_give(actor, values)
        return super().create_many(actor=actor, rows=rows, **kwargs)

    def update(self, record: Member, *, actor: Actor, values: Any, **kwargs: Any) -> Member:
        if values.get("role", record.role) != record.role:
            _may_give(actor, values)
        # Whoever sets a password, or the address it is recovered by, has the role as well.
        signs_in_anew = "password" in values or values.get("email", record.email) != record.email
        if signs_in_anew and record.role != Role.VIEWER and not actor.may(MANAGE_ROLES):
            raise Forbidden("Only who manages roles may change how this member signs in.")
        return super().update(record, actor=actor, values=values, **kwargs)


def _may_give(actor: Actor, values: Mapping[str, Any]) -> None:
    if values.get("role", Role.VIEWER) != Role.VIEWER and not actor.may(MANAGE_ROLES):
        raise Forbidden("Only who manages roles may give one.")


organizations = OrganizationRecords(Organization)
members = MemberRecords(Member)
