"""What a line is on its way from the file to its row, and how far a file is done."""

from collections.abc import Callable
from typing import Any, NamedTuple
from uuid import UUID

from agentmem_site.bulk.spec import LineError

DIGEST_BYTES = 16

# What a line calls another row: its key or id, or (the outer row's name, its key).
Name = str | tuple[str, str]
Children = dict[Any, bytes]  # key within the parent -> row
Known = dict[str, dict[Name, bytes]]  # column -> name -> the encoded id
Reject = Callable[[LineError], None]


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


class Parts(NamedTuple):
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
