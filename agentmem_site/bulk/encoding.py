"""Text of any encoding as blocks of UTF-8. A file that is UTF-8 passes untouched."""

import codecs
import re
from collections import deque
from collections.abc import Iterable, Iterator

from agentmem_site.bulk.packing import UnreadableFile

_UTF8 = ("utf-8", "utf-8-sig")
_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_WITHOUT_MARK = re.compile(rb"([^\0]\0[^\0]\0)|\0[^\0]\0[^\0]")
_KEPT_BYTES = 8 * 1024 * 1024  # of text whose places may still be requested
_WESTERN = "cp1252"
_IDEOGRAPHS = ((0x4E00, 0x9FFF), (0x3000, 0x303F), (0xFF00, 0xFFEF))
# Of text in these encodings, a quarter is in the first range, and most is in one of them.
_SCRIPTS = (
    ("shift_jis", ((0x3040, 0x30FF), *_IDEOGRAPHS)),
    ("euc_jp", ((0x3040, 0x30FF), *_IDEOGRAPHS)),
    ("euc_kr", ((0xAC00, 0xD7A3),)),
    ("gb18030", _IDEOGRAPHS),
    ("cp1251", ((0x0410, 0x044F),)),
)


class Ahead:
    """Blocks; the first ones can be inspected before they are read."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._error: UnreadableFile | None = None  # for whoever reads
        self.seen = b""

    def more(self) -> bool:
        """Reads one more block into `seen`; False at the end."""
        try:
            block = next(self._blocks, b"")
        except UnreadableFile as error:
            self._error = error
            return False
        self.seen += block
        return bool(block)

    def __iter__(self) -> Iterator[bytes]:
        seen, self.seen = self.seen, b""
        if seen:
            yield seen
        if self._error:
            raise self._error
        yield from self._blocks


class Utf8:
    """The text of `blocks` as UTF-8, in blocks; `place` returns where a byte was in the file."""

    def __init__(self, blocks: Iterable[bytes], *, name: str, encoding: str) -> None:
        self._name = name
        self._ahead = Ahead(blocks)
        self._encoding = encoding
        self.is_transcoded = False
        # Text that was yielded and not yet requested. It starts at `_from`, in the file at `_was`.
        self._kept: deque[bytes] = deque()
        self._kept_bytes = self._from = self._was = 0

    def __iter__(self) -> Iterator[bytes]:
        encoding = self._found()
        if not encoding:
            yield from self._ahead
            return
        decoder = codecs.getincrementaldecoder(encoding)()
        for block in self._ahead:
            yield from self._decoded(decoder, block)
        yield from self._decoded(decoder, b"", final=True)

    def place(self, at: int) -> int:
        """The place in the file of byte `at` of the text. Call it in ascending order."""
        if not self.is_transcoded:
            return at
        while self._kept and at >= self._from + len(self._kept[0]):
            self._let_go(self._kept.popleft())
        if at > self._from and self._kept:
            block = self._kept.popleft()
            self._kept.appendleft(block[at - self._from :])
            self._kept_bytes += len(self._kept[0])
            self._kept_bytes -= len(block) - (at - self._from)
            self._let_go(block[: at - self._from])
        return self._was - max(self._from - at, 0)

    # -- inside ------------------------------------------------------------------------------------

    def _found(self) -> str:
        """The encoding to read; "" if the bytes are UTF-8 already."""
        while len(self._ahead.seen) < 4 and self._might_be_wide(self._ahead.seen):
            if not self._ahead.more():
                break
        seen = self._ahead.seen
        encoding = self._encoding
        for mark, marked in _BOMS:
            if seen.startswith(mark) and encoding in ("", *_UTF8, marked, marked[:6]):
                self._ahead.seen = seen[len(mark) :]
                self._was = len(mark)
                encoding = marked
                break
        else:
            if encoding in ("utf-16", "utf-32"):
                encoding += "-le"
            elif not encoding and (found := _WITHOUT_MARK.match(seen)):  # (ASCII begins it)
                encoding = "utf-16-le" if found[1] else "utf-16-be"
        if encoding in _UTF8:
            encoding = ""
        self.is_transcoded = bool(encoding)
        self._encoding = encoding
        return encoding

    @staticmethod
    def _might_be_wide(seen: bytes) -> bool:
        return len(seen) < 2 or seen[:1] in (b"\xff", b"\xfe", b"\0") or seen[1:2] == b"\0"

    def _decoded(
        self, decoder: codecs.IncrementalDecoder, block: bytes, *, final: bool = False
    ) -> Iterator[bytes]:
        try:
            text = decoder.decode(block, final)
            given = text.encode()
        except UnicodeError as error:
            raise UnreadableFile(
                f"{self._name} is not {self._encoding}: {error}. --encoding names another one."
            ) from error
        if given:
            self._kept.append(given)
            self._kept_bytes += len(given)
            while self._kept_bytes > _KEPT_BYTES and len(self._kept) > 1:
                self._let_go(self._kept.popleft())
            yield given

    def _let_go(self, given: bytes) -> None:
        self._kept_bytes -= len(given)
        self._from += len(given)
        self._was += len(given.decode().encode(self._encoding))


def hint(text: bytes) -> str:
    """Advice about text that is not UTF-8."""
    encoding = likely(text)
    return f"; is the file in another encoding? --encoding {encoding} is likely"


def likely(text: bytes) -> str:
    """The likely encoding of text that is not UTF-8."""
    if text.count(b"\0") * 4 > len(text):
        return "utf-16"
    runs = re.findall(rb"[\x80-\xff]+", text)
    if sum(map(len, runs)) < 3 * len(runs):  # accents, one or two between ASCII letters
        return _WESTERN
    for encoding, ranges in _SCRIPTS:
        try:
            decoded = text.decode(encoding)
        except UnicodeDecodeError:
            continue
        letters = [ord(c) for c in decoded if ord(c) >= 0x80]
        known = sum(any(a <= code <= b for a, b in ranges) for code in letters)
        telling = sum(ranges[0][0] <= code <= ranges[0][1] for code in letters)
        if telling * 4 >= len(letters) and known * 4 >= len(letters) * 3:
            return encoding
    return _WESTERN
