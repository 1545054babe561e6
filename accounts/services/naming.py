"""What a row that is written names: by our id what is there, by the caller's own key what is there
or, where nobody has that key yet, what is made of it. A uuid that is none of our ids is such a key.

Which models a name alone makes, they say themselves (`TenantModel.auto_create_key`).
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
    """Why a row cannot name `name`, which no live row of `model` has: Invalid, or Forbidden where
    only the scope is missing. None where a row is made for it; who may do that is left open
    without an `actor`."""
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
    """It stands for a name that nobody had when it was looked up."""
    return isinstance(row, models.Model) and row._state.adding


def add_named(values: Mapping[str, Any], *, organization: Organization, actor: Actor) -> None:
    """Inserts the rows among `values`, by field, that are new: with their key and what they were
    given, each with an audit event. One that another request has made meanwhile is that one.

    In the caller's transaction; users first, then agents, then what refers to them, as loads do.
    Raises: Forbidden (the actor may not add such a row), Invalid, Conflict.
    """
    found = [(name, row) for name, row in values.items() if is_new(row)]
    for name, row in sorted(found, key=lambda pair: _place(pair[1])):
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
        if reference.is_cached(row):  # its id may be another one than when it was set
            setattr(row, reference.name, getattr(row, reference.name))
    model._default_manager.bulk_create([row], ignore_conflicts=True)
    rows: Any = model._default_manager
    there = rows.for_organization(organization).filter(**{key: name}).first()
    if there is None:
        raise Conflict(f"{name[:MAX_ECHOED]!r} is being removed: send it again.", field=field)
    if there.is_deleted:
        message = str(refusal(model, name, is_deleted=True))
        raise Invalid(message, field=field, code="unknown_reference")
    is_ours = there.pk == row.pk
    row.__dict__.update(there.__dict__)
    if is_ours:
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
