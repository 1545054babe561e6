"""Files and streams as blocks of bytes, unpacked on the fly with flat memory."""

import os
import re
import stat
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO

BLOCK_BYTES = 256 * 1024
# A small file that unpacks to a large one: gzip can reach 1,000 to 1, zstd far more.
MAX_RATIO = 200
RATIO_MATTERS_FROM = 64 * 1024 * 1024
# 4 bytes of zstd can hold 128 KiB, and all that a piece holds comes out of it at once.
_ZSTD_PIECE = 2 * 1024
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")  # a frame of zstd that holds no data
_SAVE_AS_CSV = "save the sheet as CSV UTF-8 and load that"
_SHEETS = {".xlsx": "an Excel workbook", ".xlsm": "an Excel workbook", ".ods": "a spreadsheet"}
_NOT_TEXT = {
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"BZh": "packed with bzip2: unpack it first, or pack it with gzip or zstd",
    b"\xfd7zXZ": "packed with xz: unpack it first, or pack it with gzip or zstd",
    b"\xd0\xcf\x11\xe0": f"an old Excel workbook: {_SAVE_AS_CSV}",
    b"ARROW1": "Arrow or Feather: write it as Parquet",
    b"ORC": "ORC: write it as Parquet",
    b"Obj\x01": "Avro: write it as JSON lines or Parquet",
    b"SQLite": "a SQLite database: write a table of it as CSV (sqlite3 -header -csv)",
    b"%PDF": "a PDF",
}


class UnreadableFile(Exception):
    """The file cannot be read."""


def _sheet(name: str, head: bytes, blocks: Iterable[bytes]) -> str:
    """(A workbook is a zip archive with certain members.)"""
    if not head.startswith(b"PK"):
        return ""
    begin = b"".join(blocks)
    by_name = _SHEETS.get(Path(name.lower()).suffix)
    is_workbook = b"xl/" in begin or b"[Content_Types].xml" in begin
    is_open = b"opendocument.spreadsheet" in begin[:200]
    what = by_name or (is_open and "a spreadsheet") or (is_workbook and "an Excel workbook")
    return f"{what}: {_SAVE_AS_CSV}" if what else ""


class Input:
    """A file or a stream. `packing` is "gzip", "zstd" or ""."""

    def __init__(
        self,
        read: Callable[[int], bytes],
        *,
        name: str,
        size: int | None = None,
        fd: int | None = None,
        max_bytes: int | None = None,
    ) -> None:
        self.name = name
        self.size = size
        self.position = 0  # of the bytes as they lie there
        self._read = read
        self._fd = fd  # of a file that can be read at any place
        self._max_bytes = max_bytes
        self._ahead: deque[bytes] = deque()
        head = self._look(6)
        for magic, what in _NOT_TEXT.items():
            if head.startswith(magic):
                sheet = _sheet(name, head, self._ahead)
                raise UnreadableFile(f"{name} is {sheet or what}.")
        self.packing = ""
        if head.startswith(_GZIP):
            self.packing = "gzip"
        elif head.startswith(_ZSTD) or _SKIPPABLE.match(head):
            self.packing = "zstd"
        self.head = head

    def reopened(self) -> IO[bytes] | None:
        """The file once more, where it is one that is not packed: the caller's to close."""
        if self._fd is None or self.packing:
            return None
        return os.fdopen(os.dup(self._fd), "rb")

    def blocks(self) -> Iterator[bytes]:
        """What is unpacked, as it comes: a live pipe is not waited for until a block is full.

        Raises: UnreadableFile.
        """
        unpacked = 0
        for block in self._unpacked():
            unpacked += len(block)
            if self._max_bytes is not None and unpacked > self._max_bytes:
                raise UnreadableFile(
                    f"{self.name} holds more than {self._max_bytes:,} bytes: split it, "
                    "or allow more with --max-bytes."
                )
            if (
                self.packing
                and unpacked > RATIO_MATTERS_FROM
                and unpacked > MAX_RATIO * self.position
            ):
                raise UnreadableFile(
                    f"{self.name} unpacks to more than {MAX_RATIO} times its size: if that is "
                    "right, unpack it first and load the unpacked file."
                )
            yield block

    # -- inside ----------------------------------------------------------------------------------

    def _unpacked(self) -> Iterator[bytes]:
        if not self.packing:
            while block := self._next():
                yield block
            return
        make = _Gunzip if self.packing == "gzip" else _Unzstd
        unpacker: _Gunzip | _Unzstd | None = None
        while block := self._next():
            while block:
                if unpacker is None:
                    block = block.lstrip(b"\0")  # padding behind a member
                    if not block:
                        break
                    unpacker = make()
                try:
                    yield from unpacker.unpack(block)
                except unpacker.errors as error:
                    raise UnreadableFile(f"{self.name} is damaged: {error}") from error
                block = unpacker.rest
                if unpacker.is_done:
                    unpacker = None
        if unpacker is not None:
            raise UnreadableFile(
                f"{self.name} is cut off: it ends before the end-of-stream marker of its "
                f"{self.packing} data. Copy the file again."
            )

    def _next(self) -> bytes:
        block = self._ahead.popleft() if self._ahead else self._fetch()
        self.position += len(block)
        return block

    def _fetch(self) -> bytes:
        try:
            return self._read(BLOCK_BYTES)
        except OSError as error:
            raise UnreadableFile(f"{self.name}: {error.strerror or error}") from error

    def _look(self, size: int) -> bytes:
        """The next bytes, which stay to be read."""
        while sum(map(len, self._ahead)) < size and (block := self._fetch()):
            self._ahead.append(block)
        return b"".join(self._ahead)[:size]


