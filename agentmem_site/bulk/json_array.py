"""JSON that is not one line for each row, as it arrives: arrays, pretty-printed objects one after
the other, and objects that hold the rows in an array, as lists of the API do.

The end of an element is found by its brackets and quotes alone, in one match of a regular
expression. Whether it is valid JSON is up to the reader of the line.
"""

import re
from collections.abc import Container, Iterable, Iterator

from agentmem_site.bulk.notices import Notices
from agentmem_site.bulk.packing import UnreadableFile
from agentmem_site.bulk.reading import MAX_LINE_BYTES
from agentmem_site.bulk.spec import LineError

NumberedLine = tuple[int, bytes | LineError, int]

_MAX_DEPTH = 64  # deeper ones are found by steps
# Where an object holds its rows, in lists of the API and elsewhere; and what tells of pages.
WRAPPERS = frozenset({"results", "data", "items", "records", "rows"})
_OF_PAGES = ("next", "previous", "count", "total", "page", "limit", "has_more", "cursor")
_BOM = b"\xef\xbb\xbf"

# Possessive throughout (*+): what does not match is known after one pass.
_SPACE = rb"[ \t\r\n]*+"
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_BETWEEN = rb'[^"{}\[\]]*+(?:%b[^"{}\[\]]*+)*+' % _STRING


def _nested(depth: int) -> bytes:
    inside = _BETWEEN
    for _ in range(depth - 1):
        inside = rb"%b(?:[{\[]%b[}\]]%b)*+" % (_BETWEEN, inside, _BETWEEN)
    return rb"[{\[]%b[}\]]" % inside


_BARE = rb'[^ \t\r\n,"{}\[\]]++'
_ELEMENT = re.compile(
    rb"%b(%b|%b|%b)%b([,\]])" % (_SPACE, _nested(_MAX_DEPTH), _STRING, _BARE, _SPACE), re.DOTALL
)
_VALUE = re.compile(rb"%b|%b|%b" % (_nested(_MAX_DEPTH), _STRING, _BARE), re.DOTALL)
_MEMBER = re.compile(rb"[,{]%b(%b)%b:%b" % (_SPACE, _STRING, _SPACE, _SPACE), re.DOTALL)
_LEADING = re.compile(_SPACE)
_PLAIN = re.compile(rb'[^"{}\[\]]++')
_IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_IN_BARE = re.compile(_BARE)


def json_lines(
    blocks: Iterable[bytes],
    *,
    keys: Container[str] = WRAPPERS,
    fields: Container[str] = (),
    max_bytes: int = MAX_LINE_BYTES,
    notices: Notices | None = None,
) -> Iterator[NumberedLine]:
    """The elements of all arrays and the objects beside them, numbered from 1. An object may hold
    the array instead, under one of `keys`; one of `fields` first tells that it is an element.

    An element over `max_bytes` is a LineError, read past in blocks.
    Raises: UnreadableFile, where it is neither, or ends before its time.
    """
    return _Json(iter(blocks), keys, fields, max_bytes, notices or Notices()).elements()


def wraps(line: bytes, keys: Container[str], fields: Container[str]) -> bool:
    """Whether a line is an object that holds rows; False where it is not known."""
    return bool(_wrapped(line, 0, keys, fields))


