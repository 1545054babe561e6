"""Starts a server, and waits until it accepts connections."""

import os
import time
from contextlib import suppress
from pathlib import Path

from agentmem_site.embedded.account import run_as
from agentmem_site.embedded.binaries import binaries
from agentmem_site.embedded.cluster import make_cluster
from agentmem_site.embedded.configuration import write_configuration
from agentmem_site.embedded.errors import ServerFailure, ServerTimeout
from agentmem_site.embedded.files import make_folder, open_file, write
from agentmem_site.embedded.folder import Folder, Say
from agentmem_site.embedded.log import failure
from agentmem_site.embedded.process import Postmaster, is_alive

_SAY_EVERY_S = 4.0
_NO_PID = 2**31 - 1  # above every kernel's pid_max


def bring_up(folder: Folder, lock: int, deadline: float, say: Say) -> bool:
    """Creates the cluster if there is none, and starts it. True if this call started it.

    Raises: DataDirectoryRefusal, ServerFailure, ServerTimeout.
    """
    postmaster = Postmaster(folder.pgdata)
    if not folder.pgdata.exists():
        make_cluster(folder, lock, say)
    is_waiting = False
    while True:
        server = postmaster.find()
        if server and server[1] == "stopping":
            if not postmaster.end(server[0], None, timeout_s=deadline - time.monotonic()):
                raise ServerTimeout(f"PostgreSQL (pid {server[0]}) has not finished stopping.")
            continue
        pid = server[0] if server else _spawn(folder)
        try:
            _await_ready(folder, postmaster, pid, deadline, say)
            return not server
        except ServerFailure as error:
            if server or postmaster.find():  # not started here: look again
                continue
            has_orphans = "pre-existing shared memory block" in str(error)
            if not has_orphans or time.monotonic() > deadline:
                raise
            if not is_waiting:
                say("Waiting for the last processes of a killed PostgreSQL to exit")
            is_waiting = True
            time.sleep(0.5)


def _await_ready(
    folder: Folder, postmaster: Postmaster, pid: int, deadline: float, say: Say
) -> None:
    started = last_said = time.monotonic()
    while not postmaster.is_ready:
        now = time.monotonic()
        doing = "starting" if postmaster.was_shut_down else "recovering after a crash"
        if not is_alive(pid):
            message = f"PostgreSQL exited while it was {doing}. The log: {folder.log}."
            raise failure(folder.log, message)
        if now > deadline:
            raise ServerTimeout(
                f"PostgreSQL is still {doing} after {now - started:.0f} s. It continues by itself "
                f"(pid {pid}): start again later, or look into {folder.log}."
            )
        if now - last_said >= _SAY_EVERY_S:
            last_said = now
            say(f"PostgreSQL is {doing}; {now - started:.0f} s so far")
        time.sleep(0.02)


def _spawn(folder: Folder) -> int:
    """Starts a server in its own session, as no child of this process. Returns its pid."""
    folder.forget_prepared()
    _clean_up(folder)
    if not folder.host.startswith("@"):
        make_folder(Path(folder.host), folder.account)
    write_configuration(folder)
    with open_file(folder.log, os.O_WRONLY | os.O_APPEND) as log:
        # The shell exits at once, so that the server is a child of init and never our zombie.
        shell = ["/bin/sh", "-c", '"$@" >&2 & echo $!', "sh"]
        postgres = binaries(folder.version) / "postgres"
        spawned = run_as(
            folder.account,
            [*shell, postgres, "-D", folder.pgdata],
            needs=[postgres, folder.root],
            stderr=log,
        )
    if spawned.returncode:
        raise failure(folder.log, "PostgreSQL cannot be run.")
    return int(spawned.stdout)


def _clean_up(folder: Folder) -> None:
    """Removes the recorded pid and the sockets of a killed server: PostgreSQL takes a zombie, or
    any process with that pid, for a running server. The shared memory key in postmaster.pid must
    stay: PostgreSQL needs it to detect orphaned backends.
    """
    path = folder.pgdata / "postmaster.pid"
    with suppress(FileNotFoundError):
        lines = path.read_text(errors="replace").splitlines()
        if len(lines) > 1:
            write(path, "\n".join([str(_NO_PID), *lines[1:], ""]))
        else:
            path.unlink()
    for socket in (folder.root / "run").glob(".s.PGSQL.*"):
        socket.unlink()
