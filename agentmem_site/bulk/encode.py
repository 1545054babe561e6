"""Lines into rows of binary COPY, a batch at a time. Knows no database: it runs in a thread of its
own, a batch ahead of the one that the database is busy with.

What a line refers to is not known here: its column keeps the name, and `Batch.finish` puts the id
in its place.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from operator import attrgetter, itemgetter
from typing import Any
from uuid import UUID

import msgspec

from agentmem_site.bulk import binary
from agentmem_site.bulk.readers import NumberedLine, check_text
from agentmem_site.bulk.spec import Column, LineError, LoadSpec, encoder_of, moment
from agentmem_site.db.ids import uuid7_bytes

MAX_DIGITS = 38  # of a number, as at the door of the API
_MAYBE_LONG = re.compile(rb"\d{39}|\d[eE]")

# What a line calls another row: its key or id, or (the outer row's name, its key).
Name = str | tuple[str, str]
Children = dict[Any, bytes]  # key within the parent -> row
Known = dict[str, dict[Name, bytes]]  # column -> name -> the encoded id
DecodedLine = tuple[int, Any]  # number, the spec's line
Reject = Callable[[LineError], None]

_PATH = re.compile(r"(.*?)(?: - at `\$\.?(.*)`)?", re.DOTALL)
_QUOTED = re.compile(r"`(.*)`")


def refuse(error: LineError) -> None:
    """One bad line stops it all."""
    raise error


@dataclass(slots=True)
class Row:
    """One line, encoded: its key is what tells it from other rows."""

    number: int
    id: UUID
    key: Any
    data: bytes


@dataclass(slots=True)
class Batch:
    """A batch of valid lines, encoded but for the ids of what they refer to."""

    read: int
    last_line: int
    # Column -> name -> the first line that names it.
    wanted: dict[str, dict[Name, int]]
    _encoder: "Encoder"
    _rows: list[tuple[int, list[Any], Children]]  # line, parts, the children's rows
    child_duplicates: int
    # Of the rows that `finish` gave: the line of each.
    row_lines: list[int] = dataclasses.field(default_factory=list)
    child_lines: list[int] = dataclasses.field(default_factory=list)

    def finish(self, known: Known) -> tuple[list[bytes], list[bytes]]:
        """The rows and their children's rows, the last of each key; every name is in `known`.

        A row met twice keeps the children that its last line does not name, as it does when its
        lines are in two batches.
        """
        places = self._encoder.reference_places
        key_of = self._encoder.key_of
        rows: dict[Any, tuple[int, bytes, Children]] = {}
        for number, parts, children in self._rows:
            for place, column in places:
                name = parts[place]
                parts[place] = binary.NULL if name is None else known[column][name]
            key = key_of(parts)
            below = children
            if earlier := rows[key][2] if key in rows else None:
                self.child_duplicates += len(earlier.keys() & children.keys())
                below = {name: _handed_to(parts[1], row) for name, row in earlier.items()}
                below |= children
            rows[key] = number, b"".join(parts), below
        all_below = [child for *_, children in rows.values() for child in children.values()]
        self.row_lines = [number for number, *_ in rows.values()]
        self.child_lines = [number for number, _, children in rows.values() for _ in children]
        return [row for _, row, _ in rows.values()], all_below

    def finish_each(self, known: Known, *, without: Container[int]) -> Iterator[Row]:
        """A row per line, in order, but for those lines; every name of the others is in `known`.
        (For a spec without children.)"""
        places = self._encoder.reference_places
        for number, parts, _ in self._rows:
            if number in without:
                continue
            for place, column in places:
                name = parts[place]
                parts[place] = binary.NULL if name is None else known[column][name]
            row_id = UUID(bytes=parts[1][len(binary.data(b"")) :])
            yield Row(number, row_id, self._encoder.key_of(parts), b"".join(parts))

    def named(self) -> Iterator[tuple[int, str, Name]]:
        """(line, column, name) of everything that a line refers to."""
        for number, parts, _ in self._rows:
            for place, column in self._encoder.reference_places:
                if parts[place] is not None:
                    yield number, column, parts[place]


class Encoder:
    """Lines of one spec into rows. `columns` are those of a row, in the order they are copied."""

    def __init__(self, spec: LoadSpec, *, keeps_time: bool) -> None:
        self.spec = spec
        self._decoder = msgspec.json.Decoder(spec.line)
        parent = [spec.parent_column] if spec.parent_column else []
        times = ["created_at", "updated_at"] if keeps_time else []
        self.columns = ("id", *parent, *(column.name for column in spec.all_columns), *times)
        self._sources = [column.name for column in spec.all_columns] + times
        get = attrgetter(*self._sources)
        self._values = get if len(self._sources) > 1 else lambda line: (get(line),)
        self._encoders = [self._encoder(column) for column in spec.all_columns]
        self._encoders += [(moment, binary.NULL)] * len(times)
        self._header = binary.row_header(len(self.columns))
        # A row's parts: the header, then its columns.
        place = {name: place for place, name in enumerate(self.columns, start=1)}
        self.reference_places = [(place[r.column], r.column) for r in spec.references]
        self._within = [(r.column, place[r.column], r.within) for r in spec.references if r.within]
        self.key_of = _key_of([[place[name] for name in key.columns] for key in spec.keys])
        # (An export's runs bear their times, those of a file the load's.)
        below = spec.children and spec.children.spec
        self.children = Encoder(below, keeps_time=keeps_time and spec.keeps_ids) if below else None

    def decode(self, lines: Iterable[NumberedLine], reject: Reject = refuse) -> list[DecodedLine]:
        """The lines as the spec has them; a bad one goes to `reject`, which raises or notes it."""
        decoded = []
        for number, line in lines:
            try:
                decoded.append((number, self._decode(number, line)))
            except LineError as error:
                reject(error)
        return decoded

    def encode(self, decoded: Sequence[DecodedLine], reject: Reject = refuse) -> Batch:
        """The batch of these lines, at least one; a bad one goes to `reject`."""
        source = self.spec.children.source if self.spec.children else ""
        total = len(decoded) + sum(len(getattr(line, source)) for _, line in decoded if source)
        ids = uuid7_bytes(total)
        rows, child_duplicates = [], 0
        wanted: dict[str, dict[Name, int]] = {r.column: {} for r in self.spec.references}
        for number, line in decoded:
            row_id = self._row_id(line, ids)
            try:
                parts = self._parts(line, row_id)
                children, duplicates = (
                    self._children(getattr(line, source), row_id, ids) if (source) else ({}, 0)
                )
            except LineError as error:
                error.line = number
                reject(error)
                continue
            for place, column in self.reference_places:
                if parts[place] is not None:
                    wanted[column].setdefault(parts[place], number)
            child_duplicates += duplicates
            rows.append((number, parts, children))
        return Batch(len(decoded), decoded[-1][0], wanted, self, rows, child_duplicates)

    # -- inside ----------------------------------------------------------------------------------

    def _decode(self, number: int, line: bytes) -> Any:
        try:
            check_text(line)
            return self._decoder.decode(line)
        except LineError as error:
            error.line = number
            raise
        except msgspec.ValidationError as error:
            raise _named(error, self.spec, number) from error
        except (msgspec.DecodeError, RecursionError) as error:
            raise LineError("malformed_json", "", str(error), line=number) from error

    def _row_id(self, line: Any, ids: Iterator[bytes]) -> bytes:
        return binary.uuid(line.id) if self.spec.keeps_ids else binary.data(next(ids))

    def _parts(self, line: Any, row_id: bytes, *parent: bytes) -> list[Any]:
        """The header and the encoded columns; references stay names. Raises: LineError."""
        values = self._values(line)
        try:
            parts: list[Any] = [
                default if value is None else encode(value)
                for (encode, default), value in zip(self._encoders, values, strict=True)
            ]
        except Exception as error:
            raise self._fault(values) from error
        parts[:0] = (self._header, row_id, *parent)
        for column, place, outer in self._within:
            if parts[place] is not None:
                if getattr(line, outer) is None:
                    raise LineError("missing_field", outer, f"Needed to find {column}")
                parts[place] = (getattr(line, outer), parts[place])
        return parts

    def _children(
        self, lines: Sequence[Any], parent: bytes, ids: Iterator[bytes]
    ) -> tuple[Children, int]:
        """The rows of the lines within a line, the last of each key; how many that leaves out."""
        encoder = self.children
        rows: Children = {}
        if encoder is None:
            return rows, 0
        for position, line in enumerate(lines):
            try:
                parts = encoder._parts(line, encoder._row_id(line, ids), parent)
            except LineError as error:
                error.field = f"{self.spec.children.source}[{position}].{error.field}"  # type: ignore[union-attr]
                raise
            rows[encoder.key_of(parts)[1:]] = b"".join(parts)  # (the parent comes first)
        return rows, len(lines) - len(rows)

    def _encoder(self, column: Column) -> tuple[binary.Encode, bytes | None]:
        """How a column's values are encoded, and what stands for a missing one: its default."""
        if any(column.name == reference.column for reference in self.spec.references):
            return _as_it_is, None
        fields = self.spec.model._meta.concrete_fields
        field = next(f for f in fields if f.column == column.name)
        encode, default = column.encode or encoder_of(field), field.get_default()
        if field.get_internal_type() == "JSONField":
            missing = binary.NULL if default is None else encode(msgspec.json.encode(default))
            return _json_or(missing, encode), missing
        return encode, binary.NULL if default is None else encode(default)

    def _fault(self, values: Iterable[Any]) -> LineError:
        """The first column that cannot be encoded. (Found again: the fast path does not count.)"""
        for source, (encode, _), value in zip(self._sources, self._encoders, values, strict=True):
            try:
                if value is not None:
                    encode(value)
            except Exception as error:
                return LineError("invalid_value", source, str(error))
        return LineError("invalid_value", "", "The line cannot be encoded")


