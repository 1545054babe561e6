"""Lines into rows of binary COPY, a batch at a time. Knows no database: it runs in a thread of its
own, a batch ahead of the one that the database is busy with.

What a line refers to is not known here: its column keeps the name, and `Batch.finish` puts the id
in its place.
"""

import os
import re
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
    Seen,
    refuse,
)
from agentmem_site.bulk.report import Counts
from agentmem_site.bulk.spec import (
    LINE_AT,
    LINE_HASH,
    Column,
    KeyText,
    LineError,
    LoadSpec,
    echoed,
    encoder_of,
    json_array,
    json_object,
    with_written_times,
)
from agentmem_site.bulk.times import Times
from agentmem_site.db.ids import uuid7_among, uuid7_at

_OPENINGS: dict[binary.Encode, bytes] = {json_object: b"{", json_array: b"["}
_PATH = re.compile(r"(.*?)(?: - at `\$\.?(.*)`)?", re.DOTALL)
_QUOTED = re.compile(r"`(.*)`")
_ID_BYTES = slice(4, 20)  # of an encoded uuid, behind its length
# Of a row's parts: its id, and when its line says that it was made. They come first.
_IDENTITY = slice(1, 3)
_START = len(binary.row_header(0))
_PARENT = _START + 20 + 12  # of a child's row: where its parent's id starts, behind its identity
_REST = _PARENT + 20


