"""The data directory: its owner, its contents, its passwords and its lock.

secrets.json   passwords of the three roles    server.log   the server's log; .1 is the older one
pgdata/        the cluster                     run/         its Unix socket
lock           locked while a process starts or stops the server
prepared       the release for which `prepare` last completed
"""

import fcntl
import hashlib
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from agentmem_site import private
from agentmem_site.embedded.account import Account, account_for, user_name
from agentmem_site.embedded.binaries import release
from agentmem_site.embedded.errors import DataDirectoryRefusal, ServerTimeout, plain_refusals
from agentmem_site.embedded.files import open_file, write

SUPERUSER = "postgres"
ROLES = (SUPERUSER, "agentmem_owner", "agentmem_app")
PORT = "5432"  # only a part of the socket's name
MB = 1024 * 1024

Say = Callable[[str], None]


@dataclass(frozen=True)
class Folder:
    root: Path
    version: int

    @property
    def pgdata(self) -> Path:
        return self.root / "pgdata"

    @property
    def log(self) -> Path:
        return self.root / "server.log"

    @property
    def account(self) -> Account | None:
        """Raises: EmbeddedError."""
        return account_for(self.pgdata, self.root)

    @property
    def host(self) -> str:
        """Where clients find the socket.

        sun_path holds 107 bytes (macOS: 103), and libpq splits hosts at commas. If the path does
        not fit, the socket is in Linux's abstract namespace. That has no permissions: only the
        password protects it. The colon keeps psycopg (3.3) from asking DNS for the name.
        """
        folder = str(self.root / "run")
        fits = len(os.fsencode(f"{folder}/.s.PGSQL.{PORT}")) <= 103
        if fits and folder.isprintable() and "," not in folder:
            return folder
        if not sys.platform.startswith("linux"):
            raise DataDirectoryRefusal(
                f"{self.root} is too long a path (or has a comma) for a Unix socket: "
                "set AGENTMEM_DATA_DIR to a shorter one."
            )
        return "@:agentmem-" + hashlib.sha256(os.fsencode(self.root)).hexdigest()[:32]

    def check(self) -> None:
        """Refuses a folder that is another user's or has other contents."""
        root = self.root
        if not root.exists():
            return
        if not root.is_dir():
            raise DataDirectoryRefusal(f"{root} is not a folder: set AGENTMEM_DATA_DIR to one.")
        owner, user = root.stat().st_uid, os.geteuid()
        if user not in (0, owner):
            raise DataDirectoryRefusal(
                f"{root} belongs to {user_name(owner)} and this process is {user_name(user)}: "
                f"run it as {user_name(owner)}, or set AGENTMEM_DATA_DIR to a folder of your own."
            )
        # Listed once: another process may be creating the folder, and secrets.json comes first.
        names = {path.name for path in root.iterdir()}
        if "secrets.json" not in names:
            if "pgdata" in names:
                raise DataDirectoryRefusal(
                    f"{root}/secrets.json is missing, so nobody can sign in to the database: "
                    "restore that file from a backup."
                )
            if not all(name.endswith(".new") or name == "lost+found" for name in names):
                raise DataDirectoryRefusal(
                    f"{root} is not empty and has no embedded server: "
                    "set AGENTMEM_DATA_DIR to an empty or a new folder."
                )
        with suppress(FileNotFoundError):
            version = (self.pgdata / "PG_VERSION").read_text().strip()
            if version != str(self.version):
                raise DataDirectoryRefusal(
                    f"{root} has data of PostgreSQL {version} and this is PostgreSQL "
                    f"{self.version}: dump it with the old version and load it into a new "
                    "folder, or set AGENTMEM_DATA_DIR to another one."
                )

    def passwords(self) -> dict[str, str]:
        """The passwords by role. Creates them if there are none."""
        path = self.root / "secrets.json"
        with plain_refusals(self.root):
            if not os.access(path, os.R_OK):
                self.check()
                if not self.root.exists():
                    # The server's account may pass through; secrets in it have their own modes.
                    private.make_folder(self.root, private.PASSAGE)
                new = {role: secrets.token_urlsafe(32) for role in ROLES}
                write(path, json.dumps(new, indent=1) + "\n", replace=False)
            try:
                return dict(json.loads(path.read_text()))
            except ValueError as error:
                raise DataDirectoryRefusal(
                    f"{path} is damaged: restore that file from a backup."
                ) from error

    @contextmanager
    def locked(self, deadline: float, say: Say) -> Iterator[int]:
        """Holds the lock, so that only one process starts or stops the server. Yields the lock
        file's descriptor.

        Raises: ServerTimeout.
        """
        with plain_refusals(self.root):
            file = open_file(self.root / "lock", os.O_RDWR)
        with file:
            is_waiting = False
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise ServerTimeout(
                            "Another process is still starting or stopping PostgreSQL in "
                            f"{self.root}: wait for it, then try again."
                        ) from None
                    if not is_waiting:
                        say("Waiting for another process that starts or stops PostgreSQL")
                    is_waiting = True
                    time.sleep(0.05)
            yield file.fileno()

    @property
    def is_prepared(self) -> bool:
        """Whether `prepare` has completed for this release; an upgrade repeats it."""
        with suppress(FileNotFoundError):
            return (self.root / "prepared").read_text() == release(self.version)
        return False

    def note_prepared(self) -> None:
        write(self.root / "prepared", release(self.version))

    def forget_prepared(self) -> None:
        (self.root / "prepared").unlink(missing_ok=True)
