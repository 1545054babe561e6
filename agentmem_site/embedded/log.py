"""The server's log: its limits of size and age, and the errors in it."""

import fcntl
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from agentmem_site.embedded.errors import DiskFull, ServerFailure
from agentmem_site.embedded.files import open_file, tail, write

_STAMP = re.compile(rb"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)", re.MULTILINE)  # log_timezone is UTC


@dataclass(frozen=True)
class ServerLog:
    path: Path
    max_bytes: int
    days: float  # no line is kept for longer

    def bound(self) -> None:
        """Moves a log away that is too large or too old, and removes the previous one in time.

        The server appends, so it continues at the new end. Costs three file reads; called by every
        new connection. If it fails (a full disk), the next connection tries again.
        """
        previous = self.path.with_name(f"{self.path.name}.1")
        with suppress(OSError):
            if previous.exists() and time.time() - previous.stat().st_mtime > self._half_s:
                previous.unlink()
        with suppress(OSError):
            if self.path.exists() and self._is_due():
                with open_file(self.path, os.O_RDWR) as log:
                    fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if self._is_due():  # no other process has moved it meanwhile
                        write(previous, tail(log, self.max_bytes))
                        log.truncate(0)

    @property
    def _half_s(self) -> float:
        """A line spends half of its days in this file, the other half in the one before."""
        return self.days * 24 * 3600 / 2

    def _is_due(self) -> bool:
        status = self.path.stat()
        if status.st_size > self.max_bytes:
            return True
        with open_file(self.path, os.O_RDONLY) as log:
            stamp = _STAMP.search(log.read(4096))
        started_s = status.st_mtime
        if stamp:
            started = datetime.fromisoformat(stamp[1].decode()).replace(tzinfo=UTC)
            started_s = started.timestamp()
        return status.st_size > 0 and time.time() - started_s > self._half_s


def failure(path: Path, message: str, output: bytes = b"") -> ServerFailure:
    """The failure with the last lines of the output or, without one, of the log."""
    if not output:
        with open_file(path, os.O_RDONLY) as log:
            output = tail(log, 4096)
    lines = "\n".join(output.decode(errors="replace").strip().splitlines()[-8:])
    if "No space left on device" in lines:
        message += f" The disk of {path.parent} is full: free some space and start again."
        return DiskFull(f"{message}\n{lines}")
    return ServerFailure(f"{message}\n{lines}")
