"""Lines into rows of binary COPY, a batch at a time. Knows no database: it runs in a thread of its
own, a batch ahead of the one that the database is busy with.

What a line refers to is not known here: its column keeps the name, and `Batch.finish` puts the id
in its place.
"""

import re
import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from agentmem_site.bulk import binary
from agentmem_site.bulk.checks import check_line
from agentmem_site.bulk.report import Counts
from agentmem_site.bulk.spec import (
    LINE_HASH,
    NO_MOMENT,
    Column,
    KeyText,
    LineError,
    LoadSpec,
    echoed,
    encoder_of,
    json_array,
    json_object,
    moment,
)
from agentmem_site.db.ids import uuid7_bytes

DIGEST_BYTES = 16

# What a line calls another row: its key or id, or (the outer row's name, its key).
Name = str | tuple[str, str]
Children = dict[Any, bytes]  # key within the parent -> row
Known = dict[str, dict[Name, bytes]]  # column -> name -> the encoded id
Reject = Callable[[LineError], None]

_OPENINGS: dict[binary.Encode, bytes] = {json_object: b"{", json_array: b"["}
_PATH = re.compile(r"(.*?)(?: - at `\$\.?(.*)`)?", re.DOTALL)
_QUOTED = re.compile(r"`(.*)`")
_ID_BYTES = slice(4, 20)  # of an encoded uuid, behind its length


def refuse(error: LineError) -> None:
    """One bad line stops it all."""
    raise error


class RawLine(NamedTuple):
    """A line as it was read, or why it could not be; where it starts, and its digest."""

    number: int
    line: bytes | LineError
    offset: int | None = None
    digest: bytes | None = None


class DecodedLine(NamedTuple):
    number: int
    line: Any  # the spec's line
    offset: int | None
    digest: bytes | None


class Probe(NamedTuple):
    """What tells whether a line has been seen before: its key, the names that it refers to."""

    raw: RawLine
    key: str
    names: tuple[Name | None, ...]  # by the spec's references
    children: int  # of different keys
    repeated: int  # children more


class Seen(NamedTuple):
    """A line that the table has as it is."""

    number: int
    children: int  # of different keys
    repeated: int  # children more


class Row(NamedTuple):
    """One line, encoded: its key is what tells it from other rows."""

    number: int
    id: UUID
    key: Any
    data: bytes


class _Parts(NamedTuple):
    """One line's row: the header, then its columns; references stay names."""

    number: int
    offset: int | None
    parts: list[Any]
    children: Children
    repeated: int  # children of the same key that the last one replaced


class Mark(NamedTuple):
    """How far a part of the file is done: all of its lines up to `line`; of the whole file up to
    `checked_line` the digest is known."""

    line: int = 0
    checked_line: int = 0
    digest: bytes = b""


START = Mark()


