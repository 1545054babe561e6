"""Encodes lines as rows of binary COPY, one batch at a time. Uses no database: it runs in a
separate thread, one batch ahead of the database.

The ids of what lines refer to are not known here. Reference columns hold names, which
`Batch.finish` replaces with ids.
"""

import math
import os
import re
import struct
import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from operator import attrgetter, itemgetter
from typing import Any, Self
from uuid import UUID

import msgspec

from agentmem_site.bulk import binary
from agentmem_site.bulk.checks import check_line
from agentmem_site.bulk.columns import NUMBER, kinds_of, nearest
from agentmem_site.bulk.explaining import explained
from agentmem_site.bulk.lines import (
    DIGEST_BYTES,
    START,
    Children,
    DecodedLine,
    Known,
    Mark,
    Name,
    Parts,
    Probe,
    RawLine,
    Reject,
    Row,
    UnchangedLine,
    refuse,
)
from agentmem_site.bulk.report import Counts
from agentmem_site.bulk.spec import (
    LINE_AT,
    LINE_HASH,
    Column,
    LineError,
    LoadSpec,
    echoed,
    encoder_of,
    json_array,
    json_object,
    lenient,
)
from agentmem_site.bulk.times import Times
from agentmem_site.db.fields import KeyField
from agentmem_site.db.ids import uuid7_among, uuid7_at
from agentmem_site.db.keys import KeyFault, key_of

_OPENINGS: dict[binary.Encode, bytes] = {json_object: b"{", json_array: b"["}
_PATH = re.compile(r"(.*?)(?: - at `\$\.?(.*)`)?", re.DOTALL)
_NOT_KEPT = (
    "{} of the lines is not kept: rows get the time of the load. --preserve-timestamps keeps it."
)
_QUOTED = re.compile(r"`(.*)`")
_ID_BYTES = slice(4, 20)  # of an encoded uuid, behind its length
# The first columns among a row's parts: `id` and `line_at`.
_IDENTITY = slice(1, 3)
_START = len(binary.row_header(0))
_PARENT = _START + 20 + 12  # where the parent's id starts in a child's row, after these two
_REST = _PARENT + 20


@dataclass(slots=True)
class Batch:
    """A batch of lines, encoded except for the ids of what they refer to. It can be written
    repeatedly, and in pieces."""

    encoder: "Encoder"
    rows: list[Parts]
    end: Mark = START  # the checkpoint once it is stored
    rejected: list[LineError] = field(default_factory=list)
    unchanged: list[UnchangedLine] = field(default_factory=list)
    # The line numbers of the rows that `finish` returned.
    row_lines: list[int] = field(default_factory=list)
    child_lines: list[int] = field(default_factory=list)
    child_duplicates: int = 0

    @property
    def read(self) -> int:
        return len(self.rows) + len(self.rejected) + len(self.unchanged)

    @property
    def unchanged_children(self) -> Counts:
        """The counts of the children of unchanged lines."""
        return Counts(
            unchanged=sum(line.children for line in self.unchanged),
            duplicates=sum(line.repeated for line in self.unchanged),
        )

    def wanted(self, column: str) -> dict[Name, int]:
        """The names in a reference column, each with the number of the first line that has it."""
        place = self.encoder.place_of[column]
        names: dict[Name, int] = {}
        for row in self.rows:
            if (name := row.parts[place]) is not None:
                names.setdefault(name, row.number)
        return names

    def has_names(self, column: str) -> bool:
        """Whether a line refers to a row by this column."""
        place = self.encoder.place_of[column]
        return any(row.parts[place] is not None for row in self.rows)

    def named(self) -> Iterator[tuple[int, str, Name]]:
        """(line, column, name) of everything that the lines refer to."""
        for row in self.rows:
            for place, column in self.encoder.reference_places:
                if row.parts[place] is not None:
                    yield row.number, column, row.parts[place]

    def finish(self, known: Known) -> tuple[list[bytes], list[bytes]]:
        """The rows and their children's rows, the last of each key. Every name must be in `known`.

        Two lines with the same key have the same result as in two batches: the row keeps the
        identity of the first, and the children that the last one does not have.
        """
        key_of = self.encoder.key_of
        rows: dict[Any, tuple[int, list[bytes], Children]] = {}
        self.child_duplicates = 0
        for row in self.rows:
            parts = self.encoder.complete(row.parts, known)
            key = key_of(parts)
            children = row.children
            self.child_duplicates += row.repeated
            if key in rows:
                _, first, earlier = rows[key]
                self.encoder.keep_identity(parts, first)
                self.child_duplicates += len(earlier.keys() & children.keys())
                children = earlier | {
                    name: _moved_to(parts[1], child, earlier.get(name, child))
                    for name, child in children.items()
                }
            rows[key] = row.number, parts, children
        all_children = [child for *_, children in rows.values() for child in children.values()]
        self.row_lines = [number for number, *_ in rows.values()]
        self.child_lines = [number for number, _, children in rows.values() for _ in children]
        return [b"".join(parts) for _, parts, _ in rows.values()], all_children

    def finish_each(self, known: Known, *, without: Container[int]) -> Iterator[Row]:
        """A row per line, in order, except for the lines in `without`. Every name of the others
        must be in `known`, and the spec must have no children."""
        for row in self.rows:
            if row.number not in without:
                parts = self.encoder.complete(row.parts, known)
                row_id = UUID(bytes=parts[1][_ID_BYTES])
                yield Row(row.number, row_id, self.encoder.key_of(parts), b"".join(parts))

    def cut(self, size: int) -> "list[Batch]":
        """Two batches: the first `size` rows, and the rest. Both have rows. Stored in this order,
        they have the same result as the whole batch."""
        first, rest = self.rows[:size], self.rows[size:]
        last = first[-1].number
        middle = self.end._replace(line=last, checked_line=0, digest=b"")
        early = [error for error in self.rejected if error.line <= last]
        late = [error for error in self.rejected if error.line > last]
        unchanged = [line for line in self.unchanged if line.number <= last]
        unchanged_later = [line for line in self.unchanged if line.number > last]
        return [
            replace(self, rows=first, end=middle, rejected=early, unchanged=unchanged),
            replace(self, rows=rest, rejected=late, unchanged=unchanged_later),
        ]

    def reject(self, *errors: LineError) -> None:
        """Moves the lines of `errors` from the rows to the rejects."""
        by_line = {error.line: error for error in errors}
        kept = []
        for row in self.rows:
            if row.number in by_line:
                by_line[row.number].offset = row.offset
            else:
                kept.append(row)
        self.rows = kept
        self.rejected += [error.bare() for error in errors]


