"""Keyset pagination, newest first: every page costs the same."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import datetime
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django.db import models
from django.db.models import F, Func, Value
from rest_framework.exceptions import ValidationError
from rest_framework.pagination import BasePagination
from rest_framework.response import Response

DEFAULT_LIMIT = 50
MAX_LIMIT = 200
_MAX_INTEGER = 2**31 - 1


def page_link(request: Any, *place: Any) -> str:
    """The URL of the page that starts at `place`; `read_cursor` decodes it."""
    cursor = urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")
    parameters = {**request.query_params.dict(), "cursor": cursor}
    return str(request.build_absolute_uri(f"{request.path}?{urlencode(parameters)}"))


def read_cursor(cursor: str) -> Any:
    """The place. Raises: ValueError, RecursionError."""
    return json.loads(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))


class RowComparison(Func):
    """`(a, id) < (x, y)`: one index range, whereas `a < x OR (a = x AND id < y)` is a scan."""

    output_field = models.BooleanField()
    conditional = True

    def __init__(self, operator: str, *expressions: Any) -> None:
        super().__init__(*expressions)
        self.operator = operator

    def as_sql(self, compiler: Any, connection: Any, **context: Any) -> Any:  # type: ignore[override]
        parts = [compiler.compile(part) for part in self.get_source_expressions()]
        (a, a_params), (b, b_params), (x, x_params), (y, y_params) = parts
        statement = f"(({a}, {b}) {self.operator} ({x}, {y}))"
        return statement, [*a_params, *b_params, *x_params, *y_params]


class KeysetPagination(BasePagination):
    """Pages by (`view.page_key`, id), both descending. `view.query` holds the validated `limit` and
    `cursor`. A cursor holds the start of a page and the direction."""

    def paginate_queryset(self, queryset: Any, request: Any, view: Any = None) -> list[Any]:
        self.request = request
        self.key = view.page_key
        limit, cursor = view.query["limit"], view.query.get("cursor")
        is_backward, start = False, None
        if cursor is not None:
            is_backward, *start = self._read(cursor, queryset.model)
            field = queryset.model._meta.get_field(self.key)
            values = (Value(start[0], field), Value(start[1], queryset.model._meta.pk))
            operator = ">" if is_backward else "<"
            queryset = queryset.filter(RowComparison(operator, F(self.key), F("pk"), *values))
        order = (self.key, "pk") if is_backward else (f"-{self.key}", "-pk")
        rows = list(queryset.order_by(*order)[: limit + 1])
        page = rows[:limit]
        has_more = len(rows) > limit
        if is_backward:
            page.reverse()
        has_next = bool(page) and (has_more or is_backward)
        has_previous = bool(page) and (has_more if is_backward else start is not None)
        self.next = self._link(page[-1], is_backward=False) if has_next else None
        self.previous = self._link(page[0], is_backward=True) if has_previous else None
        return page

    def get_paginated_response(self, data: Any) -> Response:
        return Response({"results": data, "next": self.next, "previous": self.previous})

    def get_paginated_response_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        link = {"type": "string", "format": "uri", "nullable": True}
        return {
            "type": "object",
            "required": ["results", "next", "previous"],
            "properties": {
                "results": schema,
                "next": {**link, "description": "The page of older rows."},
                "previous": {**link, "description": "The page of newer rows."},
            },
        }

    def _link(self, row: Any, *, is_backward: bool) -> str:
        key = getattr(row, self.key)
        shown = key.isoformat() if isinstance(key, datetime) else key
        return page_link(self.request, int(is_backward), shown, str(row.pk))

    def _read(self, cursor: str, model: Any) -> tuple[bool, Any, UUID]:
        try:
            is_backward, key, pk = read_cursor(cursor)
            if isinstance(model._meta.get_field(self.key), models.DateTimeField):
                key = datetime.fromisoformat(key)
                is_valid = key.tzinfo is not None and 1900 < key.year < 2300
            else:
                is_valid = type(key) is int and abs(key) <= _MAX_INTEGER
            if not is_valid or is_backward not in (0, 1):
                raise ValueError(cursor)
            return bool(is_backward), key, UUID(pk)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            refusal = "This cursor was not made by this server."
            raise ValidationError({"cursor": [refusal]}, code="invalid") from error