@dataclass(slots=True)
class Batch:
    """A batch of lines, encoded but for the ids of what they refer to. It can be written again,
    and in pieces."""

    encoder: "Encoder"
    rows: list[_Parts]
    end: Mark = START  # once it is stored
    rejected: list[LineError] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    # Of the rows that `finish` gave: the line of each.
    row_lines: list[int] = field(default_factory=list)
    child_lines: list[int] = field(default_factory=list)
    child_duplicates: int = 0

    @property
    def read(self) -> int:
        return len(self.rows) + len(self.rejected) + len(self.seen)

    @property
    def seen_below(self) -> Counts:
        """The children of the lines seen."""
        return Counts(
            unchanged=sum(line.children for line in self.seen),
            duplicates=sum(line.repeated for line in self.seen),
        )

    def wanted(self, column: str) -> dict[Name, int]:
        """What the lines call rows of that column: the first line that names each."""
        place = self.encoder.place_of[column]
        names: dict[Name, int] = {}
        for row in self.rows:
            if (name := row.parts[place]) is not None:
                names.setdefault(name, row.number)
        return names

    def named(self) -> Iterator[tuple[int, str, Name]]:
        """(line, column, name) of everything that a line refers to."""
        for row in self.rows:
            for place, column in self.encoder.reference_places:
                if row.parts[place] is not None:
                    yield row.number, column, row.parts[place]

    def finish(self, known: Known) -> tuple[list[bytes], list[bytes]]:
        """The rows and their children's rows, the last of each key; every name is in `known`.

        A row met twice keeps the children that its last line does not name, as it does when its
        lines are in two batches.
        """
        key_of = self.encoder.key_of
        rows: dict[Any, tuple[int, bytes, Children]] = {}
        self.child_duplicates = 0
        for row in self.rows:
            parts = self.encoder.complete(row.parts, known)
            key = key_of(parts)
            below = row.children
            self.child_duplicates += row.repeated
            if earlier := rows[key][2] if key in rows else None:
                self.child_duplicates += len(earlier.keys() & below.keys())
                below = {name: _handed_to(parts[1], child) for name, child in earlier.items()}
                below |= row.children
            rows[key] = row.number, b"".join(parts), below
        all_below = [child for *_, children in rows.values() for child in children.values()]
        self.row_lines = [number for number, *_ in rows.values()]
        self.child_lines = [number for number, _, children in rows.values() for _ in children]
        return [row for _, row, _ in rows.values()], all_below

    def finish_each(self, known: Known, *, without: Container[int]) -> Iterator[Row]:
        """A row per line, in order, but for those lines; every name of the others is in `known`.
        (For a spec without children.)"""
        for row in self.rows:
            if row.number not in without:
                parts = self.encoder.complete(row.parts, known)
                row_id = UUID(bytes=parts[1][_ID_BYTES])
                yield Row(row.number, row_id, self.encoder.key_of(parts), b"".join(parts))

    def cut(self, size: int) -> "list[Batch]":
        """Its first `size` rows, and the rest; both of at least one row. Stored in this order they
        do what the whole would."""
        first, rest = self.rows[:size], self.rows[size:]
        last = first[-1].number
        middle = self.end._replace(line=last, checked_line=0, digest=b"")
        early = [error for error in self.rejected if error.line <= last]
        late = [error for error in self.rejected if error.line > last]
        seen = [line for line in self.seen if line.number <= last]
        seen_later = [line for line in self.seen if line.number > last]
        return [
            replace(self, rows=first, end=middle, rejected=early, seen=seen),
            replace(self, rows=rest, rejected=late, seen=seen_later),
        ]

    def reject(self, error: LineError) -> None:
        """The line of `error` is none of the rows any more."""
        (row,) = (row for row in self.rows if row.number == error.line)
        error.offset = row.offset
        self.rows = [other for other in self.rows if other is not row]
        self.rejected.append(error.bare())


