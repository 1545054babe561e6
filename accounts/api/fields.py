"""Field types of the API, and the look-up of rows by id or natural key."""

import math
import re
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import Model, Q
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from accounts.services.naming import refusal
from agentmem_site.bulk.times import EARLIEST, LATEST
from agentmem_site.db.ids import NOBODY
from agentmem_site.db.keys import MAX_KEY_LENGTH, KeyFault, as_id, key_of, kind_of

_MAX_REAL, _MIN_REAL = 3.4e38, 1.2e-38
# "+02:00" in a query string that was not escaped arrives as " 02:00".
_UNESCAPED_OFFSET = re.compile(r" (?=\d\d:?\d\d$)")


def find(rows: Any, name: str, natural_key: str) -> Any:
    """The row with this uuid, else with this natural key, or None.

    One statement. A caller's own key may look like a uuid; our ids take precedence.
    """
    try:
        name = key_of(name)
    except KeyFault:
        return None
    named = Q(**{natural_key: name}) if natural_key else Q()
    if (own_id := as_id(name)) is None:
        return rows.filter(named).first() if natural_key else None
    matches = list(rows.filter(Q(pk=own_id) | named)[:2])
    return min(matches, key=lambda row: row.pk != own_id, default=None)


def checked_key(value: Any) -> str:
    """The value as a key. Raises: ValidationError, if no row can have it."""
    try:
        return key_of(value)
    except KeyFault as fault:
        raise serializers.ValidationError(str(fault), code=fault.code) from fault


def checked_in(field: str, value: Any) -> str:
    """The same for a field of a body."""
    try:
        return checked_key(value)
    except serializers.ValidationError as refused:
        raise serializers.ValidationError({field: refused.detail}) from refused


def key_in_query(value: Any) -> str:
    """The key in a query. One that is too long matches nothing. Raises: ValidationError."""
    try:
        return key_of(value)
    except KeyFault as fault:
        if fault.code == "max_length":
            return str(value)
        raise serializers.ValidationError(str(fault), code=fault.code) from fault


class KeyField(serializers.CharField):
    """A key of the caller's own (agentmem_site/db/keys.py)."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("max_length", MAX_KEY_LENGTH)
        super().__init__(**kwargs)

    def run_validation(self, data: Any = serializers.empty) -> Any:
        return serializers.Field.run_validation(self, data)  # (not CharField's rule for blanks)

    def to_internal_value(self, data: Any) -> str:
        return checked_key(data)


class KeyFilter(KeyField):
    """A key in a query."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"required": False, "max_length": None, **kwargs})

    def to_internal_value(self, data: Any) -> str:
        return key_in_query(data)


@extend_schema_field(OpenApiTypes.STR)
class ReferenceField(serializers.Field[Any, Any, Any, Any]):
    """A live row of the request's organization, by uuid or natural key. An unknown key is a new
    row, which the service creates, if the model allows that (accounts/services/naming.py).

    Rendered as the uuid, without loading the row. `user_id = ReferenceField(User, source="user")`.
    """

    def __init__(self, model: type[Model], *, key: str = "external_id", **kwargs: Any) -> None:
        self.model: Any = model
        self.key = key
        kwargs.setdefault("help_text", self._help())
        super().__init__(**kwargs)

    def _help(self) -> str:
        if not self.key:
            return "uuid"
        text = f"uuid or {self.key} in requests, uuid in responses"
        if getattr(self.model, "auto_create_key", "") != self.key:
            return text
        return f"{text}; an unknown {self.key} creates the {self.model._meta.verbose_name}"

    def to_internal_value(self, data: Any) -> Any:
        return named(self.model, data, self.key, organization=self.context["organization"])

    def get_attribute(self, instance: Any) -> Any:
        return getattr(instance, f"{self.source}_id")

    def to_representation(self, value: Any) -> str:
        return str(value)


def named(model: Any, name: Any, key: str, *, organization: Any) -> Any:
    """The live row with this uuid or key, or a new one (naming.is_new).

    One statement if it exists. Raises: ValidationError.
    """
    name = checked_key(name)
    rows = model.objects.for_organization(organization)
    if (row := find(rows.live(), name, key)) is not None:
        return row
    is_deleted = find(rows.deleted(), name, key) is not None
    if refused := refusal(model, name, is_deleted=is_deleted):
        raise serializers.ValidationError(str(refused), code=refused.code)
    return model(organization=organization, **{key: name})


