"""Base serializers: strictness, common columns, PUT; and the query strings of lists."""

from datetime import datetime
from typing import Any

from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import ImproperlyConfigured
from django.db import models
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail

from accounts.api.fields import (
    Array,
    JsonAny,
    JsonArray,
    JsonObject,
    KeyField,
    KeyFilter,
    Moment,
    QueryMoment,
    Real,
    ReferenceFilter,
)
from accounts.api.pagination import DEFAULT_LIMIT, MAX_LIMIT
from agentmem_site.db import fields as columns
from agentmem_site.db.keys import kind_of

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
    # A null is no wish to change a field, where changes are what the body lists.
    null_is_default = True

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, dict) and (unknown := data.keys() - self.fields.keys()):
            known = ", ".join(name for name, field in self.fields.items() if not field.read_only)
            refusal = f"There is no such {self.unknown_word}. Known: {known or 'none'}."
            raise serializers.ValidationError(
                {name: [ErrorDetail(refusal, "unknown")] for name in sorted(unknown)}
            )
        if not isinstance(data, dict):
            message = f"An object is needed, got {kind_of(data)}."
            raise serializers.ValidationError({"non_field_errors": [message]}, code="invalid")
        if self.null_is_default:
            data = {
                name: value for name, value in data.items() if not self._is_default(name, value)
            }
        return super().to_internal_value(data)

    def _is_default(self, name: str, value: Any) -> bool:
        """A null stands for the default of an optional field; not of a name in a question, where
        it would ask for the rows of everybody."""
        field = self.fields[name]
        if value is not None or field.required or field.read_only or field.allow_null:
            return False
        return not isinstance(field, ReferenceFilter | KeyFilter | JsonObject | JsonArray)


class RecordSerializer(Strict, serializers.ModelSerializer[Any]):
    """A row. A read-only field is refused in a body, unless it says what the row has: a row can be
    read, changed and sent back."""

    # Read-only fields that change without a write of the row: on a row that exists they are let
    # through, whatever they say.
    moving: tuple[str, ...] = ()

    organization_id: Any = serializers.UUIDField(read_only=True)

    # Fields that a PUT may leave out without resetting them: the row's own key, write-only fields.
    kept_by_put: tuple[str, ...] = ("external_id",)

    serializer_field_mapping = {
        **serializers.ModelSerializer.serializer_field_mapping,
        models.DateTimeField: Moment,
        columns.RealField: Real,
        columns.KeyField: KeyField,
        ArrayField: Array,
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
        elif field_class is Array and isinstance(child := options["child"], serializers.CharField):
            child.trim_whitespace, child.allow_blank = False, True
        if field_name == "external_id":
            options.setdefault("help_text", "The caller's own key, unique in the organization.")
        return field_class, options

    def build_property_field(self, field_name: str, model_class: Any) -> Any:
        """A reference that is not declared would be read-only."""
        raise ImproperlyConfigured(
            f"{type(self).__name__} must declare {field_name}, for example as a ReferenceField."
        )

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, dict):
            return super().to_internal_value(data)
        self._refuse_read_only(data)
        values = super().to_internal_value(data)
        if self.partial and self.instance is not None:  # (a PUT resets what is not given, anyway)
            for name, value in data.items():
                if name not in self.kept_by_put and self._is_default(name, value):
                    source = str(self.fields[name].source)
                    values[source] = type(self.instance)._meta.get_field(source).get_default()
        return values

    def _refuse_read_only(self, data: dict[str, Any]) -> None:
        given = [name for name in data if name in self.fields and self.fields[name].read_only]
        if not given:
            return
        echo = self.echo()
        refusal = ErrorDetail("It is set by the server: leave it out.", "read_only")
        changed = ErrorDetail("It is set by the server, and not what the row has.", "read_only")
        faults = {
            name: [changed if name in echo else refusal]
            for name in given
            if not (name in echo and (name in self.moving or _is_same(data[name], echo[name])))
        }
        if faults:
            raise serializers.ValidationError(faults)

    def echo(self) -> dict[str, Any]:
        """What a GET answers of the row, in whose body these values may come back."""
        return {} if self.instance is None else dict(self.to_representation(self.instance))

    def values(self) -> dict[str, Any]:
        """The validated values by model field; fields that a PUT left out get their default."""
        values = dict(self.validated_data)
        if self.instance is not None and not self.partial:
            for field in self._writable_fields:
                if field.source not in values and field.field_name not in self.kept_by_put:
                    column = type(self.instance)._meta.get_field(str(field.source))
                    values[field.source] = column.get_default()
        return values


class DatedSerializer(RecordSerializer):
    """A row that stands for something that happened at a time."""

    kept_by_put = (*RecordSerializer.kept_by_put, "created_at")
    created_at = Moment(required=False, help_text="When it happened; by default now.")

    def validate_created_at(self, moment: datetime) -> datetime:
        if self.partial and self.instance is not None and moment != self.instance.created_at:
            raise serializers.ValidationError("It cannot be changed.", code="fixed")
        return moment


def _is_same(given: Any, shown: Any) -> bool:
    if given == shown:
        return True
    if not isinstance(given, str) or not isinstance(shown, str):
        return False
    try:  # one moment may be written in several ways
        return datetime.fromisoformat(given) == datetime.fromisoformat(shown)
    except (TypeError, ValueError):
        return False


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
