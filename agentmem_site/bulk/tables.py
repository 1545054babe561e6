"""Tables (CSV, Parquet) as lines of JSON: a row is a line, an empty cell an absent field."""

import csv
import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import IO, Any

import msgspec

from agentmem_site.bulk.packing import BLOCK_BYTES, Input, UnreadableFile
from agentmem_site.bulk.spec import LineError

TEXT = "text"
JSON = "json"
EITHER = "either"  # a moment, a vector: JSON where it is a number or an array, text otherwise

# At once: as values of Python they take many times the room.
PARQUET_ROWS = 250
PARQUET_BYTES = 4 * 1024 * 1024
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_TEXTUAL = (
    msgspec.inspect.StrType,
    msgspec.inspect.DateTimeType,
    msgspec.inspect.UUIDType,
    msgspec.inspect.EnumType,
    msgspec.inspect.CustomType,
)
_INSTALL = "pip install -r requirements-parquet.txt"

Numbered = tuple[int, bytes | LineError, int]
Column = tuple[str, str]  # field, kind
_encoder = msgspec.json.Encoder(
    decimal_format="number",
    enc_hook=lambda value: value.tolist(),  # numpy's numbers and arrays
)
_raw = msgspec.json.Decoder(msgspec.Raw)


def csv_kinds(line: type[msgspec.Struct]) -> dict[str, str]:
    """Field -> what a cell of it is: text, JSON, or either."""
    return {
        field.encode_name: _kind(field.type)
        for field in msgspec.inspect.type_info(line).fields  # type: ignore[attr-defined]
    }


def row_line(row: Any) -> bytes:
    """A row as a line of JSON. Raises: LineError."""
    try:
        line = _encoder.encode(row)
    except UnicodeEncodeError as error:
        raise LineError("lone_surrogate", "", "Half of a surrogate pair") from error
    except (TypeError, ValueError, OverflowError, AttributeError, RecursionError) as error:
        raise LineError("invalid_value", "", f"The row is no JSON: {error}") from error
    # NaN and infinity become null on the way.
    if b"null" in line and not _is_finite(row):
        raise LineError("not_finite", "", "NaN and Infinity are not JSON")
    return line


class CsvRows:
    """Records of CSV with a header. A record's number is that of the line on which it starts."""

    def __init__(
        self,
        lines: Iterator[Numbered],
        *,
        name: str,
        fields: Mapping[str, str] | None,
        ignore_unknown: bool,
        max_line_bytes: int,
    ) -> None:
        self._lines = lines
        self._name = name
        self._fields = fields
        self._ignore_unknown = ignore_unknown
        self._max_line_bytes = max_line_bytes
        # Of the record that is being read.
        self._start: tuple[int, int] | None = None
        self._bytes = 0
        self._fault: LineError | None = None

    def __iter__(self) -> Iterator[Numbered]:
        # (Of the whole process; nothing else of it reads CSV.)
        csv.field_size_limit(max(csv.field_size_limit(), self._max_line_bytes))
        records = csv.reader(self._physical_lines(), strict=True)
        columns: list[Column] = []
        while True:
            self._start, self._bytes, self._fault = None, 0, None
            cells: list[str] = []
            try:
                cells = next(records)
            except StopIteration:
                return
            except csv.Error as error:
                self._fault = self._fault or _fault(error, self._max_line_bytes)
            if self._start is None or not (self._fault or "".join(cells).strip()):
                continue  # a blank line
            number, offset = self._start
            if not columns:
                if self._fault:
                    raise UnreadableFile(f"{self._name}: its header: {self._fault.message}.")
                columns = columns_of(self._name, cells, self._fields, self._ignore_unknown)
                continue
            try:
                if self._fault is None and self._bytes > self._max_line_bytes:
                    self._fault = too_long(self._max_line_bytes)
                if self._fault is not None:
                    raise self._fault
                line: bytes | LineError = self._line(cells, columns)
            except LineError as error:
                error.line = number
                line = error
            yield number, line, offset

    def _physical_lines(self) -> Iterator[str]:
        for number, line, offset in self._lines:
            if self._start is None:
                self._start = number, offset
            if isinstance(line, LineError):
                self._fault = self._fault or line
                yield "\n"
                continue
            self._bytes += len(line) + 1
            try:
                yield line.decode() + "\n"
            except UnicodeDecodeError as error:
                self._fault = self._fault or LineError(
                    "invalid_utf8", "", f"Invalid UTF-8 at byte {error.start} of the line"
                )
                yield line.decode(errors="replace") + "\n"

    def _line(self, cells: list[str], columns: list[Column]) -> bytes:
        if len(cells) != len(columns):
            count = f"{len(cells)} cells; the header has {len(columns)}"
            raise LineError("malformed_csv", "", count)
        row = {
            name: cell if kind == TEXT else _cell(cell, name, kind)
            for cell, (name, kind) in zip(cells, columns, strict=True)
            if cell and name
        }
        return row_line(row)


