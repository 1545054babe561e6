"""Sources: files, streams and rows as numbered lines of JSON, streaming.

A file of any size costs a few blocks of memory. How a file is packed is `packing`'s to know, and
what stands in tables (CSV, Parquet) `tables`'.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import PurePath
from typing import IO, Any

from agentmem_site.bulk.packing import Input, UnreadableFile, file_input, stream_input
from agentmem_site.bulk.spec import LineError
from agentmem_site.bulk.tables import CsvRows, ParquetRows, row_line, too_long

# Number from 1, the line without its end (or why it cannot be had), and where it starts in the
# unpacked stream.
NumberedLine = tuple[int, bytes | LineError, int]
MAX_LINE_BYTES = 1024 * 1024
FORMATS = ("auto", "jsonl", "csv", "parquet")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Source:
    """Lines to load. Blank ones are counted and not given."""

    name: str
    _lines: Iterable[NumberedLine]
    size: int | None = None  # bytes on disk, where they are known
    head: bytes = b""  # the first few bytes as they lie there, by which packings are told apart
    # How far into the file on disk: through compression, the compressed bytes.
    bytes_read: Callable[[], int] = lambda: 0

    def lines(self) -> Iterator[NumberedLine]:
        """All of them; once. Raises: UnreadableFile."""
        return iter(self._lines)


def source_from(found: Input, lines: Iterable[NumberedLine]) -> Source:
    """The lines that are read from `found`."""
    return Source(found.name, lines, found.size, found.head, lambda: found.position)


@contextmanager
def open_source(
    path: str,
    *,
    format: str = "auto",
    fields: Mapping[str, str] | None = None,
    ignore_unknown: bool = False,
    max_line_bytes: int = MAX_LINE_BYTES,
    max_bytes: int | None = None,
) -> Iterator[Source]:
    """The file, or standard input for "-"; gzip and zstd are unpacked, by what stands in it.

    `fields` (`csv_kinds` of the line) are those that a table may have. `max_bytes` are unpacked.
    Raises: UnreadableFile.
    """
    with ExitStack() as stack:
        found = stack.enter_context(file_input(path, max_bytes=max_bytes))
        yield _source(
            found,
            stack,
            path,
            format,
            max_line_bytes,
            fields=fields,
            ignore_unknown=ignore_unknown,
        )


@contextmanager
def source_of(
    stream: IO[bytes],
    *,
    name: str,
    format: str = "auto",
    fields: Mapping[str, str] | None = None,
    ignore_unknown: bool = False,
    max_line_bytes: int = MAX_LINE_BYTES,
    max_bytes: int | None = None,
    size: int | None = None,
) -> Iterator[Source]:
    """The same of an open stream (a request's body): `name` tells the format, where it is auto."""
    with ExitStack() as stack:
        found = stream_input(stream, name=name, size=size, max_bytes=max_bytes)
        yield _source(
            found,
            stack,
            name,
            format,
            max_line_bytes,
            fields=fields,
            ignore_unknown=ignore_unknown,
        )


def source_of_rows(rows: Iterable[Any], *, name: str = "rows") -> Source:
    """Rows from Python: dicts, whose numpy arrays, dates and decimals become JSON."""
    return Source(name, _lines_of_rows(rows))


def lines_of(
    blocks: Iterable[bytes],
    *,
    max_line_bytes: int = MAX_LINE_BYTES,
    keeps_blank: bool = False,
) -> Iterator[NumberedLine]:
    """The lines of these blocks, wherever the blocks end.

    Raises: UnreadableFile, with the number of the last whole line.
    """
    number = start = 0
    held: list[bytes] = []  # the beginning of a line whose end is still to come,
    held_bytes = 0  # or nothing of it but its length, once it is too long
    try:
        for block in chain(blocks, [b"\n"]):
            ended = block.split(b"\n")
            rest = ended.pop()
            if ended and held_bytes:
                if held_bytes + len(ended[0]) <= max_line_bytes:
                    ended[0] = b"".join([*held, ended[0]])
                else:
                    number += 1
                    yield number, too_long(max_line_bytes, line=number), start
                    start += held_bytes + len(ended.pop(0)) + 1
                held.clear()
                held_bytes = 0
            if number == 0 and ended and ended[0].startswith(_BOM):
                ended[0] = ended[0].removeprefix(_BOM)
                start += len(_BOM)
            for line in ended:
                number += 1
                size = len(line)
                if keeps_blank or (line and not line.isspace()):
                    if size > max_line_bytes:
                        yield number, too_long(max_line_bytes, line=number), start
                    else:
                        yield number, line, start
                start += size + 1
            if rest:
                held_bytes += len(rest)
                if held_bytes <= max_line_bytes:
                    held.append(rest)
                else:
                    held.clear()
    except UnreadableFile as error:
        raise UnreadableFile(f"{error} (The last whole line is line {number:,}.)") from error


def _lines_of_rows(rows: Iterable[Any]) -> Iterator[NumberedLine]:
    for number, row in enumerate(rows, start=1):
        try:
            yield number, row_line(row), 0
        except LineError as error:
            yield number, error, 0


def _source(
    found: Input, stack: ExitStack, path: str, format: str, max_line_bytes: int, **table: Any
) -> Source:
    if format == "auto":
        format = _format(path, found)
    if format == "parquet":
        rows = ParquetRows(found, stack, max_line_bytes=max_line_bytes, **table)
        return replace(
            source_from(found, rows),
            bytes_read=lambda: (found.size or 0) * rows.rows_read // max(rows.rows, 1),
        )
    blocks = found.blocks()
    if format == "csv":
        physical = lines_of(blocks, max_line_bytes=max_line_bytes, keeps_blank=True)
        records = CsvRows(physical, name=found.name, max_line_bytes=max_line_bytes, **table)
        return source_from(found, records)
    return source_from(found, lines_of(blocks, max_line_bytes=max_line_bytes))


def _format(path: str, found: Input) -> str:
    """By what stands in it (Parquet), by its name (CSV); all else is JSON lines."""
    suffixes = PurePath(path.lower()).suffixes
    if found.head.startswith(b"PAR1"):
        return "parquet"
    if suffixes and suffixes[-1] in (".gz", ".zst"):
        suffixes.pop()
    return {".csv": "csv", ".parquet": "parquet"}.get(suffixes[-1] if suffixes else "", "jsonl")