class Encoder:
    """Encodes lines of one spec as rows. `columns` are in the order in which they are copied.

    New rows are in the order of their lines, whichever worker writes them. Each is created a
    microsecond after the row of the previous line, from `started` on, and its id has that time.
    """

    def __init__(
        self,
        spec: LoadSpec,
        *,
        keeps_time: bool,
        keeps_line_hash: bool = False,
        times: Times | None = None,
    ) -> None:
        self.spec = spec
        self._times = times or Times()
        self._decoder = msgspec.json.Decoder(spec.line)
        # For lines that msgspec refuses. (Created when the first comes.)
        self._second_decoder: msgspec.json.Decoder[Any] | None = None
        self._floats = [name for name, kind in kinds_of(spec.line).items() if kind == NUMBER]
        parent = [spec.parent_column] if spec.parent_column else []
        stamps = ["created_at", "updated_at"] if keeps_time else []
        line_hash = [LINE_HASH] if keeps_line_hash else []
        own = (column.name for column in spec.all_columns)
        self.columns = ("id", LINE_AT, *parent, *own, *stamps, *line_hash)
        self._sources = [column.name for column in spec.all_columns] + stamps
        get = attrgetter(*self._sources)
        self._values = get if len(self._sources) > 1 else lambda line: (get(line),)
        self._encoders = [self._encoder(column) for column in spec.all_columns]
        self._encoders += [(self._times.encoder(name), binary.NULL) for name in stamps]
        # Times that are checked and not kept.
        self._ignored_times = [
            (name, self._times.encoder(name), _NOT_KEPT.format(name))
            for name in ("created_at", "updated_at")
            if name in spec.line.__struct_fields__ and not keeps_time
        ]
        self._header = binary.row_header(len(self.columns))
        # A row's parts: the header, then its columns.
        self.place_of = {name: place for place, name in enumerate(self.columns, start=1)}
        self.reference_places = [(self.place_of[r.column], r.column) for r in spec.references]
        self._within = [
            (r.column, self.place_of[r.column], r.within, self.place_of[r.within])
            for r in spec.references
            if r.within
        ]
        self.key_of = _key_of([[self.place_of[n] for n in key.columns] for key in spec.keys])
        self._line_hash_place = self.place_of.get(LINE_HASH, 0)
        self._created_at_place = self.place_of.get("created_at", 0)
        self._probe = _probe(spec)
        columns = [reference.column for reference in spec.references]
        self._grouped_by = [columns.index(column) for column in spec.grouped_by]
        # (Only an export's runs have timestamps; those of a file get the load's.)
        child_spec = spec.children and spec.children.spec
        self.children = (
            Encoder(child_spec, keeps_time=keeps_time and spec.keeps_ids, times=self._times)
            if child_spec
            else None
        )
        self.started = datetime.now(UTC)

    def started_at(self, moment: datetime) -> Self:
        """A copy for the lines of a load that started at that time."""
        other = copy(self)
        other.started = moment
        return other

    def decode(self, lines: Iterable[RawLine], reject: Reject = refuse) -> list[DecodedLine]:
        """The lines as instances of the spec's line. Bad ones go to `reject`, which may raise."""
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
        """The batch of these lines. Bad ones go to `reject`."""
        source = self.spec.children.source if self.spec.children else ""
        started_us = binary.microseconds(self.started)
        chances = _random_numbers(4 * len(decoded) if source else len(decoded))
        rows = []
        for number, line, offset, digest in decoded:
            at_us = started_us + number
            if self.spec.keeps_ids:
                row_id = binary.uuid(line.id)
            else:
                chance = next(chances)
                row_id = binary.data(
                    uuid7_among(at_us, 0, chance) if source else uuid7_at(at_us, chance)
                )
            try:
                parts = self._parts(line, row_id, binary.moment_of(at_us))
                children, repeated = (
                    self._children(getattr(line, source), row_id, at_us, chances)
                    if source
                    else ({}, 0)
                )
            except LineError as error:
                error.line, error.offset = number, offset
                reject(error)
                continue
            if self._line_hash_place:
                parts.append(digest)
            rows.append(Parts(number, offset, parts, children, repeated))
        return Batch(self, rows)

    def probes(self, lines: Sequence[RawLine]) -> tuple[list[Probe], list[RawLine]]:
        """Probes for lines that can be looked up by their key; and the lines that must be decoded.

        (These include all lines of a key that occurs twice: their children are combined.)
        """
        decode, split = self._probe
        by_key: dict[str, Probe] = {}
        repeated: set[str] = set()
        others = []
        for raw in lines:
            try:
                key, names, children = split(decode(raw.line))  # type: ignore[arg-type]
                different = len(set(map(msgspec.structs.astuple, children))) if children else 0
            except (msgspec.MsgspecError, TypeError, ValueError, RecursionError):
                key = None
            if key is None:
                others.append(raw)
            elif key in by_key:
                repeated.add(key)
                others.append(raw)
            else:
                by_key[key] = Probe(raw, key, names, different, len(children) - different)
        others += [by_key.pop(key).raw for key in repeated]
        return list(by_key.values()), sorted(others)

    def part_of(self, raw: RawLine, parts: int) -> tuple[bytes, int]:
        """The key of a line that is not decoded yet, and the index of its worker among `parts`.

        Lines with the same key, or with the same name in `grouped_by`, go to the same worker. A
        line that cannot be decoded goes to the first.
        """
        decode, split = self._probe
        try:
            name, names, _ = split(decode(raw.line))  # type: ignore[arg-type]
            key = self._second_key(raw) if name is None else name.encode()
        except (msgspec.MsgspecError, LineError, TypeError, ValueError, RecursionError):
            return b"", 0
        group = next((names[i] for i in self._grouped_by if names[i] is not None), None)
        return key, zlib.crc32(key if group is None else group.encode()) % parts  # type: ignore[union-attr]

    def _second_key(self, raw: RawLine) -> bytes:
        line = self._decode(raw.line)
        value = getattr(line, self.spec.keys[-1].columns[0])
        return value if isinstance(value, bytes) else str(value).encode()

    def complete(self, parts: list[Any], known: Known) -> list[bytes]:
        """The parts with ids instead of names."""
        parts = parts.copy()
        for place, column in self.reference_places:
            name = parts[place]
            parts[place] = binary.NULL if name is None else known[column][name]
        if self._line_hash_place:
            digest = parts[self._line_hash_place]
            referred = [parts[place] for place, _ in self.reference_places]
            parts[self._line_hash_place] = binary.data(line_hash(digest, referred))
        return parts

    def keep_identity(self, parts: list[bytes], first: Sequence[bytes]) -> None:
        """Gives a row the id and creation time of `first`, the row of its key's first line."""
        parts[_IDENTITY] = first[_IDENTITY]
        if self._created_at_place and parts[self._created_at_place] == binary.NULL:
            parts[self._created_at_place] = first[self._created_at_place]

    # -- inside ----------------------------------------------------------------------------------

    def _decode(self, line: bytes | LineError) -> Any:
        try:
            if isinstance(line, LineError):
                raise line
            check_line(line)
            try:
                return self._decoder.decode(line)
            except msgspec.ValidationError:
                return self._decode_again(line)
        except msgspec.ValidationError as error:
            raise _named(error, self.spec, line) from error
        except (msgspec.DecodeError, RecursionError) as error:
            raise LineError("malformed_json", "", str(error)) from error

    def _decode_again(self, line: bytes) -> Any:
        """A line whose times or keys msgspec does not read, or whose numbers are in quotes."""
        if self._second_decoder is None:
            self._second_decoder = msgspec.json.Decoder(lenient(self.spec), strict=False)
        decoded = self._second_decoder.decode(line)
        for name in self._floats:  # ("nan" is one in quotes)
            if (value := getattr(decoded, name)) is not None and not math.isfinite(value):
                raise LineError("not_finite", name, "NaN and Infinity are not JSON")
        return decoded

    def _parts(self, line: Any, row_id: bytes, created_at: bytes, *parent: bytes) -> list[Any]:
        """The header and the encoded columns; references stay names. Raises: LineError."""
        values = self._values(line)
        try:
            parts: list[Any] = [
                default if value is None else encode(value)
                for (encode, default), value in zip(self._encoders, values, strict=True)
            ]
        except Exception as error:
            raise self._fault(values) from error
        for name, encode, notice in self._ignored_times:
            if (given := getattr(line, name)) is not None:
                try:
                    encode(given)
                except ValueError as error:
                    raise LineError("invalid_value", name, str(error)) from error
                self._times.notices.add(notice)
        parts[:0] = (self._header, row_id, created_at, *parent)
        for column, place, outer, outer_place in self._within:
            if parts[place] is not None:
                if parts[outer_place] is None:
                    raise LineError("missing_field", outer, f"Needed to find {column}")
                parts[place] = (parts[outer_place], parts[place])
        return parts

    def _children(
        self, lines: Sequence[Any], parent: bytes, at_us: int, chances: Iterator[int]
    ) -> tuple[Children, int]:
        """The rows of a line's children, the last of each key; the number of repeated keys."""
        encoder = self.children
        rows: Children = {}
        if encoder is None:
            return rows, 0
        created_at = binary.moment_of(at_us)
        for position, line in enumerate(lines):
            if encoder.spec.keeps_ids:
                row_id = binary.uuid(line.id)
            else:
                row_id = binary.data(uuid7_among(at_us, position + 1, next(chances)))
            try:
                parts = encoder._parts(line, row_id, created_at, parent)
            except LineError as error:
                error.field = f"{self.spec.children.source}[{position}].{error.field}"  # type: ignore[union-attr]
                raise
            rows[encoder.key_of(parts)[1:]] = b"".join(parts)  # (the parent comes first)
        return rows, len(lines) - len(rows)

    def _encoder(self, column: Column) -> tuple[Callable[[Any], Any], bytes | None]:
        """The encoding of a column's values, and the encoded default for missing ones."""
        if any(column.name == reference.column for reference in self.spec.references):
            return str if self.spec.keeps_ids else key_of, None
        fields = self.spec.model._meta.concrete_fields
        field = next(f for f in fields if f.column == column.name)
        if isinstance(field, KeyField):
            return encoder_of(field, is_export=self.spec.keeps_ids), binary.NULL
        is_time = field.get_internal_type() == "DateTimeField"
        own = self._times.encoder(column.name) if is_time else column.encode
        encode, default = (
            own or encoder_of(field, is_export=self.spec.keeps_ids),
            field.get_default(),
        )
        if field.get_internal_type() == "JSONField":
            missing = binary.NULL if default is None else encode(msgspec.json.encode(default))
            return _json_or(missing, encode), missing
        return encode, binary.NULL if default is None else encode(default)

    def _fault(self, values: Iterable[Any]) -> LineError:
        """The first column that cannot be encoded. (The fast path does not know which it was.)"""
        for source, (encode, _), value in zip(self._sources, self._encoders, values, strict=True):
            try:
                if value is not None:
                    encode(value)
            except Exception as error:
                code = error.code if isinstance(error, KeyFault) else "invalid_value"
                return LineError(code, source, str(error))
        return LineError("invalid_value", "", "The line cannot be encoded")


