"""The server's log: how large and how old it may get, and what it says of a failure."""

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
        """Moves a log away that is too long or too old, and removes the one before it in time.

        The server appends, so it goes on at the new end. Costs three file reads; whoever connects
        calls it. What hinders it (a full disk) hinders nobody: the next one tries again.
        """
        before = self.path.with_name(f"{self.path.name}.1")
        with suppress(OSError):
            if before.exists() and time.time() - before.stat().st_mtime > self._half_s:
                before.unlink()
        with suppress(OSError):
            if self.path.exists() and self._is_due():
                with open_file(self.path, os.O_RDWR) as log:
                    fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if self._is_due():  # nobody else has moved it meanwhile
                        write(before, tail(log, self.max_bytes))
                        log.truncate(0)

    @property
    def _half_s(self) -> float:
        """A line spends half of its days in this file, the other half in the one before."""
        return self.days * 24 * 3600 / 2

    def _is_due(self) -> bool:
        found = self.path.stat()
        if found.st_size > self.max_bytes:
            return True
        with open_file(self.path, os.O_RDONLY) as log:
            stamp = _STAMP.search(log.read(4096))
        begun_s = found.st_mtime
        if stamp:
            begun = datetime.fromisoformat(stamp[1].decode()).replace(tzinfo=UTC)
            begun_s = begun.timestamp()
        return found.st_size > 0 and time.time() - begun_s > self._half_s


def failure(path: Path, what: str, said: bytes = b"") -> ServerFailure:
    """The failure with the last lines of what was said; where that is nothing, of the log."""
    if not said:
        with open_file(path, os.O_RDONLY) as log:
            said = tail(log, 4096)
    lines = "\n".join(said.decode(errors="replace").strip().splitlines()[-8:])
    if "No space left on device" in lines:
        what += f" The disk of {path.parent} is full: free some space and start again."
        return DiskFull(f"{what}\n{lines}")
    return ServerFailure(f"{what}\n{lines}")
