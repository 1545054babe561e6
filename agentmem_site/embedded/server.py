"""The interface of an embedded PostgreSQL."""

import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentmem_site.embedded import binaries
from agentmem_site.embedded.errors import EmbeddedError, ServerTimeout, plain_refusals
from agentmem_site.embedded.files import size_bytes
from agentmem_site.embedded.folder import MB, PORT, ROLES, SUPERUSER, Folder, Say
from agentmem_site.embedded.log import ServerLog
from agentmem_site.embedded.process import Postmaster
from agentmem_site.embedded.starting import bring_up

Prepare = Callable[[dict[str, Any]], None]

_log = logging.getLogger("agentmem.embedded")
_STUCK_S = 20  # PostgreSQL itself waits 5 s for a stuck process


@dataclass(frozen=True)
class Status:
    state: str  # absent, stopped, starting, recovering, running, stopping
    pid: int | None
    version: str | None  # major version of the data
    data_dir: Path
    size_bytes: int


@dataclass(frozen=True)
class Server:
    """One embedded PostgreSQL. Creating a Server object changes nothing."""

    data_dir: Path
    version: int = 18
    log_max_bytes: int = 16 * MB
    log_days: float = 14  # no line of the log is kept for longer

    @property
    def root(self) -> Path:
        return Path(self.data_dir).resolve()

    @property
    def folder(self) -> Folder:
        return Folder(self.root, self.version)

    @property
    def pgdata(self) -> Path:
        return self.folder.pgdata

    @property
    def postmaster(self) -> Postmaster:
        return Postmaster(self.pgdata)

    @property
    def binaries(self) -> Path:
        """The folder of postgres, initdb, psql, pg_dump. Raises: EmbeddedError."""
        return binaries.binaries(self.version)

    def connection(self, role: str = "agentmem_app", database: str = "agentmem") -> dict[str, Any]:
        """Django's connection settings, also for a server that was never started.

        Creates the folder and secrets.json on first use, nothing else.
        """
        if role not in ROLES:
            raise EmbeddedError(f"No role {role!r}: choose one of {', '.join(ROLES)}.")
        return {
            "NAME": database,
            "USER": role,
            "PASSWORD": self.folder.passwords()[role],
            "HOST": self.folder.host,
            "PORT": PORT,
        }

    def bound_log(self) -> None:
        """Keeps the server's log within its limits. Costs three file reads; never fails."""
        ServerLog(self.folder.log, self.log_max_bytes, self.log_days).bound()

    def start(
        self, *, prepare: Prepare | None = None, say: Say = _log.info, timeout_s: float = 600
    ) -> bool:
        """Starts the server if needed, and returns when it accepts connections. True if this call
        started it.

        `prepare` gets the superuser's connection after each start, and whenever it has not yet
        completed for this version. Its exceptions pass through; the next start repeats it. If the
        server is running and prepared, this costs a few file reads. Any number of processes may
        call it at once.

        Raises: DataDirectoryRefusal, ServerFailure, ServerTimeout.
        """
        folder = self.folder
        with plain_refusals(self.root):
            folder.check()
            self.bound_log()
            if self.postmaster.is_ready and (prepare is None or folder.is_prepared):
                return False
        folder.passwords()
        deadline = time.monotonic() + timeout_s
        with folder.locked(deadline, say) as lock:
            with plain_refusals(self.root):
                started = not self.postmaster.is_ready and bring_up(folder, lock, deadline, say)
            if prepare and not (self.postmaster.is_ready and folder.is_prepared):
                prepare(self.connection(SUPERUSER, SUPERUSER))
                with plain_refusals(self.root):
                    folder.note_prepared()
        return started

    def stop(self, *, say: Say = _log.info, timeout_s: float = 60) -> bool:
        """Stops the server, and rolls back open transactions. True if this call stopped it.

        Raises: DataDirectoryRefusal, ServerTimeout.
        """
        with plain_refusals(self.root):
            if not self.root.exists():
                return False
            self.folder.check()
        deadline = time.monotonic() + timeout_s
        with self.folder.locked(deadline, say), plain_refusals(self.root):
            server = self.postmaster.find()
            if server is None:
                return False
            pid, _ = server
            if not self.postmaster.end(pid, signal.SIGINT, timeout_s=timeout_s):
                say(f"PostgreSQL did not stop in {timeout_s:.0f} s: stopping it immediately")
                if not self.postmaster.end(pid, signal.SIGQUIT, timeout_s=_STUCK_S):
                    raise ServerTimeout(f"PostgreSQL (pid {pid}) does not stop.")
            return True

    def status(self) -> Status:
        with plain_refusals(self.root):
            if not self.pgdata.exists():
                return Status("absent", None, None, self.root, 0)
            self.folder.check()
            version = (self.pgdata / "PG_VERSION").read_text().strip()
            pid, state = self.postmaster.state()
            return Status(state, pid, version, self.root, size_bytes(self.root))