@dataclass(slots=True)
class Batch:
    """A batch of lines, encoded but for the ids of what they refer to. It can be written again,
    and in pieces."""

    encoder: "Encoder"
    rows: list[Parts]
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

        A row met twice is what it would be if its lines were in two batches: it keeps the place
        of its first line, and the children that its last does not name.
        """
        key_of = self.encoder.key_of
        rows: dict[Any, tuple[int, list[bytes], Children]] = {}
        self.child_duplicates = 0
        for row in self.rows:
            parts = self.encoder.complete(row.parts, known)
            key = key_of(parts)
            below = row.children
            self.child_duplicates += row.repeated
            if key in rows:
                _, first, earlier = rows[key]
                self.encoder.take_place(parts, first)
                self.child_duplicates += len(earlier.keys() & below.keys())
                below = earlier | {
                    name: _handed_to(parts[1], child, earlier.get(name, child))
                    for name, child in below.items()
                }
            rows[key] = row.number, parts, below
        all_below = [child for *_, children in rows.values() for child in children.values()]
        self.row_lines = [number for number, *_ in rows.values()]
        self.child_lines = [number for number, _, children in rows.values() for _ in children]
        return [b"".join(parts) for _, parts, _ in rows.values()], all_below

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

    def reject(self, *errors: LineError) -> None:
        """The lines of `errors` are none of the rows any more."""
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
    """Lines of one spec into rows. `columns` are those of a row, in the order they are copied.

    New rows are in the order of their lines, whoever writes them and whenever: each is made a
    microsecond after that of the line before, from `begun` on, and its id is of that moment.
    """

    def __init__(
        self,
        spec: LoadSpec,
        *,
        keeps_time: bool,
        notes_lines: bool = False,
        times: Times | None = None,
    ) -> None:
        self.spec = spec
        self._times = times or Times()
        self._decoder = msgspec.json.Decoder(spec.line)
        # Of lines whose times msgspec does not read. (Made when the first comes.)
        self._decoder_of_written_times: msgspec.json.Decoder[Any] | None = None
        parent = [spec.parent_column] if spec.parent_column else []
        stamps = ["created_at", "updated_at"] if keeps_time else []
        note = [LINE_HASH] if notes_lines else []
        own = (column.name for column in spec.all_columns)
        self.columns = ("id", LINE_AT, *parent, *own, *stamps, *note)
        self._sources = [column.name for column in spec.all_columns] + stamps
        get = attrgetter(*self._sources)
        self._values = get if len(self._sources) > 1 else lambda line: (get(line),)
        self._encoders = [self._encoder(column) for column in spec.all_columns]
        self._encoders += [(self._times.encoder(name), binary.NULL) for name in stamps]
        # Times that are read and not kept.
        self._passed_over = [
            (name, self._times.encoder(name))
            for name in ("created_at", "updated_at")
            if name in spec.line.__struct_fields__ and not keeps_time
        ]
        self._header = binary.row_header(len(self.columns))
        # A row's parts: the header, then its columns.
        self.place_of = {name: place for place, name in enumerate(self.columns, start=1)}
        self.reference_places = [(self.place_of[r.column], r.column) for r in spec.references]
        self._within = [
            (r.column, self.place_of[r.column], r.within) for r in spec.references if r.within
        ]
        self.key_of = _key_of([[self.place_of[n] for n in key.columns] for key in spec.keys])
        self._note_place = self.place_of.get(LINE_HASH, 0)
        self._made_place = self.place_of.get("created_at", 0)
        self._probe = _probe(spec)
        columns = [reference.column for reference in spec.references]
        self._together = [columns.index(column) for column in spec.together]
        # (An export's runs bear their times, those of a file the load's.)
        below = spec.children and spec.children.spec
        self.children = (
            Encoder(below, keeps_time=keeps_time and spec.keeps_ids, times=self._times)
            if below
            else None
        )
        self.begun = datetime.now(UTC)

    def begun_at(self, moment: datetime) -> Self:
        """The same for the lines of a load that began then."""
        other = copy(self)
        other.begun = moment
        return other

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
        begun_us = binary.microseconds(self.begun)
        random = os.urandom(8 * len(decoded))
        rows = []
        for index, (number, line, offset, digest) in enumerate(decoded):
            at_us = begun_us + number
            chance = int.from_bytes(random[8 * index : 8 * index + 8])
            if self.spec.keeps_ids:
                row_id = binary.uuid(line.id)
            else:
                row_id = binary.data(
                    uuid7_among(at_us, 0, chance) if source else uuid7_at(at_us, chance)
                )
            try:
                parts = self._parts(line, row_id, binary.moment_of(at_us))
                children, repeated = (
                    self._children(getattr(line, source), row_id, at_us) if source else ({}, 0)
                )
            except LineError as error:
                error.line, error.offset = number, offset
                reject(error)
                continue
            if self._note_place:
                parts.append(digest)
            rows.append(Parts(number, offset, parts, children, repeated))
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

    def part_of(self, raw: RawLine, parts: int) -> tuple[bytes, int]:
        """The key of a line not decoded yet, and which of so many workers it is for; any one for a
        line that cannot be decoded.

        All lines of a key are for the same; where lines belong `together`, all of a name are.
        """
        decode, split = self._probe
        try:
            name, names, _ = split(decode(raw.line))  # type: ignore[arg-type]
            key = self._second_key(raw) if name is None else name.encode()
        except (msgspec.MsgspecError, LineError, TypeError, ValueError, RecursionError):
            return b"", 0
        home = next((names[place] for place in self._together if names[place] is not None), None)
        return key, zlib.crc32(key if home is None else home.encode()) % parts  # type: ignore[union-attr]

    def _second_key(self, raw: RawLine) -> bytes:
        line = self._decode(raw.line)
        value = getattr(line, self.spec.keys[-1].columns[0])
        return value if isinstance(value, bytes) else str(value).encode()

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

    def take_place(self, parts: list[bytes], first: Sequence[bytes]) -> None:
        """Makes a row's parts those of the row whose first line gave `first`."""
        parts[_IDENTITY] = first[_IDENTITY]
        if self._made_place and parts[self._made_place] == binary.NULL:
            parts[self._made_place] = first[self._made_place]

    # -- inside ----------------------------------------------------------------------------------

    def _decode(self, line: bytes | LineError) -> Any:
        try:
            if isinstance(line, LineError):
                raise line
            check_line(line)
            try:
                return self._decoder.decode(line)
            except msgspec.ValidationError:
                return self._decode_written_times(line)
        except msgspec.ValidationError as error:
            raise _named(error, self.spec) from error
        except (msgspec.DecodeError, RecursionError) as error:
            raise LineError("malformed_json", "", str(error)) from error

    def _decode_written_times(self, line: bytes) -> Any:
        if self._decoder_of_written_times is None:
            self._decoder_of_written_times = msgspec.json.Decoder(with_written_times(self.spec))
        return self._decoder_of_written_times.decode(line)

    def _parts(self, line: Any, row_id: bytes, made_at: bytes, *parent: bytes) -> list[Any]:
        """The header and the encoded columns; references stay names. Raises: LineError."""
        values = self._values(line)
        try:
            parts: list[Any] = [
                default if value is None else encode(value)
                for (encode, default), value in zip(self._encoders, values, strict=True)
            ]
        except Exception as error:
            raise self._fault(values) from error
        for name, encode in self._passed_over:
            if (given := getattr(line, name)) is not None:
                self._check_passed_over(name, given, encode)
        parts[:0] = (self._header, row_id, made_at, *parent)
        for column, place, outer in self._within:
            if parts[place] is not None:
                if getattr(line, outer) is None:
                    raise LineError("missing_field", outer, f"Needed to find {column}")
                parts[place] = (getattr(line, outer), parts[place])
        return parts

    def _check_passed_over(self, name: str, given: Any, encode: Callable[[Any], bytes]) -> None:
        """It has to be a time all the same. Raises: LineError."""
        try:
            encode(given)
        except ValueError as error:
            raise LineError("invalid_value", name, str(error)) from error
        self._times.notices.add(
            f"{name} of the lines is not kept: rows get the time of the load. "
            "--preserve-timestamps keeps it."
        )

    def _children(self, lines: Sequence[Any], parent: bytes, at_us: int) -> tuple[Children, int]:
        """The rows of the lines within a line, the last of each key; how many that leaves out."""
        encoder = self.children
        rows: Children = {}
        if encoder is None:
            return rows, 0
        made_at, random = binary.moment_of(at_us), os.urandom(8 * len(lines))
        for position, line in enumerate(lines):
            if encoder.spec.keeps_ids:
                row_id = binary.uuid(line.id)
            else:
                chance = int.from_bytes(random[8 * position : 8 * position + 8])
                row_id = binary.data(uuid7_among(at_us, position + 1, chance))
            try:
                parts = encoder._parts(line, row_id, made_at, parent)
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
        is_time = field.get_internal_type() == "DateTimeField"
        own = self._times.encoder(column.name) if is_time else column.encode
        encode, default = own or encoder_of(field), field.get_default()
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


def _handed_to(parent: bytes, row: bytes, first: bytes) -> bytes:
    """A child's row under another parent, with the identity of `first`, a row of its key."""
    return row[:_START] + first[_START:_PARENT] + parent + row[_REST:]


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