def _random_numbers(at_once: int) -> Iterator[int]:
    """Of 64 bits. (urandom releases the interpreter lock, so it is not called for each row.)"""
    draw = struct.Struct(f"<{max(at_once, 1)}Q")
    while True:
        yield from draw.unpack(os.urandom(draw.size))


def _key_of(keys: list[list[int]]) -> Callable[[Sequence[Any]], Any]:
    """A function from a row's parts to its key: the first one whose first column it fills."""
    first, *others = [itemgetter(*places) for places in keys]
    if not others:
        return first
    lead = keys[0][0]
    rest = _key_of(keys[1:])
    return lambda parts: rest(parts) if parts[lead] == binary.NULL else first(parts)


def _moved_to(parent: bytes, row: bytes, first: bytes) -> bytes:
    """A child's row with another parent, and the id and creation time of `first`."""
    return row[:_START] + first[_START:_PARENT] + parent + row[_REST:]


def _json_or(missing: bytes, encode: binary.Encode) -> binary.Encode:
    """Encodes a JSON column. Absent values and null become its default, never JSON null."""
    opening = _OPENINGS.get(encode)

    def encode_raw(value: msgspec.Raw) -> bytes:
        raw = bytes(value)
        if raw[:1] == opening:
            return binary.jsonb(raw)
        return encode(raw) if raw and raw != b"null" else missing

    return encode_raw


