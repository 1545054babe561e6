"""What a line of JSON must not hold, whatever resource it is of. Called for every line."""

import re

from agentmem_site.bulk.spec import LineError

_ESCAPE = re.compile(rb"\\(u[0-9a-fA-F]{4}|.)")


def check_line(line: bytes) -> None:
    """Raises: LineError."""
    check_text(line)


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
