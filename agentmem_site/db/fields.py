"""The fields of tenant tables: the organization, references, keys of the caller, a `real`; and the
lookup `among`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ValidationError
from django.db import models
from django.db.models.expressions import ResolvedOuterRef
from django.db.models.fields.related_descriptors import (
    ForwardManyToOneDescriptor,
    ReverseManyToOneDescriptor,
)
from django.db.models.sql.where import WhereNode
from django.utils.functional import cached_property

from agentmem_site.db.keys import MAX_KEY_LENGTH, KeyFault, key_of

if TYPE_CHECKING:
    from django.db.models import Model


def tenant_key(model: "type[Model]") -> "OrganizationKey | None":
    """The organization field of a data-plane model; None for any other model.

    (In the audit log it may be NULL: not every row belongs to an organization.)
    """
    fields = model._meta.local_fields
    return next((f for f in fields if isinstance(f, OrganizationKey) and not f.null), None)


class OrganizationKey(models.ForeignKey):
    """The organization that a row belongs to. A model with this field is a tenant model.

    The historical models of migrations have this field too: the schema editor recognizes tenant
    tables by it. It never changes after the INSERT.
    """

    def __init__(self, to: Any = "accounts.Organization", **kwargs: Any) -> None:
        kwargs.setdefault("on_delete", models.PROTECT)
        kwargs.setdefault("related_name", "+")
        kwargs["db_index"] = False  # every index of the table starts with it or with the id
        kwargs["editable"] = False
        super().__init__(to, **kwargs)

    def deconstruct(self) -> tuple[str, str, Sequence[Any], dict[str, Any]]:
        name, path, args, kwargs = super().deconstruct()
        for implied in ("db_index", "editable"):
            kwargs.pop(implied, None)
        return name, path, args, kwargs


def _within(instances: Sequence[Any], queryset: Any) -> Any:
    """The queryset, filtered by the instances' organizations. (A sliced one must be already.)"""
    if queryset.query.is_sliced:
        return queryset
    return queryset.filter(organization__in={i.organization_id for i in instances})


class TenantForwardDescriptor(ForwardManyToOneDescriptor):
    """`session.agent`, prefetched."""

    def get_prefetch_querysets(self, instances: Any, querysets: Any = None) -> Any:
        querysets = querysets or [self.get_queryset()]  # type: ignore[call-arg]
        return super().get_prefetch_querysets(instances, [_within(instances, q) for q in querysets])


class TenantReverseDescriptor(ReverseManyToOneDescriptor):
    """`agent.sessions`, also prefetched."""

    @cached_property
    def related_manager_cls(self) -> Any:
        class TenantRelatedManager(super().related_manager_cls):  # type: ignore[misc]
            def __init__(self, instance: Any) -> None:
                super().__init__(instance)
                self.core_filters["organization"] = instance.organization_id

            def get_prefetch_querysets(self, instances: Any, querysets: Any = None) -> Any:
                querysets = querysets or [self.model._default_manager.all()]
                return super().get_prefetch_querysets(
                    instances, [_within(instances, q) for q in querysets]
                )

        return TenantRelatedManager


class TenantForeignKey(models.ForeignKey):
    """A foreign key between two tenant tables. The organization is part of it.

    In the database it is FOREIGN KEY (x_id, organization_id) REFERENCES x (id, organization_id): a
    row cannot refer to another organization's. In queries, every join and lazy load compares the
    organizations too, so that a sharded database can stay on one node.

    `on_delete` tells the services what to do. CASCADE: the row is deleted and purged with its
    parent. SET_NULL: the row stays, and a purge of the parent clears the reference.
    """

    forward_related_accessor_class = TenantForwardDescriptor
    related_accessor_class = TenantReverseDescriptor

    def __init__(self, to: Any, on_delete: Any, **kwargs: Any) -> None:
        kwargs["db_index"] = False  # each reader's index is declared with the organization first
        super().__init__(to, on_delete, **kwargs)

    def deconstruct(self) -> tuple[str, str, Sequence[Any], dict[str, Any]]:
        name, path, args, kwargs = super().deconstruct()
        kwargs.pop("db_index", None)
        return name, path, args, kwargs

    def get_extra_descriptor_filter(self, instance: "Model") -> dict[str, Any]:
        return {"organization": instance.organization_id}  # type: ignore[attr-defined]

    def get_extra_restriction(self, alias: str | None, related_alias: str) -> WhereNode:
        theirs: Any = self.related_model._meta.get_field("organization")
        ours: Any = self.model._meta.get_field("organization")
        # There is no alias in exclude(children__..), a subquery that refers to the outer row.
        other = theirs.get_col(alias) if alias else ResolvedOuterRef("organization")
        return WhereNode([ours.get_lookup("exact")(ours.get_col(related_alias), other)])


@models.Field.register_lookup
@TenantForeignKey.register_lookup
class Among(models.Lookup):
    """`pk__among=ids`: `= ANY` with one array, whatever its length.

    With a constant array the planner has no join to choose. It searches an index for each value or,
    at worst, looks each row up in a hash. (With `unnest` it may scan the whole array for each row,
    if it expects one row.)
    """

    lookup_name = "among"
    prepare_rhs = False

    def as_sql(self, compiler: Any, connection: Any) -> Any:
        column, parameters = self.process_lhs(compiler, connection)
        array_type = self.lhs.output_field.db_type(connection) + "[]"
        return column + " = ANY(%s::" + array_type + ")", [*parameters, list(self.rhs)]


class RealField(models.FloatField):
    """A 4-byte float, enough for weights and scores."""

    def db_type(self, connection: Any) -> str:
        return "real"


class KeyField(models.CharField):
    """A key of the caller's own (keys.py). Migrations know it as the CharField that it is."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("max_length", MAX_KEY_LENGTH)
        super().__init__(*args, **kwargs)

    def get_internal_type(self) -> str:
        return "CharField"

    def deconstruct(self) -> tuple[str, str, Sequence[Any], dict[str, Any]]:
        name, _, args, kwargs = super().deconstruct()
        return name, "django.db.models.CharField", args, kwargs

    def clean(self, value: Any, model_instance: "Model | None") -> Any:
        if value not in self.empty_values:
            try:
                value = key_of(value)
            except KeyFault as fault:
                raise ValidationError(str(fault), code=fault.code) from fault
        return super().clean(value, model_instance)