def line_hash(digest: bytes, referred: Iterable[bytes]) -> bytes:
    """Equal for equal lines that refer to the same rows. A name may refer to another row later."""
    return sha256(digest + b"".join(referred)).digest()[:DIGEST_BYTES]


def _probe(
    spec: LoadSpec,
) -> tuple[Callable[[bytes], Any], Callable[[Any], tuple[Any, tuple[Name | None, ...], list[Any]]]]:
    """Functions that read a line's key, names and children's keys, at a fraction of the cost of
    decoding it."""
    key = spec.keys[0].columns[0]
    columns = [r.column for r in spec.references]
    fields: list[Any] = [(name, Any, None) for name in dict.fromkeys([key, *columns])]
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
        below = (getattr(line, source) or []) if source else []
        if not _is_clean((key, *names)):  # (what is no key, decoding will refuse)
            key, *names = (None if n is None else key_of(n) for n in (key, *names))
        if below and not _is_clean(n for child in below for n in msgspec.structs.astuple(child)):
            raise ValueError("Two children may have one key, written in two ways")
        for place, outer in within:
            if names[place] is not None:
                names[place] = (names[outer] or "", names[place])
        return key, tuple(names), below

    return msgspec.json.Decoder(line).decode, split


def _is_clean(keys: Iterable[Any]) -> bool:
    """Whether `key_of` would certainly leave these keys as they are, but for their length."""
    try:
        text = "".join([key for key in keys if key is not None])
    except TypeError:
        return False
    return text.isprintable() and " " not in text