class ParquetRows:
    """Rows of Parquet, numbered from 1. A null is an absent field, in a struct too."""

    def __init__(
        self,
        found: Input,
        stack: ExitStack,
        *,
        fields: Mapping[str, str] | None,
        ignore_unknown: bool,
        max_line_bytes: int,
    ) -> None:
        try:
            import pyarrow  # noqa: PLC0415  (165 MB that few need)
            import pyarrow.parquet  # noqa: PLC0415
        except ImportError as error:
            raise UnreadableFile(f"{found.name} is Parquet, which needs: {_INSTALL}") from error
        self._pyarrow = pyarrow
        self._name = found.name
        self._max_line_bytes = max_line_bytes
        try:
            # (Read in pieces: a group of rows may be larger than memory.)
            self._file = stack.enter_context(
                pyarrow.parquet.ParquetFile(
                    stack.enter_context(_whole(found)), pre_buffer=False, buffer_size=BLOCK_BYTES
                )
            )
        except (pyarrow.ArrowException, OSError) as error:
            raise UnreadableFile(f"{found.name} is no Parquet that can be read: {error}") from error
        names = list(self._file.schema_arrow.names)
        self._columns = columns_of(found.name, names, fields, ignore_unknown)
        self.rows_read = 0
        self.rows = self._file.metadata.num_rows

    def __iter__(self) -> Iterator[Numbered]:
        metadata = self._file.metadata
        groups = map(metadata.row_group, range(metadata.num_row_groups))
        bytes_each = sum(group.total_byte_size for group in groups) // max(self.rows, 1) + 1
        number = 0
        try:
            for batch in self._file.iter_batches(
                batch_size=min(max(PARQUET_BYTES // bytes_each, 1), PARQUET_ROWS),
                columns=[name for name, _ in self._columns if name],
                use_threads=False,
            ):
                for line in self._lines(batch):
                    number += 1
                    self.rows_read = number
                    if isinstance(line, LineError):
                        line.line = number
                    yield number, line, 0
        except (self._pyarrow.ArrowException, OSError) as error:
            raise UnreadableFile(
                f"{self._name} is damaged: {error} (The last whole row is row {number:,}.)"
            ) from error

    def _lines(self, batch: Any) -> Iterator[bytes | LineError]:
        try:
            rows = self._dicts(batch)
        except (ValueError, OverflowError, KeyError) as error:
            if batch.num_rows > 1:  # which of them?
                for at in range(batch.num_rows):
                    yield from self._lines(batch.slice(at, 1))
            else:
                yield LineError("invalid_value", "", str(error))
            return
        for row in rows:
            try:
                for name, kind in self._columns:
                    if kind != TEXT and isinstance(row.get(name), str):
                        row[name] = _cell(row[name], name, kind)
                line = row_line(row)
                if len(line) > self._max_line_bytes:
                    raise too_long(self._max_line_bytes)
                yield line
            except LineError as error:
                yield error

    def _dicts(self, batch: Any) -> list[dict[str, Any]]:
        names = batch.schema.names
        columns = [self._values(column) for column in batch.columns]
        return [
            {name: value for name, value in zip(names, values, strict=True) if value is not None}
            for values in zip(*columns, strict=True)
        ]

    def _values(self, column: Any) -> list[Any]:
        types = self._pyarrow.types
        plain = self._plain(column.type)
        if plain != column.type:
            column = column.cast(plain, safe=False)
        is_list = types.is_list(plain) or types.is_large_list(plain)
        if is_list and types.is_floating(plain.value_type):
            floats = column.flatten()
            if not floats.null_count:
                return _vectors(column, floats.to_numpy(zero_copy_only=False))
        values = column.to_pylist(maps_as_pydicts="strict")
        return _without_nulls(values) if "struct<" in str(plain) else values

    def _plain(self, type_: Any) -> Any:
        """The type that Python has a value of: no nanoseconds, no half floats; text is text."""
        arrow, types = self._pyarrow, self._pyarrow.types
        if types.is_dictionary(type_):
            return self._plain(type_.value_type)
        if types.is_timestamp(type_) and type_.unit == "ns":
            return arrow.timestamp("us", type_.tz)
        if types.is_float16(type_):
            return arrow.float32()
        if types.is_binary(type_) or types.is_large_binary(type_):
            return arrow.large_string()
        if types.is_struct(type_):
            return arrow.struct([field.with_type(self._plain(field.type)) for field in type_])
        if types.is_fixed_size_list(type_) or types.is_list(type_):
            return arrow.list_(self._plain(type_.value_type))
        if types.is_large_list(type_):
            return arrow.large_list(self._plain(type_.value_type))
        return type_


def columns_of(
    name: str, header: list[str], fields: Mapping[str, str] | None, ignore_unknown: bool
) -> list[Column]:
    """The field and the kind of each column, "" for one left out. Raises: UnreadableFile."""
    for place, field in enumerate(header, start=1):
        if not field:
            raise UnreadableFile(f"{name}: column {place} of its header has no name.")
        if field in header[: place - 1]:
            raise UnreadableFile(f"{name}: its header has the column {field[:80]!r} twice.")
        if fields is not None and field not in fields and not ignore_unknown:
            raise UnreadableFile(
                f"{name}: there is no field {field[:80]!r} of its header; allowed, with commas "
                f"between them: {', '.join(fields)}. (--ignore-unknown leaves other columns out.)"
            )
    if fields is None:
        return [(field, TEXT) for field in header]
    return [(field, fields[field]) if field in fields else ("", TEXT) for field in header]


def too_long(max_line_bytes: int, *, line: int = 0) -> LineError:
    message = f"Over {max_line_bytes:,} bytes; --max-line allows longer lines"
    return LineError("line_too_long", "", message, line=line)


def _kind(type_: Any) -> str:
    parts = type_.types if isinstance(type_, msgspec.inspect.UnionType) else (type_,)
    kinds = {
        TEXT if isinstance(part, _TEXTUAL) else JSON
        for part in parts
        if not isinstance(part, msgspec.inspect.NoneType)
    }
    return kinds.pop() if len(kinds) == 1 else EITHER


def _cell(cell: str, name: str, kind: str) -> Any:
    """The text of a cell that is JSON, or may be. Raises: LineError."""
    if kind == EITHER and not (cell.startswith("[") or _NUMBER.fullmatch(cell)):
        return cell
    try:
        return _raw.decode(cell)
    except msgspec.DecodeError as error:
        raise LineError("malformed_json", name, f"Expected JSON: {error}") from error
    except UnicodeEncodeError as error:
        raise LineError("lone_surrogate", name, "Half of a surrogate pair") from error


def _fault(error: csv.Error, max_line_bytes: int) -> LineError:
    if "field larger than" in str(error):  # a quote that nothing closes takes in line after line
        fault = too_long(max_line_bytes)
        fault.message += "; or a quote is not closed"
        return fault
    return LineError("malformed_csv", "", str(error).capitalize())


def _is_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list | tuple | set):
        return all(map(_is_finite, value))
    if isinstance(value, str | bytes | msgspec.Raw) or not hasattr(value, "tolist"):
        return True
    return _is_finite(value.tolist())


def _whole(found: Input) -> IO[bytes]:
    """A file that can be read at any place (Parquet's table of contents stands at its end)."""
    if (file := found.reopened()) is not None:
        return file
    spooled = tempfile.TemporaryFile()  # noqa: SIM115  (the caller closes it)
    for block in found.blocks():
        spooled.write(block)
    spooled.seek(0)
    return spooled


def _vectors(column: Any, floats: Any) -> list[Any]:
    """Lists of numbers, at the speed of numpy."""
    vectors, at = [], 0
    for length in column.value_lengths().to_pylist():
        vectors.append(None if length is None else floats[at : at + length].tolist())
        at += length or 0
    return vectors


def _without_nulls(value: Any) -> Any:
    """(Every row of a struct has all of its fields.)"""
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
