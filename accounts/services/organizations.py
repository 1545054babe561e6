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
from accounts.roles import SET_RETENTION, Role
from accounts.services.audit import record_event
from accounts.services.authority import check_may_assign, check_may_change, keep_an_owner
from accounts.services.dependents import Counts
from accounts.services.records import Records


class OrganizationRecords(Records[Organization]):
    """An organization is its own tenant."""

    def derive(
        self, record: Organization, changed: frozenset[str], *, is_new: bool
    ) -> frozenset[str]:
        if "settings" in changed:
            check_settings(record.settings)
        return changed

    def before_update(
        self, record: Organization, values: Any, *, organization: Organization, actor: Actor
    ) -> None:
        before, after = record.settings, values.get("settings", record.settings)
        is_other = after.get("retention", {}) != before.get("retention", {})
        if is_other and not actor.may(SET_RETENTION):
            raise Forbidden(
                "settings.retention deletes rows automatically: changing it needs the permission "
                f"{SET_RETENTION}."
            )

    def create(  # type: ignore[override]
        self, *, organization: None = None, actor: Actor, values: Mapping[str, Any]
    ) -> Organization:
        """The new organization. Called within `platform()`. Raises: Conflict, Invalid."""
        check_settings(values.get("settings", {}))
        record = Organization(created_by_id=actor.id, last_updated_by_id=actor.id, **values)
        try:
            record.clean_fields()
        except ValidationError as error:
            field, messages = next(iter(error.message_dict.items()))
            raise Invalid(messages[0], field=field) from error
        with transaction.atomic(), named_violations(Organization):
            record.save(force_insert=True)
            record_event(
                organization=record,
                actor=actor,
                action="created",
                resource_type=self.name,
                resource_id=record.pk,
            )
        return record


class MemberRecords(Records[Member]):
    """`values` may contain a plain-text `password`: it is validated, hashed, and never audited."""

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
            check_may_assign(actor, values.get("role", Role.VIEWER))
        return super().create_many(actor=actor, rows=[_normalized(v) for v in rows], **kwargs)

    def update(
        self,
        record: Member,
        *,
        organization: Organization,
        actor: Actor,
        values: Mapping[str, Any],
        seen: Mapping[str, str] | None = None,
    ) -> Member:
        with keep_an_owner(organization):
            return super().update(
                record,
                organization=organization,
                actor=actor,
                values=_normalized(values),
                seen=seen,
            )

    def before_update(
        self, record: Member, values: Any, *, organization: Organization, actor: Actor
    ) -> None:
        if record.pk == actor.id and values.keys() == {"password"}:
            return  # their own password
        check_may_change(actor, record)
        if "role" in values:
            check_may_assign(actor, values["role"])
        # Whoever sets a member's password or address can sign in with that role.
        if values.keys() & {"role", *_SIGN_IN}:
            check_may_assign(actor, record.role)

    def before_move(self, rows: Any, *, organization: Organization, actor: Actor) -> None:
        for role in rows.order_by().values_list("role", flat=True).distinct():
            check_may_assign(actor, role)

    def delete(self, rows: Any, *, organization: Organization, actor: Actor) -> Counts:
        with keep_an_owner(organization):
            return super().delete(rows, organization=organization, actor=actor)

    def purge(self, rows: Any, *, organization: Organization, actor: Actor) -> Counts:
        with keep_an_owner(organization):
            return super().purge(rows, organization=organization, actor=actor)


_SIGN_IN = ("password", "email", "is_active", "is_staff")


def _normalized(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values with the address in lower case: addresses must not differ by case alone."""
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
