"""The forms of a line on its way from the file to its row, and the position in a file."""

from collections.abc import Callable
from typing import Any, NamedTuple
from uuid import UUID

from agentmem_site.bulk.spec import LineError

DIGEST_BYTES = 16

# How a line names another row: by its key or id, or by (the outer row's name, its key).
Name = str | tuple[str, str]
Children = dict[Any, bytes]  # key within the parent -> row
Known = dict[str, dict[Name, bytes]]  # column -> name -> the encoded id
Reject = Callable[[LineError], None]


def refuse(error: LineError) -> None:
    """Stops at the first bad line."""
    raise error


class RawLine(NamedTuple):
    """A line as it was read, or why it could not be read."""

    number: int
    line: bytes | LineError
    offset: int | None = None  # of its first byte
    digest: bytes | None = None


class DecodedLine(NamedTuple):
    number: int
    line: Any  # the spec's line
    offset: int | None
    digest: bytes | None


class Probe(NamedTuple):
    """What is needed to find out whether a line is unchanged since its last load."""

    raw: RawLine
    key: str
    names: tuple[Name | None, ...]  # of what it refers to, in the order of the spec's references
    children: int  # with different keys
    repeated: int  # further children


class UnchangedLine(NamedTuple):
    """A line whose row exists and is as the line says."""

    number: int
    children: int  # with different keys
    repeated: int  # further children


class Row(NamedTuple):
    """One line, encoded. Rows with the same `key` are the same row."""

    number: int
    id: UUID
    key: Any
    data: bytes


class Parts(NamedTuple):
    """One line's row: the header, then its columns. References are still names."""

    number: int
    offset: int | None
    parts: list[Any]
    children: Children
    repeated: int  # children of the same key that the last one replaced


class Mark(NamedTuple):
    """A checkpoint in a part of the file: all of its lines up to `line` are committed. `digest` is
    that of the whole file up to `checked_line`."""

    line: int = 0
    checked_line: int = 0
    digest: bytes = b""


START = Mark()