@extend_schema_field(OpenApiTypes.STR)
class ReferenceFilter(serializers.Field[Any, Any, Any, Any]):
    """The id of a row, by uuid or natural key, in the trash or not; NOBODY if there is none, which
    matches no row.

    `user_id = ReferenceFilter(User)` filters by that column.
    """

    def __init__(self, model: type[Model], *, key: str = "external_id", **kwargs: Any) -> None:
        self.model: Any = model
        self.key = key
        kwargs.setdefault("help_text", f"uuid or {key}; an unknown one matches nothing")
        super().__init__(required=False, **kwargs)

    def to_internal_value(self, data: Any) -> UUID:
        key = key_in_query(data)
        rows = self.model.objects.for_organization(self.context["organization"])
        row = find(rows.only("pk", *filter(None, [self.key])), key, self.key)
        return NOBODY if row is None else row.pk


class Moment(serializers.DateTimeField):
    """A time: ISO 8601 with its offset, between 1970 and 2200."""

    default_error_messages = {
        "naive": "Give the time zone, as in 2026-01-31T12:00:00Z.",
        "range": "The time is before 1970 or after 2200.",
    }

    def enforce_timezone(self, value: datetime) -> datetime:
        if value.tzinfo is None or value.utcoffset() is None:
            self.fail("naive")
        moment = super().enforce_timezone(value)
        if not EARLIEST <= moment < LATEST:
            self.fail("range")
        return moment


class QueryMoment(Moment):
    """A Moment in a query string."""

    def to_internal_value(self, value: Any) -> datetime:
        if isinstance(value, str):
            value = _UNESCAPED_OFFSET.sub("+", value)
        return super().to_internal_value(value)


class Real(serializers.FloatField):
    """A finite number in the range of `real` (4 bytes)."""

    default_error_messages = {"not_finite": "A finite number of at most 3.4e38 is required."}

    def to_internal_value(self, data: Any) -> float:
        if isinstance(data, bool):
            self.fail("invalid")
        number = super().to_internal_value(data)
        if not math.isfinite(number) or abs(number) > _MAX_REAL:
            self.fail("not_finite")
        return 0.0 if abs(number) < _MIN_REAL else number


class _Json(serializers.JSONField):
    kind: type
    default_error_messages = {"shape": "This must be a JSON {shape}."}

    def validate_empty_values(self, data: Any) -> tuple[bool, Any]:
        if data is None and not self.allow_null:
            return True, self.kind()  # null means the default, never a JSON null
        return super().validate_empty_values(data)

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, self.kind):
            self.fail("shape", shape="object" if self.kind is dict else "array")
        return data


@extend_schema_field({"type": "object", "additionalProperties": {}})
class JsonObject(_Json):
    kind = dict


@extend_schema_field({"type": "array", "items": {}})
class JsonArray(_Json):
    kind = list


@extend_schema_field({})
class JsonAny(serializers.JSONField):
    """Any JSON value; null is stored as SQL NULL."""


class Array(serializers.ListField):
    """An array of values of one kind."""

    def to_internal_value(self, data: Any) -> list[Any]:
        if not isinstance(data, list):
            message = f"An array is needed, got {kind_of(data)}."
            raise serializers.ValidationError(message, code="not_a_list")
        return super().to_internal_value(data)


class TextBytes(serializers.CharField):
    """Text of at most `max_bytes` in UTF-8, stored unchanged."""

    default_error_messages = {"too_long": "The text has {bytes} bytes; the limit is {max_bytes}."}

    def __init__(self, *, max_bytes: int, **kwargs: Any) -> None:
        self.max_bytes = max_bytes
        kwargs.setdefault("trim_whitespace", False)
        super().__init__(**kwargs)

    def to_internal_value(self, data: Any) -> str:
        text = super().to_internal_value(data)
        # surrogatepass: CharField's validators, which refuse a lone surrogate, run after this.
        size = len(text.encode(errors="surrogatepass"))
        if size > self.max_bytes:
            self.fail("too_long", bytes=size, max_bytes=self.max_bytes)
        return text
