"""Starting a server, and waiting until it accepts connections."""

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
    """Makes the cluster if there is none and starts it; True when this call started it.

    Raises: DataDirectoryRefusal, ServerFailure, ServerTimeout.
    """
    postmaster = Postmaster(folder.pgdata)
    if not folder.pgdata.exists():
        make_cluster(folder, lock, say)
    said_orphans = False
    while True:
        found = postmaster.find()
        if found and found[1] == "stopping":
            if not postmaster.end(found[0], None, timeout_s=deadline - time.monotonic()):
                raise ServerTimeout(f"PostgreSQL (pid {found[0]}) has not finished stopping.")
            continue
        pid = found[0] if found else _spawn(folder)
        try:
            _await_ready(folder, postmaster, pid, deadline, say)
            return not found
        except ServerFailure as error:
            if found or postmaster.find():  # somebody else's: look at what is there now
                continue
            orphans = "pre-existing shared memory block" in str(error)
            if not orphans or time.monotonic() > deadline:
                raise
            if not said_orphans:
                say("Waiting for the last processes of a killed PostgreSQL to end")
            said_orphans = True
            time.sleep(0.5)


def _await_ready(
    folder: Folder, postmaster: Postmaster, pid: int, deadline: float, say: Say
) -> None:
    begun = spoken = time.monotonic()
    while not postmaster.is_ready:
        now = time.monotonic()
        doing = "starting" if postmaster.was_shut_down else "recovering after a crash"
        if not is_alive(pid):
            what = f"PostgreSQL ended while it was {doing}. The log: {folder.log}."
            raise failure(folder.log, what)
        if now > deadline:
            raise ServerTimeout(
                f"PostgreSQL is still {doing} after {now - begun:.0f} s. It goes on by itself "
                f"(pid {pid}): start again later, or look into {folder.log}."
            )
        if now - spoken >= _SAY_EVERY_S:
            spoken = now
            say(f"PostgreSQL is {doing}; {now - begun:.0f} s so far")
        time.sleep(0.02)


def _spawn(folder: Folder) -> int:
    """The pid of a new server, in a session of its own and nobody's child."""
    folder.forget_prepared()
    _clear_remains(folder)
    if not folder.host.startswith("@"):
        make_folder(Path(folder.host), folder.account)
    write_configuration(folder)
    with open_file(folder.log, os.O_WRONLY | os.O_APPEND) as log:
        # The shell ends at once, so the server is init's child and no zombie of ours.
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


def _clear_remains(folder: Folder) -> None:
    """Clears what a killed server left, for PostgreSQL takes a zombie or any process with the
    recorded pid for a running server. The shared memory key in postmaster.pid must stay: by that it
    waits for orphaned backends.
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
