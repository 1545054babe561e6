"""The account that PostgreSQL runs as. It refuses to run as root, so root must choose another."""

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from agentmem_site.embedded.errors import DataDirectoryRefusal, EmbeddedError, ServerFailure

Account = tuple[int, int]  # uid, gid

# The server does not get the caller's PGHOST, PGOPTIONS, LC_MESSAGES or LD_LIBRARY_PATH.
_ENVIRONMENT = {"LC_ALL": "C", "TZ": "UTC", "PATH": os.defpath}


def account_for(*folders: Path) -> Account | None:
    """The account for the server: the first owner of `folders` that is not root, or else postgres
    or nobody. None: that of this process. Raises: EmbeddedError."""
    if os.geteuid() != 0:
        return None
    for folder in folders:
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


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def run_as(
    account: Account | None, command: list[Any], *, needs: Sequence[Path], **how: Any
) -> subprocess.CompletedProcess[bytes]:
    """Runs the command in a session of its own, and returns it completed. `needs` are the programs
    that it executes and the folders that it enters. Raises: ServerFailure, DataDirectoryRefusal."""
    if account:
        closed = [step for path in needs for step in _closed(path, account)]
        if closed:
            command = [*_passing(closed, account), *command]
        else:
            how |= {"user": account[0], "group": account[1], "extra_groups": []}
    try:
        return subprocess.run(  # noqa: S603 - absolute paths of ours
            [str(argument) for argument in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=_ENVIRONMENT,
            cwd="/",
            start_new_session=True,
            check=False,
            **how,
        )
    except OSError as error:
        user = user_name(account[0] if account else os.geteuid())
        raise ServerFailure(
            f"{command[0]} cannot be run as {user} ({error.strerror}): run AgentMem as an "
            "ordinary user, or set DATABASE_URL to a server of your own."
        ) from error


def _closed(path: Path, account: Account) -> list[Path]:
    """The folders on the path, and the program itself, that the account may not enter or run."""
    closed = []
    for step in (*reversed(path.parents), path):
        status = step.stat()
        shift = 6 if status.st_uid == account[0] else 3 if status.st_gid == account[1] else 0
        if not status.st_mode >> shift & 1:
            closed.append(step)
    return closed


def _passing(closed: list[Path], account: Account) -> list[str]:
    """The command prefix that runs a program as the account and lets it enter closed folders.

    It keeps one of root's capabilities: to search and read everything or, if the program itself is
    closed, to override all permissions. Without no_setuid_fixup, access(2) would ignore it, by
    which PostgreSQL looks for its own programs.
    """
    setpriv = shutil.which("setpriv")
    held = 0
    with suppress(FileNotFoundError):
        held = int(re.findall(r"CapPrm:\s*(\w+)", Path("/proc/self/status").read_text())[0], 16)
    reading = {"dac_read_search": 2} if all(step.is_dir() for step in closed) else {}
    for name, bit in (reading | {"dac_override": 1}).items():
        needed = 1 << bit | 1 << 8  # 8 is setpcap
        if setpriv and held & needed == needed:
            options = f"--reuid={account[0]} --regid={account[1]} --clear-groups --no-new-privs"
            for capabilities in ("inh-caps", "ambient-caps", "bounding-set"):
                options += f" --{capabilities}=-all,+{name}"
            return [setpriv, *options.split(), "--securebits=+no_setuid_fixup"]
    raise DataDirectoryRefusal(
        f"As root, PostgreSQL runs as {user_name(account[0])}, who may not enter {closed[0]}: "
        "set AGENTMEM_DATA_DIR to (and install AgentMem in) a folder that others may enter, such "
        "as one in /var/lib or /opt, or run AgentMem as an ordinary user."
    )
