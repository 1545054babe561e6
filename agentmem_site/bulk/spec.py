"""What a loader has to know of a resource: its line, its columns, its keys, what it refers to.

A line is a `msgspec.Struct`: its types and limits are the validation, its properties derive what
is not in the file. JSON columns are `msgspec.Raw`: their bytes go through untouched.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Annotated, Any, Self
from uuid import UUID

import msgspec
from django.db import models
from psycopg import sql

from agentmem_site.bulk import binary

Name = Annotated[str, msgspec.Meta(max_length=255)]
KeyText = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
Moment = Annotated[datetime, msgspec.Meta(tz=True)] | int | float  # numbers: seconds since 1970
ABSENT = msgspec.Raw()
LINE_HASH = "line_hash"  # the column that notes a row's last line
LINE_AT = "line_at"  # beside a staged row: when it was made, where its line does not say
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
        """Without what led to it: a traceback keeps the whole batch in memory."""
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
    """What is said again of what a line holds: a reject is no copy of it."""
    return content if len(content) <= MAX_ECHOED else f"{content[: MAX_ECHOED - 3]}..."


class Line(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, gc=False):
    """The fields of every resource."""

    metadata: msgspec.Raw = ABSENT
    created_at: Moment | None = None
    updated_at: Moment | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """A column that holds another row's id; the file names that row by its key or its id.

    `within` names another reference column of the same line that the key is unique in.
    `creates`: an unknown key becomes a new row. `by_id`: a name that is an id goes before a key.
    """

    column: str
    model: type[models.Model]
    key: str = "external_id"
    within: str = ""
    creates: bool = True
    by_id: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """A column that comes from the file, where its name alone does not say all.

    `encode` stands in for what the model's field says (`encoder_of`). `update` and `differs` are
    SQL over {old} and {new} for columns that are not simply overwritten and compared.
    """

    name: str
    encode: binary.Encode | None = None
    update: str = OVERWRITE
    differs: str = DIFFERENT


@dataclass(frozen=True, slots=True)
class Key:
    """A unique index that tells rows apart, the organization before `columns`.

    A line goes by the first key whose first column it fills. `partial` is the index's own
    predicate, with {row} before each column; with `has_nulls` two NULLs are the same.
    """

    columns: tuple[str, ...]
    partial: str = ""
    has_nulls: bool = False


@dataclass(frozen=True, slots=True)
class Gone:
    """Which live rows are there no more for anybody, though nobody has taken them away yet. What is
    added under their key is written over them, as if it were new.

    `when` is SQL over {row}, before each column, and {now}; `reason` is for the journal.
    """

    when: str
    reason: str


@dataclass(frozen=True, slots=True)
class Children:
    """Lines inside a line (the runs of a session), rows of their own in another table."""

    source: str
    spec: "LoadSpec"


# What to note of the rows written, in their transaction. Called with SQL that gives their (id,
# change_type, reason) and with organization_id, actor_id and now.
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
    # Reference columns: lines that name the same in the first that they fill are one worker's.
    together: Sequence[str] = ()
    # Of a child: the column that holds its parent's id, first in its key.
    parent_column: str = ""
    # SQL over {old} and {new}: columns that the server keeps and a real change moves.
    server_columns: dict[str, str] = field(default_factory=dict)
    journal: Journal | None = None
    gone: Gone | None = None
    # The line of an export: `line`, and the columns that the server keeps otherwise.
    restored_line: type[msgspec.Struct] | None = None
    restored_columns: Sequence[Column | str] = ()
    # Of `restoring(spec)`: the keys that a row with a given id must agree with.
    natural_keys: Sequence[Key] = ()

    @property
    def keeps_ids(self) -> bool:
        return bool(self.natural_keys)

    @property
    def notes_lines(self) -> bool:
        """A row keeps what its last line was: the same line again is known without looking at
        it (seen.py)."""
        names = {f.name for f in self.model._meta.concrete_fields}
        return LINE_HASH in names and not self.keeps_ids

    @property
    def all_columns(self) -> list[Column]:
        return [c if isinstance(c, Column) else Column(c) for c in self.columns]

    @property
    def table(self) -> sql.Identifier:
        return sql.Identifier(self.model._meta.db_table)


def restoring(spec: LoadSpec) -> LoadSpec:
    """The spec of an export's lines: rows keep their ids, and what the server keeps of them.

    A row is found by its id. In the trash it is as it was, if it is new here; one that is there
    stays where it is.
    """
    given = spec.restored_line or spec.line
    children = spec.children and replace(spec.children, spec=restoring(spec.children.spec))
    fields: dict[str, Any] = {str(f.column): f for f in spec.model._meta.concrete_fields}
    # Not every row has a key of the caller's.
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
        # A child's parent has its id already: its own key is found as it always is.
        keys=spec.keys if spec.parent_column else [Key(("id",))],
        natural_keys=spec.keys,
        references=[replace(r, creates=False, by_id=not r.within) for r in spec.references],
        children=children,
        server_columns={},
        gone=None,
    )


def tolerant(spec: LoadSpec) -> LoadSpec:
    """The spec of lines whose unknown fields are left out."""
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


def with_written_times(spec: LoadSpec) -> type[msgspec.Struct]:
    """The spec's line, whose times may be any text: `times` reads it."""
    told = msgspec.inspect.type_info(spec.line).fields  # type: ignore[attr-defined]
    fields: list[Any] = [(f.name, str | int | float | None, None) for f in told if _is_moment(f)]
    if spec.children:
        below = with_written_times(spec.children.spec)
        fields.append((spec.children.source, list[below] | None, None))  # type: ignore[valid-type]
    return msgspec.defstruct(spec.line.__name__, fields, bases=(spec.line,), kw_only=True, gc=False)


def _is_moment(field: Any) -> bool:
    types = getattr(field.type, "types", (field.type,))
    return any(isinstance(type_, msgspec.inspect.DateTimeType) for type_ in types)


def json_object(raw: bytes) -> bytes:
    """A jsonb column that holds an object. Raises: ValueError."""
    if not raw.startswith(b"{"):
        raise ValueError("Expected an object")
    return binary.jsonb(raw)


def json_array(raw: bytes) -> bytes:
    """A jsonb column that holds an array. Raises: ValueError."""
    if not raw.startswith(b"["):
        raise ValueError("Expected an array")
    return binary.jsonb(raw)


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


def encoder_of(field: Any) -> binary.Encode:
    """How a model field's values are encoded; its JSON is of the kind that its default is."""
    if field.get_internal_type() == "JSONField":
        return {dict: json_object, list: json_array}.get(field.default, binary.jsonb)
    return _ENCODERS[field.get_internal_type()]
