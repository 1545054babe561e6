"""What the loader knows about a resource: its line, its columns, its keys, its references.

A line is a `msgspec.Struct`. Its types and limits are the validation; its properties derive columns
that are not in the file. JSON columns are `msgspec.Raw`: their bytes are passed on unchanged.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Annotated, Any, Self
from uuid import UUID

import msgspec
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import models
from psycopg import sql

from agentmem_site.bulk import binary
from agentmem_site.db.fields import KeyField
from agentmem_site.db.keys import key_of, kind_of

Name = Annotated[str, msgspec.Meta(max_length=255)]
KeyText = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
Moment = Annotated[datetime, msgspec.Meta(tz=True)] | int | float  # numbers: seconds since 1970
ABSENT = msgspec.Raw()
LINE_HASH = "line_hash"  # the column with the hash of the line that a row was last loaded from
LINE_AT = "line_at"  # a column of staging tables: created_at of a row whose line has none
OVERWRITE = "{new}.{column}"
DIFFERENT = "{old}.{column} IS DISTINCT FROM {new}.{column}"
MAX_ECHOED = 200  # characters


class LineError(Exception):
    """A line cannot be loaded."""

    def __init__(
        self, code: str, field: str, message: str, *, line: int = 0, offset: int | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.field = field
        self.message = message
        self.line = line
        self.offset = offset  # of the line's first byte, where lines are bytes of a file

    def bare(self) -> Self:
        """The error without its causes: a traceback keeps the whole batch in memory."""
        self.__traceback__ = self.__cause__ = self.__context__ = None
        return self

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line else ""
        return f"{place}{self.field}: {self.message}" if self.field else f"{place}{self.message}"


class LineErrors(Exception):
    """Some lines of a batch cannot be loaded."""

    def __init__(self, errors: Sequence[LineError]) -> None:
        super().__init__(str(errors[0]))
        self.errors = errors


def echoed(content: str) -> str:
    """A line's content, shortened for a message: a reject must not be a copy of the line."""
    return content if len(content) <= MAX_ECHOED else f"{content[: MAX_ECHOED - 3]}..."


class Line(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, gc=False):
    """The fields of every resource."""

    metadata: msgspec.Raw = ABSENT
    created_at: Moment | None = None
    updated_at: Moment | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """A column that holds another row's id; the file names that row by its key or its id.

    `within`: the key is unique only within the row that this other reference column names.
    `creates`: an unknown key becomes a new row.
    """

    column: str
    model: type[models.Model]
    key: str = "external_id"
    within: str = ""
    creates: bool = True


@dataclass(frozen=True, slots=True)
class Column:
    """A column that comes from the file and needs more than its name.

    `encode` replaces the encoding of the model's field (`encoder_of`). `update` and `differs` are
    SQL over {old} and {new} for columns that are not simply overwritten and compared.
    """

    name: str
    encode: binary.Encode | None = None
    update: str = OVERWRITE
    differs: str = DIFFERENT


@dataclass(frozen=True, slots=True)
class Key:
    """A conflict key: a unique index over the organization and `columns`.

    A line uses the first key whose first column it fills. `partial` is the predicate of the index,
    with {row} before each column. `has_nulls`: NULLS NOT DISTINCT.
    """

    columns: tuple[str, ...]
    partial: str = ""
    has_nulls: bool = False


@dataclass(frozen=True, slots=True)
class Expiry:
    """When live rows have expired: nobody sees them, though they still exist. A row with the same
    key is written over them as if it were new.

    `when` is SQL over {now} and {row}, which precedes each column. `reason` is for the journal.
    """

    when: str
    reason: str


@dataclass(frozen=True, slots=True)
class Children:
    """Lines inside a line (the runs of a session), which are rows of another table."""

    source: str
    spec: "LoadSpec"


# Records the rows written, in their transaction. Called with SQL that returns (id, change_type,
# reason) of each, and with organization_id, actor_id and now.
Journal = Callable[..., None]


@dataclass(frozen=True)
class LoadSpec:
    """One loadable resource."""

    resource: str
    model: type[models.Model]
    line: type[msgspec.Struct]
    columns: Sequence[Column | str]
    keys: Sequence[Key]
    references: Sequence[Reference] = ()
    children: Children | None = None
    # Reference columns. Lines with the same name in the first one that they fill go to one worker.
    grouped_by: Sequence[str] = ()
    # For children: the column with the parent's id, which is first in the key.
    parent_column: str = ""
    # SQL over {old} and {new}: columns of the server's that a real change updates.
    server_columns: dict[str, str] = field(default_factory=dict)
    journal: Journal | None = None
    expiry: Expiry | None = None
    # The line of an export: `line` and columns that otherwise only the server sets.
    restored_line: type[msgspec.Struct] | None = None
    restored_columns: Sequence[Column | str] = ()
    # In `restoring(spec)`: the keys that must agree with the id of a row.
    natural_keys: Sequence[Key] = ()

    @property
    def keeps_ids(self) -> bool:
        return bool(self.natural_keys)

    @property
    def keeps_line_hash(self) -> bool:
        """Rows keep the hash of their last line: an unchanged line is recognized by it, before it
        is decoded."""
        names = {f.name for f in self.model._meta.concrete_fields}
        return LINE_HASH in names and not self.keeps_ids

    @property
    def all_columns(self) -> list[Column]:
        return [c if isinstance(c, Column) else Column(c) for c in self.columns]

    @property
    def table(self) -> sql.Identifier:
        return sql.Identifier(self.model._meta.db_table)


