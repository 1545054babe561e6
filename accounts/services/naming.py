"""Resolves the rows that a write refers to, by our id or by the caller's own key. A uuid that is
not one of our ids is such a key.

An unknown key creates a row if its model declares `TenantModel.auto_create_key`.
"""

from collections.abc import Mapping
from typing import Any

from django.db import models
from django.utils import timezone

from accounts.actors import Actor
from accounts.errors import Conflict, Forbidden, Invalid, ServiceError
from accounts.models import Organization
from accounts.roles import permission
from accounts.services.audit import record_event
from agentmem_site.db.fields import TenantForeignKey
from agentmem_site.db.keys import MAX_ECHOED


def refusal(
    model: type[models.Model], name: str, *, is_deleted: bool, actor: Actor | None = None
) -> ServiceError | None:
    """Why a row cannot refer to `name`, which is no live row of `model`: Invalid, or Forbidden if
    only the scope is missing. None if a row can be created for it; without an `actor` the scope is
    not checked."""
    label = model._meta.verbose_name
    echoed = name[:MAX_ECHOED]
    if is_deleted:
        message = f"The {label} {echoed!r} is in the trash: restore it first."
        return Invalid(message, code="unknown_reference")
    if not getattr(model, "auto_create_key", ""):
        return Invalid(f"There is no {label} {echoed!r}.", code="unknown_reference")
    needed = permission(str(model._meta.model_name), "write")
    if actor is None or actor.may(needed):
        return None
    return Forbidden(f"There is no {label} {echoed!r}, and adding one needs the scope {needed}.")


def is_new(row: Any) -> bool:
    """Whether the row is not stored yet: its name was unknown when it was looked up."""
    return isinstance(row, models.Model) and row._state.adding


def add_named(values: Mapping[str, Any], *, organization: Organization, actor: Actor) -> None:
    """Inserts the new rows among `values` (by field), each with an audit event. If another request
    has created one in the meantime, that one is used.

    Runs in the caller's transaction; users first, then agents, then their dependents, as in loads.
    Raises: Forbidden (the actor may not add such a row), Invalid, Conflict.
    """
    new = [(name, row) for name, row in values.items() if is_new(row)]
    for name, row in sorted(new, key=lambda pair: _place(pair[1])):
        if row._state.adding:
            _add(row, f"{name}_id", organization, actor)


def _add(row: Any, field: str, organization: Organization, actor: Actor) -> None:
    model, key = type(row), row.auto_create_key
    name = getattr(row, key)
    refused = refusal(model, name, is_deleted=False, actor=actor)
    if refused is not None:
        refused.field = field
        raise refused
    row.organization = organization
    row.created_at = row.updated_at = timezone.now()
    row.created_by_id = row.last_updated_by_id = actor.id
    for reference in _references(model):
        if reference.is_cached(row):  # its id may have changed since it was set
            setattr(row, reference.name, getattr(row, reference.name))
    model._default_manager.bulk_create([row], ignore_conflicts=True)
    rows: Any = model._default_manager
    stored = rows.for_organization(organization).filter(**{key: name}).first()
    if stored is None:
        raise Conflict(
            f"{name[:MAX_ECHOED]!r} was deleted at the same time: send it again.", field=field
        )
    if stored.is_deleted:
        message = str(refusal(model, name, is_deleted=True))
        raise Invalid(message, field=field, code="unknown_reference")
    is_inserted = stored.pk == row.pk
    row.__dict__.update(stored.__dict__)
    if is_inserted:
        record_event(
            organization=organization,
            actor=actor,
            action="created",
            resource_type=str(model._meta.model_name),
            resource_id=row.pk,
        )


def _place(row: models.Model) -> tuple[int, str]:
    return len(_references(type(row))), row._meta.label_lower


def _references(model: type[models.Model]) -> list[TenantForeignKey]:
    return [f for f in model._meta.concrete_fields if isinstance(f, TenantForeignKey)]