def _named(error: msgspec.ValidationError, spec: LoadSpec, line: Any) -> LineError:
    """The LineError for msgspec's error."""
    match = _PATH.fullmatch(str(error))
    message, path = (match[1], match[2] or "") if match else (str(error), "")
    quoted = _QUOTED.search(message)
    cause = error.__cause__.__cause__ if error.__cause__ else None
    if isinstance(cause, LineError):  # raised by the line's __post_init__
        field_name = ".".join(part for part in (path, cause.field) if part)
        return LineError(cause.code, field_name, cause.message)
    if quoted and message.startswith("Object contains unknown field"):
        place = f"{path}." if path else ""
        fields = list(_allowed(spec, path))
        close = nearest(quoted[1], fields)
        meant, allowed = f" (do you mean {close}?)" if close else "", ", ".join(fields)
        return LineError(
            "unknown_field", echoed(place + quoted[1]), f"Unknown field{meant}; allowed: {allowed}"
        )
    if quoted and message.startswith("Object missing required field"):
        place = f"{path}." if path else ""
        return LineError("missing_field", place + quoted[1], "Missing")
    return LineError("invalid_value", path, echoed(explained(message, path, line, spec.line)))


def _allowed(spec: LoadSpec, path: str) -> Iterator[str]:
    line = spec.children.spec.line if path and spec.children else spec.line
    return (f.encode_name for f in msgspec.structs.fields(line))
