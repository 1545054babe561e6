"""Bytes into numbered lines, streaming: a file of any size costs one line of memory.

The place of more formats (CSV, Parquet, zstd): each gives numbered lines of JSON.
"""

import gzip
import re
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, cast

from agentmem_site.bulk.spec import LineError

NumberedLine = tuple[int, bytes]
MAX_LINE_BYTES = 64 * 1024 * 1024
_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_ESCAPE = re.compile(rb"\\(u[0-9a-fA-F]{4}|.)")


class UnreadableFile(Exception):
    """The file cannot be read."""


@contextmanager
def open_lines(source: str) -> Iterator[IO[bytes]]:
    """The file, or standard input for "-"; gzip is unpacked, by what stands in it.

    Raises: UnreadableFile.
    """
    with ExitStack() as stack:
        try:
            if source == "-":
                # Not sys.stdin.buffer: Python could not end while a thread waits for a line of it.
                raw: IO[bytes] = open(0, "rb", closefd=False)  # noqa: SIM115
            else:
                raw = stack.enter_context(Path(source).open("rb"))
            if raw.peek(2)[:2] == _GZIP:  # type: ignore[attr-defined]
                raw = cast(IO[bytes], stack.enter_context(gzip.open(raw, "rb")))
        except OSError as error:
            raise UnreadableFile(f"{source}: {error.strerror or error}") from error
        yield raw


def numbered_lines(stream: IO[bytes]) -> Iterator[NumberedLine]:
    """(number from 1, line) of each line that is not blank. Raises: LineError, UnreadableFile."""
    number = 0
    try:
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise LineError("line_too_long", "", f"Over {MAX_LINE_BYTES:,} bytes", line=number)
            if number == 1:
                line = line.removeprefix(_BOM)
            if line.strip():
                yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise UnreadableFile(f"after line {number:,}: {error}") from error


def check_text(line: bytes) -> None:
    """Refuses what PostgreSQL cannot store: invalid UTF-8, \\u0000, half of a surrogate pair.

    Raises: LineError.
    """
    if not line.isascii():
        try:
            line.decode()
        except UnicodeDecodeError as error:
            raise LineError(
                "invalid_utf8", "", f"Invalid UTF-8 at byte {error.start} of the line"
            ) from error
    if b"\\u" in line:
        expected = -1  # where the low half of a pair has to start
        for escape in _ESCAPE.finditer(line):
            code = int(escape[1][1:], 16) if len(escape[1]) == 5 else -1
            if code == 0:
                raise LineError("nul_character", "", "Text cannot hold the character \\u0000")
            is_low = 0xDC00 <= code <= 0xDFFF
            if is_low != (expected == escape.start()) or (expected >= 0 and not is_low):
                raise LineError("lone_surrogate", "", "Half of a surrogate pair")
            expected = escape.end() if 0xD800 <= code <= 0xDBFF else -1
        if expected >= 0:
            raise LineError("lone_surrogate", "", "Half of a surrogate pair")
