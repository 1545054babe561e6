"""Sources: files, streams and rows as numbered lines of JSON, streaming.

A file of any size costs a few blocks of memory. Its bytes come from `packing`, its text from
`encoding`; what is not one row a line is for `json_array` and `tables`; `mapping` gives lines the
names that they are to have.
"""

import re
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import PurePath
from typing import IO, Any

import msgspec

from agentmem_site.bulk.columns import kinds_of, plain
from agentmem_site.bulk.encoding import Ahead, Utf8
from agentmem_site.bulk.json_array import WRAPPERS, json_lines, wraps
from agentmem_site.bulk.mapping import check_options, mapped
from agentmem_site.bulk.notices import Notices
from agentmem_site.bulk.packing import Input, UnreadableFile, file_input, stream_input
from agentmem_site.bulk.reading import (
    MAX_LINE_BYTES,
    ReadOptions,
    delimiter_named,
    encoding_named,
    pairs,
)
from agentmem_site.bulk.spec import LineError, LoadSpec
from agentmem_site.bulk.tables import CsvRows, ParquetRows, header_names, row_line, too_long

# Number from 1, the line without its end (or why it cannot be had), and where it starts in the
# unpacked stream.
NumberedLine = tuple[int, bytes | LineError, int]
DEFAULTS = ReadOptions()
_BOM = b"\xef\xbb\xbf"
_HEADER_BYTES = 64 * 1024
_BY_NAME = {
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


@dataclass(frozen=True, slots=True)
class Source:
    """Lines to load. Blank ones are counted and not given."""

    name: str
    _lines: Iterable[NumberedLine]
    size: int | None = None  # bytes on disk, where they are known
    head: bytes = b""  # the first bytes of the file, which identify its compression
    # How far into the file on disk: through compression, the compressed bytes.
    bytes_read: Callable[[], int] = lambda: 0
    notices: Notices = field(default_factory=Notices)

    def lines(self) -> Iterator[NumberedLine]:
        """All of them; once. Raises: UnreadableFile."""
        return iter(self._lines)


def read_options(
    spec: LoadSpec,
    *,
    encoding: str = "",
    delimiter: str = "",
    maps: Iterable[str] = (),
    sets: Iterable[str] = (),
    nulls: Iterable[str] | None = None,
    **others: Any,
) -> ReadOptions:
    """What a caller asks for, as it is written. Raises: BadOption."""
    options = ReadOptions(
        fields=kinds_of(spec.line),
        resource=spec.resource,
        encoding=encoding_named(encoding),
        delimiter=delimiter_named(delimiter),
        renames=pairs("map", maps),
        constants=pairs("set", sets),
        nulls=None if nulls is None else frozenset(nulls),
        **others,
    )
    check_options(options)
    return options


@contextmanager
def open_source(path: str, options: ReadOptions = DEFAULTS) -> Iterator[Source]:
    """The file, or standard input for "-"; gzip and zstd are unpacked, by what stands in it.

    Raises: UnreadableFile.
    """
    with ExitStack() as stack:
        found = stack.enter_context(file_input(path, max_bytes=options.max_bytes))
        yield _source(found, stack, path, options)


@contextmanager
def source_of(
    stream: IO[bytes], *, name: str, options: ReadOptions = DEFAULTS, size: int | None = None
) -> Iterator[Source]:
    """The same of an open stream (a request's body): `name` tells the format, where it is auto."""
    with ExitStack() as stack:
        found = stream_input(stream, name=name, size=size, max_bytes=options.max_bytes)
        yield _source(found, stack, name, options)


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


def _source(found: Input, stack: ExitStack, path: str, options: ReadOptions) -> Source:
    source = Source(found.name, (), found.size, found.head, lambda: found.position, options.notices)
    format_ = options.format
    if format_ == "auto":
        format_ = "parquet" if found.head.startswith(b"PAR1") else _by_name(path)
    lines: Iterable[NumberedLine]
    renamed: Callable[[], set[str]] = set
    if format_ == "parquet":
        rows = ParquetRows(found, stack, options=options)
        source = replace(
            source, bytes_read=lambda: (found.size or 0) * rows.rows_read // max(rows.rows, 1)
        )
        lines, renamed = rows, lambda: rows.renamed
    else:
        lines, renamed = _of_text(found, format_, options)
    if options.renames or options.constants:
        lines = mapped(lines, options, renamed)
    return replace(source, _lines=lines)


def _of_text(
    found: Input, format_: str, options: ReadOptions
) -> tuple[Iterable[NumberedLine], Callable[[], set[str]]]:
    """The lines, and which renames their header has taken, once it is read."""
    records: list[CsvRows] = []

    def lines() -> Iterator[NumberedLine]:
        text = Utf8(found.blocks(), name=found.name, encoding=options.encoding)
        blocks = Ahead(text)
        blocks.more()  # (from here on it is known whether it is transcoded)
        is_known = options.format != "auto" or format_ == "csv"
        shape = format_ if is_known else _shape(blocks, format_, options)
        limit = options.max_line_bytes
        given: Iterator[NumberedLine]
        if shape == "json":
            given = json_lines(
                blocks,
                keys=_wrappers(options),
                fields=options.fields or (),
                max_bytes=limit,
                notices=options.notices,
            )
        else:
            is_csv = shape == "csv"
            ended = _with_newlines(blocks) if is_csv else blocks
            given = lines_of(ended, max_line_bytes=limit, keeps_blank=is_csv)
        if text.is_transcoded:
            given = ((number, line, text.place(at)) for number, line, at in given)
        if shape == "csv":
            records.append(CsvRows(given, name=found.name, options=options))
            given = iter(records[0])
        yield from given

    return lines(), lambda: records[0].renamed if records else set()


def _with_newlines(blocks: Ahead) -> Iterable[bytes]:
    """(Old Macs, and Excel's *CSV (Macintosh)*, end lines with a carriage return alone.)"""
    while b"\n" not in blocks.seen and len(blocks.seen) < _HEADER_BYTES and blocks.more():
        pass
    if b"\n" in blocks.seen or b"\r" not in blocks.seen:
        return blocks
    return (block.replace(b"\r", b"\n") for block in blocks)


def _by_name(path: str) -> str:
    suffixes = PurePath(path.lower()).suffixes
    if suffixes and suffixes[-1] in (".gz", ".zst"):
        suffixes.pop()
    return _BY_NAME.get(suffixes[-1] if suffixes else "", "auto")


def _wrappers(options: ReadOptions) -> Container[str]:
    return WRAPPERS | {options.resource}


# -- what a text is, by its beginning ------------------------------------------------------------


def _shape(blocks: Ahead, format_: str, options: ReadOptions) -> str:
    """Rows of JSON on lines, other JSON, or CSV. A live pipe is not waited for longer than its
    first row takes."""
    limit = max(options.max_line_bytes, MAX_LINE_BYTES)
    while not (seen := blocks.seen.removeprefix(_BOM).lstrip()) and len(blocks.seen) <= limit:
        if not blocks.more():
            return "jsonl"
    if seen[:1] == b"[":
        # (A bad line of lines is the other case. What has not come yet is not waited for.)
        return "jsonl" if re.match(rb"\[[^\n]*\]\s*\n\s*\{", seen) else "json"
    first, is_whole = _first_line(blocks, 1, limit)
    if seen[:1] == b"{":
        keys, fields = _wrappers(options), options.fields or ()
        if not is_whole or _is_truncated(first) is False:
            return "json" if wraps(first, keys, fields) else "jsonl"
        if re.search(rb"\}\s*\{", first) and _is_several(first):
            return "json"
        two, _ = _first_line(blocks, 2, limit)
        return "jsonl" if _is_truncated(two) is None else "json"
    known = {plain(name) for name in (*(options.fields or ()), *options.renames)}
    names = header_names(first, options) if format_ == "auto" else []
    if len(names) == 1 and first.startswith(b'"'):
        return "jsonl"  # a text
    return "csv" if names and all(plain(name) in known for name in names) else "jsonl"


def _first_line(blocks: Ahead, count: int, limit: int) -> tuple[bytes, bool]:
    """The first lines that are not blank, and whether they are there to their end."""
    while True:
        text = blocks.seen.removeprefix(_BOM).lstrip()
        at = 0
        for _ in range(count):
            end = text.find(b"\n", at)
            while end >= 0 and not text[at:end].strip():
                at = end + 1
                end = text.find(b"\n", at)
            if end < 0:
                break
            at = end + 1
        else:
            return text[: at - 1], at - 1 <= limit
        if len(text) > limit or not blocks.more():
            return text, len(text) <= limit


def _is_several(line: bytes) -> bool:
    try:
        return all(_is_truncated(row) is False for _, row, _ in json_lines([line]))  # type: ignore[arg-type]
    except UnreadableFile:
        return False


def _is_truncated(text: bytes) -> bool | None:
    """Whether an object goes on behind the text; None: it is no object."""
    try:
        _object(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return True if "truncated" in str(error) else None
    return False