class _Json:
    """The part of the stream that is looked at: `block` from `at` on, which began at `start`."""

    def __init__(
        self,
        blocks: Iterator[bytes],
        keys: Container[str],
        fields: Container[str],
        max_bytes: int,
        notices: Notices,
    ) -> None:
        self._blocks = blocks
        self._keys = keys
        self._fields = fields
        self._max_bytes = max_bytes
        self._notices = notices
        self._block = b""
        self._at = 0
        self._start = 0
        self._number = 0

    def elements(self) -> Iterator[NumberedLine]:
        self._pass_bom()
        if not self._next():
            raise self._broken("the [ of a JSON array or the { of an object")
        while first := self._next():
            if first == b"[":
                yield from self._array()
            elif first != b"{":
                raise self._broken("the [ of a JSON array or the { of an object")
            elif (inner := self._array_within()) is not None:
                self._at = inner
                yield from self._array()
                self._end_of_object()
            else:
                yield self._numbered(*self._object())

    def _array(self) -> Iterator[NumberedLine]:
        self._at += 1
        is_open = not self._closes_at_once()
        while is_open:
            if found := _ELEMENT.match(self._block, self._at):
                element, separator = found.groups()
                offset = self._start + found.start(1)
                self._at = found.end()
            elif self._left() <= self._max_bytes and self._more():
                continue
            else:
                element, offset = self._step_over()
                separator = self._separator()
            yield self._numbered(element, offset)
            is_open = separator == b","

    def _numbered(self, element: bytes | None, offset: int) -> NumberedLine:
        self._number += 1
        return self._number, self._fitting(element), offset

    def _object(self) -> tuple[bytes | None, int]:
        """One that stands by itself, and its offset."""
        while True:
            if found := _VALUE.match(self._block, self._at):
                self._at = found.end()
                return found[0], self._start + found.start()
            if not (self._left() <= self._max_bytes and self._more()):
                return self._step_over()

    # -- an object that holds the elements ---------------------------------------------------------

    def _array_within(self) -> int | None:
        """Where in the block the array begins that the object holds."""
        while True:
            inner = _wrapped(self._block, self._at, self._keys, self._fields)
            if inner is None and self._left() <= self._max_bytes and self._more():
                continue
            if inner:
                self._tell_left_out(self._block[self._at : inner])
            return inner or None

    def _tell_left_out(self, before: bytes) -> None:
        if names := [name for name in _names(before)[:-1] if name not in _OF_PAGES]:
            self._notices.add(f"Left out beside the rows: {', '.join(names)}.")

    def _end_of_object(self) -> None:
        while True:
            character = self._next()
            self._at += 1
            if character == b"}":
                return
            if character != b",":
                self._at -= 1
                raise self._broken("a comma or }")
            key, _ = self._step_over()
            name = (key or b'""').decode(errors="replace").strip('"')
            if self._next() != b":":
                raise self._broken("a colon")
            self._at += 1
            value, _ = self._step_over()
            if name == "next" and value not in (None, b"null", b'""'):
                self._notices.add(
                    "This is one page of a list, whose `next` names the one after it."
                )
            elif name not in _OF_PAGES:
                self._notices.add(f"Left out beside the rows: {name[:80]}.")

    def _fitting(self, element: bytes | None) -> bytes | LineError:
        if element is None or len(element) > self._max_bytes:
            message = f"Over {self._max_bytes:,} bytes"
            return LineError("line_too_long", "", message, line=self._number)
        return element

    # -- the window --------------------------------------------------------------------------------

    def _left(self) -> int:
        return len(self._block) - self._at

    def _more(self) -> bool:
        """One more block, if there is one; what was passed is let go."""
        new = next(self._blocks, b"")
        self._start += self._at
        self._block = self._block[self._at :] + new
        self._at = 0
        return bool(new)

    def _next(self) -> bytes:
        """The next character that is no space; empty at the end."""
        while True:
            self._at = _LEADING.match(self._block, self._at).end()  # type: ignore[union-attr]
            if self._left() or not self._more():
                return self._block[self._at : self._at + 1]

    def _broken(self, expected: str) -> UnreadableFile:
        found = self._block[self._at : self._at + 1]
        what = repr(found.decode("ascii", "replace")) if found else "the end"
        after = f"after element {self._number:,}, " if self._number else ""
        return UnreadableFile(
            f"{after}at byte {self._start + self._at:,}: {expected} is expected, {what} is there"
        )

    # -- around the elements -----------------------------------------------------------------------

    def _pass_bom(self) -> None:
        while self._left() < len(_BOM) and self._more():
            pass
        if self._block.startswith(_BOM):
            self._at = len(_BOM)

    def _closes_at_once(self) -> bool:
        is_empty = self._next() == b"]"
        self._at += is_empty
        return is_empty

    def _separator(self) -> bytes:
        character = self._next()
        if character not in (b",", b"]"):
            raise self._broken("a comma or ]")
        self._at += 1
        return character

    # -- an element that the expression does not match ---------------------------------------------

    def _step_over(self) -> tuple[bytes | None, int]:
        """The element, None where it is too long to keep, and its offset."""
        first = self._next()
        if first in (b",", b"]", b"}", b""):
            raise self._broken("a value")
        begin = self._start + self._at
        kept: list[bytes] = []
        size = 0
        for part in self._parts(first):
            size += len(part)
            if size <= self._max_bytes:
                kept.append(part)
        return (b"".join(kept) if size <= self._max_bytes else None), begin

    def _parts(self, first: bytes) -> Iterator[bytes]:
        """The element in pieces, up to its end."""
        if first not in (b'"', b"{", b"["):
            yield from self._run(_IN_BARE)
            return
        depth = 0
        while True:
            character = self._block[self._at : self._at + 1]
            if not character:
                if not self._more():
                    raise self._broken("the end of this element")
                continue
            if character == b'"':
                yield self._take(1)
                yield from self._run(_IN_STRING)
                if self._block[self._at : self._at + 1] != b'"':
                    raise self._broken("the end of this text")
                yield self._take(1)
            elif character in (b"{", b"["):
                depth += 1
                yield self._take(1)
            elif character in (b"}", b"]"):
                depth -= 1
                yield self._take(1)
            else:
                yield from self._run(_PLAIN)
            if depth == 0:
                return

    def _run(self, expression: re.Pattern[bytes]) -> Iterator[bytes]:
        """All that matches, however long."""
        while True:
            found = expression.match(self._block, self._at)
            if found:
                yield self._take(found.end() - self._at)
            # (A backslash may stand last, before what it escapes.)
            if self._left() > 1 or not self._more():
                return

    def _take(self, size: int) -> bytes:
        part = self._block[self._at : self._at + size]
        self._at += size
        return part


def _wrapped(block: bytes, at: int, keys: Container[str], fields: Container[str]) -> int | None:
    """Where the array begins that the object at `at` holds; 0: it holds none; None: the block ends
    before that is known."""
    while member := _MEMBER.match(block, at):
        name = member[1][1:-1].decode(errors="replace")
        at = member.end()
        if name in fields:
            return 0
        if name in keys and block[at : at + 1] == b"[":
            return at
        value = _VALUE.match(block, at)
        if value is None or value.end() == len(block):
            return None
        at = _LEADING.match(block, value.end()).end()  # type: ignore[union-attr]
    return None if at >= len(block) or block[at : at + 1] in (b",", b"{") else 0


def _names(text: bytes) -> list[str]:
    """The names of an object's members, as far as `text` goes."""
    names, at = [], 0
    while member := _MEMBER.match(text, at):
        names.append(member[1][1:-1].decode(errors="replace")[:80])
        value = _VALUE.match(text, member.end())
        at = _LEADING.match(text, value.end()).end() if value else len(text)  # type: ignore[union-attr]
    return names
