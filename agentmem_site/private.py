"""Files and folders that are their owner's alone, whatever the umask: what people said, secrets.

Whatever this project writes to a disk is opened here.
"""

import os
import stat
from pathlib import Path
from typing import IO, Any

FILE, FOLDER = 0o600, 0o700
PASSAGE = 0o711  # others may pass through to what they know of, and list or write nothing


def open_private(path: Path, mode: str) -> IO[Any]:
    """`path.open(mode)` of a file of 0600, also where it was there already with more.

    Not of a pipe or a device. Raises: OSError; PermissionError too where it is another user's, who
    alone could close it.
    """
    return open(path, mode, opener=descriptor)


def descriptor(path: "str | Path", flags: int) -> int:
    """`os.open` in the same way. Raises: OSError."""
    fd = os.open(path, flags, FILE)
    try:
        found = os.fstat(fd)
        # More than one name: it may be somebody's trap for root.
        is_safe = os.geteuid() != 0 or found.st_nlink == 1
        if stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) & ~FILE and is_safe:
            os.fchmod(fd, FILE)
    except BaseException:
        os.close(fd)
        raise
    return fd


def make_folder(path: Path, mode: int = FOLDER) -> None:
    """The folder and those above it, as far as they are missing. One that is there stays as it is:
    somebody else has settled who may enter it. Raises: OSError."""
    for folder in (*reversed(path.parents), path):
        if folder.is_dir():
            continue
        try:
            folder.mkdir(mode)
        except FileExistsError:  # made by another process just now, or no folder
            if not folder.is_dir():
                raise
        else:
            folder.chmod(mode)  # the umask may have taken from it
