"""The fields of a tenant table: its organization, its references; and a `real`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.db import models
from django.db.models.sql.where import WhereNode

if TYPE_CHECKING:
    from django.db.models import Model


def tenant_key(model: "type[Model]") -> "OrganizationKey | None":
    """The field that holds the organization of a data-plane model; None on any other model.

    (Where it may be NULL, as in the audit log, a row need not belong to one.)
    """
    fields = model._meta.local_fields
    return next((f for f in fields if isinstance(f, OrganizationKey) and not f.null), None)


class OrganizationKey(models.ForeignKey):
    """The organization that a row belongs to. A model with this field is a tenant model.

    Being a field, it is there on the historical models of migrations too, so that the schema
    editor knows a tenant table by it. It never changes after the INSERT.
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


class TenantForeignKey(models.ForeignKey):
    """A reference between two tenant tables: the organization is part of it.

    In the database FOREIGN KEY (x_id, organization_id) REFERENCES x (id, organization_id), so that
    a row of one organization cannot point at another's; in queries every join and lazy load
    compares the organizations too, which a sharded database needs to stay on one node.

    `on_delete` says what the services do: CASCADE moves the row to the trash with its parent and
    purges it with it; SET_NULL leaves it, and a purge of the parent empties the reference.
    """

    def __init__(self, to: Any, on_delete: Any, **kwargs: Any) -> None:
        kwargs["db_index"] = False  # each reader's index is declared with the organization first
        super().__init__(to, on_delete, **kwargs)

    def deconstruct(self) -> tuple[str, str, Sequence[Any], dict[str, Any]]:
        name, path, args, kwargs = super().deconstruct()
        kwargs.pop("db_index", None)
        return name, path, args, kwargs

    def get_extra_descriptor_filter(self, instance: "Model") -> dict[str, Any]:
        return {"organization": instance.organization_id}  # type: ignore[attr-defined]

    def get_extra_restriction(self, alias: str, related_alias: str) -> WhereNode:
        theirs: Any = self.related_model._meta.get_field("organization")
        ours: Any = self.model._meta.get_field("organization")
        same = ours.get_lookup("exact")(ours.get_col(related_alias), theirs.get_col(alias))
        return WhereNode([same])


class RealField(models.FloatField):
    """A float of 4 bytes: weights and scores need no more."""

    def db_type(self, connection: Any) -> str:
        return "real"
