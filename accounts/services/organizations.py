"""Organizations and their members: the identity plane."""

from collections.abc import Mapping
from typing import Any

from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import transaction

from accounts.actors import Actor
from accounts.errors import Forbidden, Invalid, named_violations
from accounts.models import Member, Organization
from accounts.organization_settings import check_settings
from accounts.roles import MANAGE_ROLES, Role
from accounts.services.audit import record_event
from accounts.services.records import Counts, Records


class OrganizationRecords(Records[Organization]):
    """An organization is its own tenant."""

    def derive(
        self, record: Organization, changed: frozenset[str], *, is_new: bool
    ) -> frozenset[str]:
        if "settings" in changed:
            check_settings(record.settings)
        return changed

    def create(  # type: ignore[override]
        self, *, organization: None = None, actor: Actor, values: Mapping[str, Any]
    ) -> Organization:
        """The new organization, from within `platform()`. Raises: Conflict, Invalid."""
        check_settings(values.get("settings", {}))
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
        gives_roles = any(values.get("role", Role.VIEWER) != Role.VIEWER for values in rows)
        if gives_roles and not actor.may(MANAGE_ROLES):
            raise Forbidden("Only who manages roles may give one.")
        return super().create_many(actor=actor, rows=[_cleaned(v) for v in rows], **kwargs)

    def update(self, record: Member, *, actor: Actor, values: Any, **kwargs: Any) -> Member:
        values = _cleaned(values)
        # The row is asked: a form has put the new values into `record` already.
        now = None if actor.may(MANAGE_ROLES) else Member.objects.filter(pk=record.pk).first()
        if now is not None:
            if values.get("role", now.role) != now.role:
                raise Forbidden("Only who manages roles may give or take one.")
            # Whoever sets a password, or the address it is recovered by, has the role as well.
            signs_in_anew = "password" in values or any(
                values.get(name, getattr(now, name)) != getattr(now, name)
                for name in ("email", "is_active", "is_staff")
            )
            if signs_in_anew and now.role != Role.VIEWER:
                raise Forbidden("Only who manages roles may change how this member signs in.")
        return super().update(record, actor=actor, values=values, **kwargs)

    def delete(self, rows: Any, *, actor: Actor, **kwargs: Any) -> Counts:
        if not actor.may(MANAGE_ROLES) and rows.exclude(role=Role.VIEWER).exists():
            raise Forbidden("Only who manages roles may delete a member who has one.")
        return super().delete(rows, actor=actor, **kwargs)


def _cleaned(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """An address in lower case: two members whose addresses differ by case could not be told
    apart by it."""
    if "email" not in values:
        return values
    email = values["email"].strip().lower()
    try:
        validate_email(email)
    except ValidationError as error:
        raise Invalid(error.messages[0], field="email") from error
    return {**values, "email": email}


organizations = OrganizationRecords(Organization)
members = MemberRecords(Member)
