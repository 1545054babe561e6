"""Rows as lines that the loader can read. Streamed: memory holds one page, whatever the table."""

from collections.abc import Collection, Generator, Iterator, Mapping
from typing import Any

import msgspec
from django.db import models
from django.db.models import Case, F, Q, When
from django.db.models.functions import Cast

from agentmem_site.bulk.spec import LoadSpec
from agentmem_site.db.fields import TenantForeignKey

PAGE_ROWS = 200  # of 256 KiB at most: 50 MiB
# Selected as text: Python would round the numbers of a jsonb.
_VERBATIM = ("JSONField", "HalfVectorField")

Columns = dict[str, Any]  # a line's field -> what to select for it


def columns_of(spec: LoadSpec, *, leave_out: Collection[str] = ()) -> Columns:
    """What to select for each field of the spec's lines. References are ids."""
    fields: dict[str, Any] = {str(f.column): f for f in spec.model._meta.concrete_fields}
    within = {r.column: r.key for r in spec.references if r.within}
    columns: Columns = {}
    for line_field in msgspec.structs.fields(spec.line):
        name = line_field.name
        if name in leave_out or name not in fields:
            continue
        if fields[name].get_internal_type() in _VERBATIM:
            columns[name] = Cast(name, models.TextField())
        elif name in within:
            columns[name] = F(f"{fields[name].name}__{within[name]}")
        else:
            columns[name] = F(name)
    return columns


def without_trash(spec: LoadSpec, columns: Columns) -> tuple[Q, Columns]:
    """A filter for rows that are not in the trash, nor below a row in the trash; and the columns,
    without references to such rows."""
    kept = dict(columns)
    for field in _references(spec.model):
        if field.column in columns and field.remote_field.on_delete is not models.CASCADE:
            is_live = _is_live(field.related_model, f"{field.name}__")
            kept[field.column] = Case(When(is_live, then=columns[field.column]))
    return _is_live(spec.model), kept


def _is_live(model: Any, prefix: str = "") -> Q:
    is_live = Q(**{f"{prefix}is_deleted": False})
    for field in _references(model):
        if field.remote_field.on_delete is models.CASCADE:
            path = f"{prefix}{field.name}__"
            is_live &= Q(**{f"{path}isnull": True}) | _is_live(field.related_model, path)
    return is_live


def _references(model: Any) -> Iterator[Any]:
    return (f for f in model._meta.concrete_fields if isinstance(f, TenantForeignKey))


def read(rows: Any, columns: Columns) -> Generator[dict[str, Any], None, None]:
    """The rows as lines, without NULLs. Uses a server-side cursor: it needs one transaction, and
    must be closed if it is not read to the end."""
    names = list(columns)
    verbatim = {name for name, column in columns.items() if isinstance(column, Cast)}
    for values in rows.values_list(*columns.values()).iterator(chunk_size=PAGE_ROWS):
        yield {
            name: msgspec.Raw(value) if name in verbatim else value
            for name, value in zip(names, values, strict=True)
            if value is not None
        }


def encode(line: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(line) + b"\n"