def _key_of(keys: list[list[int]]) -> Callable[[Sequence[Any]], Any]:
    """What tells a row's parts apart: the first key whose first column it fills."""
    first, *others = [itemgetter(*places) for places in keys]
    if not others:
        return first
    lead = keys[0][0]
    rest = _key_of(keys[1:])
    return lambda parts: rest(parts) if parts[lead] == binary.NULL else first(parts)


def _handed_to(parent: bytes, row: bytes) -> bytes:
    """A child's row under another parent: its header and its own id come before the parent's."""
    start = len(binary.row_header(0)) + len(parent)
    return row[:start] + parent + row[start + len(parent) :]


def _as_it_is(name: Any) -> Any:
    return name


def _json_or(missing: bytes, encode: binary.Encode) -> binary.Encode:
    """For a JSON column: absent and null are its default, never JSON null."""

    def encode_raw(value: msgspec.Raw) -> bytes:
        raw = bytes(value)
        if _MAYBE_LONG.search(raw):
            json.loads(raw, parse_int=_number, parse_float=_number)
        return encode(raw) if raw and raw != b"null" else missing

    return encode_raw


def _number(text: str) -> None:
    """jsonb keeps a number of a hundred thousand digits; Python refuses to read it back."""
    number = Decimal(text)
    if len(text.lstrip("-").partition(".")[0]) > MAX_DIGITS or abs(number) >= 10**MAX_DIGITS:
        raise ValueError(f"A number has more than {MAX_DIGITS} digits")


def _named(error: msgspec.ValidationError, spec: LoadSpec, number: int) -> LineError:
    """msgspec's sentence as field, code and message."""
    match = _PATH.fullmatch(str(error))
    message, path = (match[1], match[2] or "") if match else (str(error), "")
    quoted = _QUOTED.search(message)
    cause = error.__cause__.__cause__ if error.__cause__ else None
    if isinstance(cause, LineError):  # what a line says of itself (its __post_init__)
        field_name = ".".join(part for part in (path, cause.field) if part)
        return LineError(cause.code, field_name, cause.message, line=number)
    if quoted and message.startswith("Object contains unknown field"):
        place = f"{path}." if path else ""
        allowed = ", ".join(_allowed(spec, path))
        return LineError(
            "unknown_field", place + quoted[1], f"Unknown field; allowed: {allowed}", line=number
        )
    if quoted and message.startswith("Object missing required field"):
        place = f"{path}." if path else ""
        return LineError("missing_field", place + quoted[1], "Missing", line=number)
    return LineError("invalid_value", path, message, line=number)


def _allowed(spec: LoadSpec, path: str) -> Iterator[str]:
    line = spec.children.spec.line if path and spec.children else spec.line
    return (f.encode_name for f in msgspec.structs.fields(line))