class Encoder:
    """Lines of one spec into rows. `columns` are those of a row, in the order they are copied."""

    def __init__(self, spec: LoadSpec, *, keeps_time: bool, notes_lines: bool = False) -> None:
        self.spec = spec
        self._decoder = msgspec.json.Decoder(spec.line)
        parent = [spec.parent_column] if spec.parent_column else []
        times = ["created_at", "updated_at"] if keeps_time else []
        note = [LINE_HASH] if notes_lines else []
        self.columns = ("id", *parent, *(c.name for c in spec.all_columns), *times, *note)
        self._sources = [column.name for column in spec.all_columns] + times
        get = attrgetter(*self._sources)
        self._values = get if len(self._sources) > 1 else lambda line: (get(line),)
        self._encoders = [self._encoder(column) for column in spec.all_columns]
        self._encoders += [(moment, binary.NULL)] * len(times)
        self._keeps_time = keeps_time
        self._times = [n for n in ("created_at", "updated_at") if n in spec.line.__struct_fields__]
        self._header = binary.row_header(len(self.columns))
        # A row's parts: the header, then its columns.
        self.place_of = {name: place for place, name in enumerate(self.columns, start=1)}
        self.reference_places = [(self.place_of[r.column], r.column) for r in spec.references]
        self._within = [
            (r.column, self.place_of[r.column], r.within) for r in spec.references if r.within
        ]
        self.key_of = _key_of([[self.place_of[n] for n in key.columns] for key in spec.keys])
        self._note_place = self.place_of.get(LINE_HASH, 0)
        self._probe = _probe(spec)
        # (An export's runs bear their times, those of a file the load's.)
        below = spec.children and spec.children.spec
        self.children = Encoder(below, keeps_time=keeps_time and spec.keeps_ids) if below else None

    def decode(self, lines: Iterable[RawLine], reject: Reject = refuse) -> list[DecodedLine]:
        """The lines as the spec has them; a bad one goes to `reject`, which raises or notes it."""
        decoded = []
        for raw in lines:
            try:
                decoded.append(
                    DecodedLine(raw.number, self._decode(raw.line), raw.offset, raw.digest)
                )
            except LineError as error:
                error.line, error.offset = raw.number, raw.offset
                reject(error)
        return decoded

    def encode(self, decoded: Sequence[DecodedLine], reject: Reject = refuse) -> Batch:
        """The batch of these lines; a bad one goes to `reject`."""
        source = self.spec.children.source if self.spec.children else ""
        total = len(decoded) + sum(len(getattr(d.line, source)) for d in decoded if source)
        ids = uuid7_bytes(total)
        rows = []
        for number, line, offset, digest in decoded:
            row_id = self._row_id(line, ids)
            try:
                parts = self._parts(line, row_id)
                children, repeated = (
                    self._children(getattr(line, source), row_id, ids) if source else ({}, 0)
                )
            except LineError as error:
                error.line, error.offset = number, offset
                reject(error)
                continue
            if self._note_place:
                parts.append(digest)
            rows.append(_Parts(number, offset, parts, children, repeated))
        return Batch(self, rows)

    def probes(self, lines: Sequence[RawLine]) -> tuple[list[Probe], list[RawLine]]:
        """Those that can be asked for by their key, each key once; the others have to be decoded.

        (Of a key met twice, the last line counts and the children of all.)
        """
        decode, split = self._probe
        by_key: dict[str, Probe] = {}
        again: set[str] = set()
        others = []
        for raw in lines:
            try:
                key, names, below = split(decode(raw.line))  # type: ignore[arg-type]
                different = len(set(map(msgspec.structs.astuple, below))) if below else 0
            except (msgspec.MsgspecError, TypeError, ValueError, RecursionError):
                key = None
            if key is None:
                others.append(raw)
            elif key in by_key:
                again.add(key)
                others.append(raw)
            else:
                by_key[key] = Probe(raw, key, names, different, len(below) - different)
        others += [by_key.pop(key).raw for key in again]
        return list(by_key.values()), sorted(others)

    def part_of(self, line: Any, parts: int) -> int:
        """Which of so many workers a line is for: the same for all lines of a key."""
        key = self.spec.keys[0].columns[0]
        name = getattr(line, key)
        if name is None and len(self.spec.keys) > 1:
            name = getattr(line, self.spec.keys[1].columns[0])
        return zlib.crc32(name if isinstance(name, bytes) else str(name).encode()) % parts

    def part_of_raw(self, raw: RawLine, parts: int) -> int:
        """The same of a line not decoded yet; any one for a line that cannot be."""
        decode, split = self._probe
        try:
            key, *_ = split(decode(raw.line))  # type: ignore[arg-type]
            if key is None:
                return self.part_of(self._decode(raw.line), parts)
        except (msgspec.MsgspecError, LineError, TypeError, ValueError, RecursionError):
            return 0
        return zlib.crc32(key.encode()) % parts

    def complete(self, parts: list[Any], known: Known) -> list[bytes]:
        """The parts with ids in place of names."""
        parts = parts.copy()
        for place, column in self.reference_places:
            name = parts[place]
            parts[place] = binary.NULL if name is None else known[column][name]
        if self._note_place:
            digest = parts[self._note_place]
            referred = [parts[place] for place, _ in self.reference_places]
            parts[self._note_place] = binary.data(line_hash(digest, referred))
        return parts

    # -- inside ----------------------------------------------------------------------------------

    def _decode(self, line: bytes | LineError) -> Any:
        try:
            if isinstance(line, LineError):
                raise line
            check_line(line)
            return self._decoder.decode(line)
        except msgspec.ValidationError as error:
            raise _named(error, self.spec) from error
        except (msgspec.DecodeError, RecursionError) as error:
            raise LineError("malformed_json", "", str(error)) from error

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
        if not self._keeps_time:  # a moment that is left aside has to be one all the same
            for name in self._times:
                if (given := getattr(line, name)) is not None and not _is_moment(given):
                    raise LineError("invalid_value", name, NO_MOMENT)
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


