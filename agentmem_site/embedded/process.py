"""The server process of a folder: finding it, its state, stopping it."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# Source: DBState in PostgreSQL's catalog/pg_control.h, the int at byte 16 of global/pg_control.
_SHUT_DOWN, _IN_PRODUCTION = 1, 6


@dataclass(frozen=True)
class Postmaster:
    pgdata: Path

    def find(self) -> tuple[int, str] | None:
        """(pid, starting | ready | stopping) of the running server of this folder."""
        try:
            lines = (self.pgdata / "postmaster.pid").read_text(errors="replace").splitlines()
            pid = int(lines[0])
        except (FileNotFoundError, IndexError, ValueError):
            return None
        if not self._is_ours(pid):
            return None
        state = lines[-1].strip()  # at first, this is another line
        return pid, state if state in ("ready", "stopping") else "starting"

    @property
    def is_ready(self) -> bool:
        # After the crash of a backend, the server recovers while the file still says "ready".
        server = self.find()
        return bool(server and server[1] == "ready" and self._control_state() == _IN_PRODUCTION)

    @property
    def was_shut_down(self) -> bool:
        """Whether the cluster needs no recovery."""
        return self._control_state() == _SHUT_DOWN

    def state(self) -> tuple[int | None, str]:
        """(pid, stopped | starting | recovering | running | stopping)"""
        pid, state = self.find() or (None, "stopped")
        if state == "ready":
            state = "running" if self._control_state() == _IN_PRODUCTION else "recovering"
        elif state == "starting" and not self.was_shut_down:
            state = "recovering"
        return pid, state

    def end(self, pid: int, number: signal.Signals | None, *, timeout_s: float) -> bool:
        """Sends the signal, if any. True if the server exits in time."""
        if number is not None and self._is_ours(pid):
            os.kill(pid, number)
        deadline = time.monotonic() + timeout_s
        while self._is_ours(pid):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def _is_ours(self, pid: int) -> bool:
        """Whether this process is running and serves this folder: no zombie and no reused pid."""
        command = _command(pid)
        if command is None:
            return False
        if command.endswith(f"/postgres -D {self.pgdata}"):
            return True
        with suppress(OSError):  # started by hand with another path to the folder
            is_server = re.match(r"(\S*/)?postgres( |$)", command) is not None
            return is_server and Path(f"/proc/{pid}/cwd").samefile(self.pgdata)
        return False

    def _control_state(self) -> int:
        control = (self.pgdata / "global" / "pg_control").read_bytes()
        return int.from_bytes(control[16:20], sys.byteorder)


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    return _command(pid) is not None


def _command(pid: int) -> str | None:
    """The command line, joined by spaces; None if there is no such process or it is a zombie."""
    if Path("/proc/self/stat").exists():
        try:
            # The name in parentheses may itself contain parentheses and spaces.
            state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return None
        if state in b"ZX":
            return None
        return os.fsdecode(arguments.rstrip(b"\0").replace(b"\0", b" "))
    ps = ["/bin/ps", "-ww", "-o", "stat=,command=", "-p", str(pid)]
    output = subprocess.run(ps, capture_output=True, check=False).stdout  # noqa: S603 - ours
    stat, _, command = os.fsdecode(output).strip().partition(" ")
    return None if not stat or stat.startswith("Z") else command.strip()