@contextmanager
def file_input(path: str, *, max_bytes: int | None) -> Iterator[Input]:
    """A file, or standard input for "-". Raises: UnreadableFile."""
    with ExitStack() as stack:
        try:
            # (Not sys.stdin: Python could not end while a thread waits for a line of it.)
            fd = 0
            if path != "-":
                fd = stack.enter_context(Path(path).open("rb", buffering=0)).fileno()
            found = os.fstat(fd)
            is_file = stat.S_ISREG(found.st_mode) and os.lseek(fd, 0, os.SEEK_CUR) == 0
        except OSError as error:
            raise UnreadableFile(f"{path}: {error.strerror or error}") from error
        yield Input(
            partial(os.read, fd),
            name="standard input" if path == "-" else path,
            size=found.st_size if is_file else None,
            fd=fd if is_file else None,
            max_bytes=max_bytes,
        )


def stream_input(stream: IO[bytes], *, name: str, size: int | None, max_bytes: int | None) -> Input:
    """An open stream. Raises: UnreadableFile."""
    return Input(getattr(stream, "read1", stream.read), name=name, size=size, max_bytes=max_bytes)


class _Gunzip:
    """One member of gzip."""

    errors = (zlib.error,)

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        self.rest = b""

    @property
    def is_done(self) -> bool:
        return self._stream.eof

    def unpack(self, block: bytes) -> Iterator[bytes]:
        while block and not self._stream.eof:
            if unpacked := self._stream.decompress(block, BLOCK_BYTES):
                yield unpacked
            block = self._stream.unconsumed_tail
        self.rest = self._stream.unused_data


class _Unzstd:
    """One frame of zstd."""

    def __init__(self) -> None:
        import zstandard  # noqa: PLC0415  (few files are packed so)

        self._stream = zstandard.ZstdDecompressor().decompressobj(write_size=_ZSTD_PIECE * 16)
        self.errors = (zstandard.ZstdError,)
        self.rest = b""

    @property
    def is_done(self) -> bool:
        return self._stream.eof

    def unpack(self, block: bytes) -> Iterator[bytes]:
        unpacked: list[bytes] = []
        size = at = 0
        while at < len(block) and not self._stream.eof:
            unpacked.append(self._stream.decompress(block[at : at + _ZSTD_PIECE]))
            size += len(unpacked[-1])
            at += _ZSTD_PIECE
            if size >= BLOCK_BYTES:
                yield b"".join(unpacked)
                unpacked.clear()
                size = 0
        if size:
            yield b"".join(unpacked)
        self.rest = self._stream.unused_data + block[at:] if self._stream.eof else b""