def restoring(spec: LoadSpec) -> LoadSpec:
    """The spec for lines of an export: rows keep their ids and the columns that the server sets.

    Rows are matched by id. A new row is in the trash if it was; an existing row stays where it is.
    """
    given = spec.restored_line or spec.line
    children = spec.children and replace(spec.children, spec=restoring(spec.children.spec))
    fields: dict[str, Any] = {str(f.column): f for f in spec.model._meta.concrete_fields}
    # Rows that the API created may have no key of the caller's.
    optional = [
        (name, KeyText | None, None)
        for key in spec.keys
        for name in key.columns
        if not key.partial and fields[name].null
    ]
    below: list[Any] = (
        [(children.source, list[children.spec.line] | None, None)]  # type: ignore[name-defined]
        if children
        else []
    )
    line = msgspec.defstruct(
        f"Restored{spec.line.__name__}",
        [("id", UUID), ("deleted_at", Moment | None, None), *optional, *below],
        bases=(given,),
        namespace={"is_deleted": property(lambda line: line.deleted_at is not None)},
        forbid_unknown_fields=True,
        kw_only=True,
        gc=False,
    )
    once = [Column(n, update="{old}.{column}", differs="") for n in ("is_deleted", "deleted_at")]
    return replace(
        spec,
        line=line,
        columns=[*spec.columns, *spec.restored_columns, *once],
        # A child keeps its own key: its parent has its id already.
        keys=spec.keys if spec.parent_column else [Key(("id",))],
        natural_keys=spec.keys,
        references=[replace(r, creates=False) for r in spec.references],
        children=children,
        server_columns={},
        expiry=None,
    )


def tolerant(spec: LoadSpec) -> LoadSpec:
    """The spec that ignores unknown fields of lines."""
    children = spec.children and replace(spec.children, spec=tolerant(spec.children.spec))
    below: list[Any] = (
        [(children.source, list[children.spec.line] | None, None)]  # type: ignore[name-defined]
        if children
        else []
    )

    def tolerant_of(line: type[msgspec.Struct]) -> type[msgspec.Struct]:
        return msgspec.defstruct(
            line.__name__, below, bases=(line,), forbid_unknown_fields=False, kw_only=True, gc=False
        )

    given = spec.restored_line and tolerant_of(spec.restored_line)
    return replace(spec, line=tolerant_of(spec.line), restored_line=given, children=children)


def lenient(spec: LoadSpec) -> type[msgspec.Struct]:
    """The spec's line whose times and keys have any type: `times` parses the times, and
    `key_of` validates the keys."""
    declared = msgspec.inspect.type_info(spec.line).fields  # type: ignore[attr-defined]
    fields: list[Any] = [
        (f.name, str | int | float | None, None) for f in declared if _is_moment(f)
    ]
    for f in declared:
        if _is_key(f):
            fields.append((f.name, _AnyKey) if f.required else (f.name, _AnyKey | None, None))
    if spec.children:
        below = lenient(spec.children.spec)
        fields.append((spec.children.source, list[below] | None, None))  # type: ignore[valid-type]
    return msgspec.defstruct(spec.line.__name__, fields, bases=(spec.line,), kw_only=True, gc=False)


_AnyKey = str | int | float | bool | list[Any] | dict[str, Any]
_KEY_TYPE = msgspec.inspect.type_info(KeyText)


def _is_key(field: Any) -> bool:
    return _KEY_TYPE in getattr(field.type, "types", (field.type,))


def _is_moment(field: Any) -> bool:
    types = getattr(field.type, "types", (field.type,))
    return any(isinstance(type_, msgspec.inspect.DateTimeType) for type_ in types)


def _other_kind(needed: str, raw: bytes) -> str:
    return f"{needed} is needed, got {kind_of(msgspec.json.decode(raw), MAX_ECHOED)}."


def json_object(raw: bytes) -> bytes:
    """Encodes a jsonb column that must be an object. Raises: ValueError."""
    if not raw.startswith(b"{"):
        raise ValueError(_other_kind("An object", raw))
    return binary.jsonb(raw)


def json_array(raw: bytes) -> bytes:
    """Encodes a jsonb column that must be an array. Raises: ValueError."""
    if not raw.startswith(b"["):
        raise ValueError(_other_kind("An array", raw))
    return binary.jsonb(raw)


def key(value: Any) -> bytes:
    """Raises: KeyFault."""
    return binary.text(key_of(value))


_USUAL_EMAIL = re.compile(
    r"[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+"
    r"[A-Za-z]{2,63}"
)


def email(value: str) -> bytes:
    """By the rule of the API and the console, which Django has. Raises: ValueError."""
    address = value.strip()
    if address and not _USUAL_EMAIL.fullmatch(address):  # (the rule itself is slow)
        try:
            validate_email(address)
        except ValidationError as error:
            raise ValueError(error.messages[0]) from error
    return binary.text(address)


_ENCODERS: dict[str, binary.Encode] = {
    "ArrayField": binary.varchar_array,
    "BigIntegerField": binary.int8,
    "BinaryField": binary.data,
    "BooleanField": binary.boolean,
    "CharField": binary.text,
    "FloatField": binary.real,  # a RealField: there are no others
    "HalfVectorField": binary.halfvec,
    "IntegerField": binary.int4,
    "SmallIntegerField": binary.int2,
    "TextField": binary.text,
}


def encoder_of(field: Any, *, is_export: bool = False) -> binary.Encode:
    """The encoding of a model field's values. A JSON value must be of the type of the default."""
    if isinstance(field, KeyField) and not is_export:  # (what an export says was stored already)
        return key
    if isinstance(field, models.EmailField) and not is_export:
        return email
    if field.get_internal_type() == "JSONField":
        return {dict: json_object, list: json_array}.get(field.default, binary.jsonb)
    return _ENCODERS[field.get_internal_type()]
