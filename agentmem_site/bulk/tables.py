"""Tables (CSV, Parquet) as lines of JSON: a row is a line, an empty cell an absent field."""

import csv
import math
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from typing import IO, Any
from uuid import UUID

import msgspec

from agentmem_site.bulk.columns import (
    ABSENT,
    EITHER,
    NOTHING,
    ROW_NUMBER,
    Cells,
    Column,
    columns_of,
    plain,
)
from agentmem_site.bulk.encoding import hint
from agentmem_site.bulk.mapping import put
from agentmem_site.bulk.packing import BLOCK_BYTES, Input, UnreadableFile
from agentmem_site.bulk.reading import DELIMITERS, ReadOptions
from agentmem_site.bulk.spec import LineError

# At once: as values of Python they take many times the room.
PARQUET_ROWS = 250
PARQUET_BYTES = 4 * 1024 * 1024
_INSTALL = "pip install -r requirements-parquet.txt"
_SEPARATOR_LINE = re.compile(
    rb'"?sep=([^"\s]|\t)"?\s*', re.IGNORECASE
)  # Excel's, before the header
_UUID_BYTES = 16

Numbered = tuple[int, bytes | LineError, int]
_encoder = msgspec.json.Encoder(
    decimal_format="number",
    enc_hook=lambda value: value.tolist(),  # numpy's numbers and arrays
)


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

    def __init__(self, lines: Iterator[Numbered], *, name: str, options: ReadOptions) -> None:
        self._lines = lines
        self._name = name
        self._options = options
        self._cells = Cells(options)
        self.renamed: set[str] = set()  # of the options' renames: those of the header
        # Of the record that is being read.
        self._start: tuple[int, int] | None = None
        self._bytes = 0
        self._fault: LineError | None = None

    def __iter__(self) -> Iterator[Numbered]:
        limit = self._options.max_line_bytes
        # (Of the whole process; nothing else of it reads CSV.)
        csv.field_size_limit(max(csv.field_size_limit(), limit))
        delimiter = self._delimiter()
        records = csv.reader(self._physical_lines(), strict=True, delimiter=delimiter)
        columns: list[Column] = []
        while True:
            self._start, self._bytes, self._fault = None, 0, None
            cells: list[str] = []
            try:
                cells = next(records)
            except StopIteration:
                return
            except csv.Error as error:
                self._fault = self._fault or _fault(error, limit)
            if self._start is None or not (self._fault or "".join(cells).strip()):
                continue  # a blank line
            number, offset = self._start
            if not columns:
                if self._fault:
                    raise UnreadableFile(f"{self._name}: its header: {self._fault.message}.")
                columns = columns_of(self._name, cells, self._options)
                self.renamed = {c.header for c in columns} | {c.header.strip() for c in columns}
                continue
            try:
                if self._fault is None and self._bytes > limit:
                    self._fault = too_long(limit)
                if self._fault is not None:
                    raise self._fault
                line: bytes | LineError = self._line(cells, columns)
            except LineError as error:
                error.line = number
                line = error
            yield number, line, offset

    def _delimiter(self) -> str:
        """By Excel's own line, which is no record, or by the names of the header."""
        ahead: list[Numbered] = []
        delimiter = self._options.delimiter
        for numbered in self._lines:
            line = numbered[1]
            if not isinstance(line, bytes) or not line.strip():
                ahead.append(numbered)
                if not isinstance(line, bytes):
                    break
                continue
            if (found := _SEPARATOR_LINE.fullmatch(line)) and not delimiter:
                delimiter = found[1].decode("ascii", "replace")
                continue
            ahead.append(numbered)
            delimiter = delimiter or delimiter_of(line.decode(errors="replace"), self._options)
            break
        self._lines = chain(ahead, self._lines)
        return delimiter or ","

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
                message = f"Invalid UTF-8 at byte {error.start} of the line{hint(line)}"
                self._fault = self._fault or LineError("invalid_utf8", "", message)
                yield line.decode(errors="replace") + "\n"

    def _line(self, cells: list[str], columns: list[Column]) -> bytes:
        if len(cells) != len(columns):
            if len(cells) < len(columns) or "".join(cells[len(columns) :]).strip():
                count = f"{len(cells)} cells; the header has {len(columns)}"
                raise LineError("malformed_csv", "", count)
            del cells[len(columns) :]
        row: dict[str, Any] = {}
        for cell, column in zip(cells, columns, strict=True):
            if not cell or (value := self._cells.value(cell, column)) is ABSENT:
                continue
            if len(column.path) == 1:
                row[column.path[0]] = value
            elif column.path:
                put(row, column.path, value)
        return row_line(row)


