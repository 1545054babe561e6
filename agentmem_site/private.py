"""Files and folders that only their owner can read, whatever the umask: they have data and secrets.

Everything that this project writes to a disk is opened here.
"""

import os
import stat
from pathlib import Path
from typing import IO, Any

FILE, FOLDER = 0o600, 0o700
PASSAGE = 0o711  # others may pass through, but not list or write


def open_private(path: Path, mode: str) -> IO[Any]:
    """`path.open(mode)` with file mode 0600. An existing file loses further permissions; pipes and
    devices stay as they are.

    Raises: OSError; PermissionError if another user owns the file.
    """
    return open(path, mode, opener=descriptor)


def descriptor(path: "str | Path", flags: int) -> int:
    """`os.open`, likewise. Raises: OSError."""
    fd = os.open(path, flags, FILE)
    try:
        status = os.fstat(fd)
        # As root: a second hard link may be an attack.
        is_safe = os.geteuid() != 0 or status.st_nlink == 1
        if stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) & ~FILE and is_safe:
            os.fchmod(fd, FILE)
    except BaseException:
        os.close(fd)
        raise
    return fd


def make_folder(path: Path, mode: int = FOLDER) -> None:
    """Creates the folder and its missing parents. Existing ones keep their permissions.

    Raises: OSError.
    """
    for folder in (*reversed(path.parents), path):
        if folder.is_dir():
            continue
        try:
            folder.mkdir(mode)
        except FileExistsError:  # another process has created it just now, or it is no folder
            if not folder.is_dir():
                raise
        else:
            folder.chmod(mode)  # the umask may have removed permissions
