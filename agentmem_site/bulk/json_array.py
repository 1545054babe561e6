"""A JSON array as it arrives, element by element, each as a line of a file would be.

An element is told apart by its brackets and quotes alone, in one match of a regular expression;
whether it is good JSON is for whoever reads the line.
"""

import re
from collections.abc import Iterable, Iterator
from typing import IO

from agentmem_site.bulk.packing import UnreadableFile, stream_input
from agentmem_site.bulk.readers import MAX_LINE_BYTES, NumberedLine, Source, source_from
from agentmem_site.bulk.spec import LineError

_MAX_DEPTH = 64  # deeper ones are found by steps
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
_LEADING = re.compile(_SPACE)
_PLAIN = re.compile(rb'[^"{}\[\]]++')
_IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_IN_BARE = re.compile(_BARE)


def array_source(stream: IO[bytes], *, name: str, max_line_bytes: int = MAX_LINE_BYTES) -> Source:
    """The elements of an array, gzip and zstd unpacked. A line's number is the element's, from 1.

    Raises: UnreadableFile, here and in `lines`.
    """
    found = stream_input(stream, name=name, size=None, max_bytes=None)
    return source_from(found, array_lines(found.blocks(), max_bytes=max_line_bytes))


def array_lines(
    blocks: Iterable[bytes], *, max_bytes: int = MAX_LINE_BYTES
) -> Iterator[NumberedLine]:
    """The elements of an array. One over `max_bytes` is a LineError, read past in blocks.

    Raises: UnreadableFile, where it is no array, or ends before its time, or goes on after it.
    """
    return _Array(iter(blocks), max_bytes).elements()


class _Array:
    """The part of the stream that is looked at: `block` from `at` on, which began at `start`."""

    def __init__(self, blocks: Iterator[bytes], max_bytes: int) -> None:
        self._blocks = blocks
        self._max_bytes = max_bytes
        self._block = b""
        self._at = 0
        self._start = 0
        self._number = 0

    def elements(self) -> Iterator[NumberedLine]:
        self._open()
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
            self._number += 1
            yield self._number, self._fitting(element), offset
            is_open = separator == b","
        self._end()

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

    def _open(self) -> None:
        while self._left() < len(_BOM) and self._more():
            pass
        if self._block.startswith(_BOM):
            self._at = len(_BOM)
        if self._next() != b"[":
            raise self._broken("the [ of a JSON array")
        self._at += 1

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

    def _end(self) -> None:
        if self._next():
            raise self._broken("nothing more after the array")

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
