"""The account that PostgreSQL runs as. It refuses to run as root, so root has to lend one."""

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

# Nothing of the caller's PGHOST, PGOPTIONS, LC_MESSAGES, LD_LIBRARY_PATH reaches the server.
_ENVIRONMENT = {"LC_ALL": "C", "TZ": "UTC", "PATH": os.defpath}


def account_for(*folders: Path) -> Account | None:
    """Whom to run the server as: the first owner of `folders` who is not root, or else postgres or
    nobody. None: as this process. Raises: EmbeddedError."""
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
    """The finished command, run away from the terminal. `needs` are the programs that it executes
    and the folders that it enters. Raises: ServerFailure, DataDirectoryRefusal."""
    if account:
        closed = [step for path in needs for step in _closed(path, account)]
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
        user = user_name(account[0] if account else os.geteuid())
        raise ServerFailure(
            f"{command[0]} cannot be run as {user} ({error.strerror}): run AgentMem as an "
            "ordinary user, or set DATABASE_URL to a server of your own."
        ) from error


def _closed(path: Path, account: Account) -> list[Path]:
    """The folders on the way, and the program itself, that the account may not pass."""
    closed = []
    for step in (*reversed(path.parents), path):
        found = step.stat()
        shift = 6 if found.st_uid == account[0] else 3 if found.st_gid == account[1] else 0
        if not found.st_mode >> shift & 1:
            closed.append(step)
    return closed


def _passing(closed: list[Path], account: Account) -> list[str]:
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
        f"As root, PostgreSQL runs as {user_name(account[0])}, who may not pass {closed[0]}: "
        "set AGENTMEM_DATA_DIR (and install AgentMem) where others may pass, such as /var/lib or "
        "/opt, or run AgentMem as an ordinary user."
    )