def _is_moment(value: Any) -> bool:
    try:
        moment(value)
    except ValueError:
        return False
    return True


def _as_it_is(name: Any) -> Any:
    return name


def _json_or(missing: bytes, encode: binary.Encode) -> binary.Encode:
    """For a JSON column: absent and null are its default, never JSON null."""

    opening = _OPENINGS.get(encode)

    def encode_raw(value: msgspec.Raw) -> bytes:
        raw = bytes(value)
        if raw[:1] == opening:
            return binary.jsonb(raw)
        return encode(raw) if raw and raw != b"null" else missing

    return encode_raw


def line_hash(digest: bytes, referred: Iterable[bytes]) -> bytes:
    """What tells a line that says the same of the same rows: the ids that its names stand for may
    be others tomorrow."""
    return sha256(digest + b"".join(referred)).digest()[:DIGEST_BYTES]


def _probe(
    spec: LoadSpec,
) -> tuple[Callable[[bytes], Any], Callable[[Any], tuple[Any, tuple[Name | None, ...], list[Any]]]]:
    """How a line's key, names and children's keys are read out of it, at a fraction of what
    decoding it costs."""
    key = spec.keys[0].columns[0]
    columns = [r.column for r in spec.references]
    fields: list[Any] = [(name, KeyText | None, None) for name in dict.fromkeys([key, *columns])]
    source = spec.children.source if spec.children else ""
    if spec.children:
        child = msgspec.defstruct(
            "ProbedChild", [(n, Any) for n in spec.children.spec.keys[0].columns[1:]], gc=False
        )
        fields.append((source, list[child] | None, None))  # type: ignore[valid-type]
    line = msgspec.defstruct("ProbedLine", fields, gc=False)
    get = attrgetter(key, *columns)
    places = {name: place for place, name in enumerate(columns)}
    within = [(places[r.column], places[r.within]) for r in spec.references if r.within]

    def split(line: Any) -> tuple[Any, tuple[Name | None, ...], list[Any]]:
        key, *names = get(line) if columns else (get(line),)
        if "\0" in "".join(filter(None, (key, *names))):
            raise ValueError("PostgreSQL cannot be asked for that")  # (decoding will refuse it)
        for place, outer in within:
            if names[place] is not None:
                names[place] = (names[outer] or "", names[place])
        return key, tuple(names), (getattr(line, source) or []) if source else []

    return msgspec.json.Decoder(line).decode, split


def _named(error: msgspec.ValidationError, spec: LoadSpec) -> LineError:
    """msgspec's sentence as field, code and message."""
    match = _PATH.fullmatch(str(error))
    message, path = (match[1], match[2] or "") if match else (str(error), "")
    quoted = _QUOTED.search(message)
    cause = error.__cause__.__cause__ if error.__cause__ else None
    if isinstance(cause, LineError):  # what a line says of itself (its __post_init__)
        field_name = ".".join(part for part in (path, cause.field) if part)
        return LineError(cause.code, field_name, cause.message)
    if quoted and message.startswith("Object contains unknown field"):
        place = f"{path}." if path else ""
        allowed = ", ".join(_allowed(spec, path))
        return LineError(
            "unknown_field", echoed(place + quoted[1]), f"Unknown field; allowed: {allowed}"
        )
    if quoted and message.startswith("Object missing required field"):
        place = f"{path}." if path else ""
        return LineError("missing_field", place + quoted[1], "Missing")
    return LineError("invalid_value", path, echoed(message))


def _allowed(spec: LoadSpec, path: str) -> Iterator[str]:
    line = spec.children.spec.line if path and spec.children else spec.line
    return (f.encode_name for f in msgspec.structs.fields(line))
