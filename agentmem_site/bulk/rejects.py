"""The file of rejected lines: JSON lines, each reject once, even if the load is interrupted."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from agentmem_site.bulk.spec import LineError
from agentmem_site.private import open_private


def as_json(error: LineError) -> dict[str, Any]:
    return {
        "line": error.line,
        "byte_offset": error.offset,
        "code": error.code,
        "field": error.field,
        "message": error.message,
    }


class RejectsUnwritable(Exception):
    """Rejected lines cannot be written."""


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RejectsUnwritable(f"{path}: {error.strerror or error}") from error


class RejectFile:
    """Rejects are written before their batch is committed, so that none is missing. A resumed load
    skips those that the file has already."""

    def __init__(self, path: Path) -> None:
        """Raises: RejectsUnwritable, as all methods do."""
        self._path = path
        self._known: set[int] = set()
        with _named(path):
            self._file: IO[bytes] = open_private(path, "ab")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(OSError):  # everything of value is flushed
            self._file.close()

    def begin(self, *, is_resumed: bool) -> None:
        """Truncates the file; for a resumed load, only an incomplete last line."""
        complete = 0  # bytes
        with _named(self._path):
            if is_resumed:
                for line in self._path.read_bytes().splitlines(keepends=True):
                    if not line.endswith(b"\n"):
                        break  # the write that was interrupted
                    complete += len(line)
                    self._known.update(_number(line))
            if self._path.is_file():  # not a pipe
                self._file.truncate(complete)

    def write(self, errors: Sequence[LineError]) -> None:
        new = [error for error in errors if error.line not in self._known]
        with _named(self._path):
            self._file.write(b"".join(json.dumps(as_json(e)).encode() + b"\n" for e in new))
            self._file.flush()
            if self._path.is_file():
                os.fsync(self._file.fileno())
        self._known.update(error.line for error in new)


def _number(line: bytes) -> Iterable[int]:
    try:
        return [int(json.loads(line)["line"])]
    except (ValueError, KeyError, TypeError):
        return []