def header_names(line: bytes, options: ReadOptions) -> list[str]:
    """The names of a header, if the line is one."""
    text = line.decode(errors="replace")
    try:
        return next(csv.reader([text], delimiter=delimiter_of(text, options)), [])
    except csv.Error:
        return []


def delimiter_of(header: str, options: ReadOptions) -> str:
    """What stands between the names of a header: that which gives most names that are known."""
    known = {plain(name) for name in (*(options.fields or ()), *options.renames)}

    def names(delimiter: str) -> int:
        try:
            titles = next(csv.reader([header], delimiter=delimiter), [])
        except csv.Error:
            return 0
        if options.fields is None:
            return len(titles)
        return sum(plain(title) in known for title in titles)

    return max(DELIMITERS, key=names)  # (the first of those that are as good)


class ParquetRows:
    """Rows of Parquet, numbered from 1. A null is an absent field, in a struct too."""

    def __init__(
        self,
        found: Input,
        stack: ExitStack,
        *,
        options: ReadOptions,
    ) -> None:
        try:
            import pyarrow  # noqa: PLC0415  (165 MB that few need)
            import pyarrow.parquet  # noqa: PLC0415
        except ImportError as error:
            raise UnreadableFile(f"{found.name} is Parquet, which needs: {_INSTALL}") from error
        self._pyarrow = pyarrow
        self._name = found.name
        self._max_line_bytes = options.max_line_bytes
        self._cells = Cells(options)
        try:
            # (Read in pieces: a group of rows may be larger than memory.)
            self._file = stack.enter_context(
                pyarrow.parquet.ParquetFile(
                    stack.enter_context(_whole(found)), pre_buffer=False, buffer_size=BLOCK_BYTES
                )
            )
        except (pyarrow.ArrowException, OSError) as error:
            raise UnreadableFile(f"{found.name} is no Parquet that can be read: {error}") from error
        schema = self._file.schema_arrow
        columns = columns_of(found.name, list(schema.names), options)
        for column in columns:
            is_left_out = column.kind in (ROW_NUMBER, NOTHING)
            if is_left_out and not pyarrow.types.is_integer(schema.field(column.header).type):
                raise UnreadableFile(
                    f"{found.name}: what is the column {column.header!r}? --map "
                    f"{column.header}=FIELD names it, --map {column.header}= leaves it out."
                )
        self._columns = [column for column in columns if column.path]
        self.renamed = {column.header for column in columns}
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
                columns=[column.header for column in self._columns],
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
            rows = list(self._rows(batch)) if self._columns else [()] * batch.num_rows
        except (ValueError, OverflowError, KeyError) as error:
            if batch.num_rows > 1:  # which of them?
                for at in range(batch.num_rows):
                    yield from self._lines(batch.slice(at, 1))
            else:
                yield LineError("invalid_value", "", str(error))
            return
        for values in rows:
            try:
                row: dict[str, Any] = {}
                for value, column in zip(values, self._columns, strict=True):
                    if value is None or (fitted := self._fitted(value, column)) is ABSENT:
                        continue
                    if len(column.path) == 1:
                        row[column.path[0]] = fitted
                    else:
                        put(row, column.path, fitted)
                line = row_line(row)
                if len(line) > self._max_line_bytes:
                    raise too_long(self._max_line_bytes)
                yield line
            except LineError as error:
                yield error

    def _fitted(self, value: Any, column: Column) -> Any:
        return (
            value
            if column.kind == EITHER and isinstance(value, list)
            else (self._cells.fitted(value, column))
        )

    def _rows(self, batch: Any) -> Iterator[tuple[Any, ...]]:
        return zip(*(self._values(batch.column(c.header)) for c in self._columns), strict=True)

    def _values(self, column: Any) -> list[Any]:
        types = self._pyarrow.types
        if isinstance(column.type, self._pyarrow.ExtensionType):  # (a uuid is one)
            column = column.storage
        if types.is_fixed_size_binary(column.type) and column.type.byte_width == _UUID_BYTES:
            return [None if v is None else UUID(bytes=v) for v in column.to_pylist()]
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
        if types.is_binary(type_) or types.is_large_binary(type_) or types.is_binary_view(type_):
            return arrow.large_string()
        if types.is_string_view(type_) or types.is_fixed_size_binary(type_):
            return arrow.large_string()
        if types.is_struct(type_):
            return arrow.struct([field.with_type(self._plain(field.type)) for field in type_])
        if types.is_fixed_size_list(type_) or types.is_list(type_):
            return arrow.list_(self._plain(type_.value_type))
        if types.is_large_list(type_):
            return arrow.large_list(self._plain(type_.value_type))
        return type_


def too_long(max_line_bytes: int, *, line: int = 0) -> LineError:
    message = f"Over {max_line_bytes:,} bytes; --max-line allows longer lines"
    return LineError("line_too_long", "", message, line=line)


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
