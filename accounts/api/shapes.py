"""Base serializers: strictness, common columns, PUT; and the query strings of lists."""

from typing import Any

from django.db import models
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail

from accounts.api.fields import (
    JsonAny,
    JsonArray,
    JsonObject,
    KeyField,
    Moment,
    QueryMoment,
    Real,
)
from accounts.api.pagination import DEFAULT_LIMIT, MAX_LIMIT
from agentmem_site.db import fields as columns

KEPT_BY_SERVER = (
    "created_at",
    "updated_at",
    "created_by_id",
    "last_updated_by_id",
    "is_deleted",
    "deleted_at",
)


class Strict(serializers.Serializer[Any]):
    """Refuses unknown names: a misspelt field must not be ignored."""

    unknown_word = "field"

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, dict) and (unknown := data.keys() - self.fields.keys()):
            known = ", ".join(name for name, field in self.fields.items() if not field.read_only)
            refusal = f"There is no such {self.unknown_word}. Known: {known or 'none'}."
            raise serializers.ValidationError(
                {name: [ErrorDetail(refusal, "unknown")] for name in sorted(unknown)}
            )
        return super().to_internal_value(data)


class RecordSerializer(Strict, serializers.ModelSerializer[Any]):
    """A row. Read-only fields are ignored in a body, so that a row can be read, changed and sent
    back."""

    organization_id: Any = serializers.UUIDField(read_only=True)

    # Fields that a PUT may leave out without resetting them: the row's own key, write-only fields.
    kept_by_put: tuple[str, ...] = ("external_id",)

    serializer_field_mapping = {
        **serializers.ModelSerializer.serializer_field_mapping,
        models.DateTimeField: Moment,
        columns.RealField: Real,
        columns.KeyField: KeyField,
    }

    def build_standard_field(self, field_name: str, model_field: Any) -> Any:
        field_class, options = super().build_standard_field(field_name, model_field)
        if isinstance(model_field, models.JSONField):
            kinds = {dict: JsonObject, list: JsonArray}
            field_class = kinds.get(model_field.default, JsonAny)
            options = {k: v for k, v in options.items() if k not in ("encoder", "decoder")}
        elif field_class is serializers.CharField:
            options["trim_whitespace"] = False
        elif field_class is KeyField:
            options.pop("allow_blank", None)
        if field_name == "external_id":
            options.setdefault("help_text", "The caller's own key, unique in the organization.")
        return field_class, options

    def values(self) -> dict[str, Any]:
        """The validated values by model field; fields that a PUT left out get their default."""
        values = dict(self.validated_data)
        if self.instance is not None and not self.partial:
            for field in self._writable_fields:
                if field.source not in values and field.field_name not in self.kept_by_put:
                    column = type(self.instance)._meta.get_field(str(field.source))
                    values[field.source] = column.get_default()
        return values


class Query(Strict):
    """A query string: no unknown or repeated parameter."""

    unknown_word = "parameter"

    def filter_rows(self, rows: Any) -> Any:
        """The rows that match the parameters: a field's `source` is the look-up."""
        conditions = {
            str(field.source): self.validated_data[field.source]
            for field in self._writable_fields
            if field.source in self.validated_data and field.field_name not in PageQuery.reserved
        }
        return rows.filter(**conditions)


class TrashQuery(Query):
    deleted = serializers.ChoiceField(
        ["only", "include"],
        required=False,
        help_text="`only`: rows in the trash; `include`: those too. Default: live rows.",
    )


class PageQuery(Query):
    reserved = ("deleted", "limit", "cursor")

    limit = serializers.IntegerField(
        min_value=1, max_value=MAX_LIMIT, default=DEFAULT_LIMIT, help_text="Rows per page."
    )
    cursor = serializers.CharField(required=False, help_text="From `next` or `previous` of a page.")


class ListQuery(PageQuery, TrashQuery):
    created_after = QueryMoment(
        source="created_at__gte", required=False, help_text="Created at or after this time."
    )
    created_before = QueryMoment(
        source="created_at__lt", required=False, help_text="Created before this time."
    )
    updated_after = QueryMoment(
        source="updated_at__gte", required=False, help_text="Changed at or after this time."
    )
    updated_before = QueryMoment(
        source="updated_at__lt", required=False, help_text="Changed before this time."
    )
