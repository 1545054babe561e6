"""Files of the data directory: private, written completely or not at all, owned by its owner."""

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import IO

from agentmem_site import private


def open_file(path: Path, flags: int) -> IO[bytes]:
    """Opens a file. A new one is private and belongs to the owner of its folder."""
    fd = private.descriptor(path, flags | os.O_CREAT | os.O_NOFOLLOW)
    file = os.fdopen(fd, "r+b" if flags & os.O_RDWR else "wb" if flags & os.O_WRONLY else "rb")
    if os.geteuid() == 0 and os.fstat(fd).st_nlink == 1:  # a second hard link may be an attack
        owner = path.parent.stat()
        os.fchown(fd, owner.st_uid, owner.st_gid)
    return file


def write(path: Path, content: str | bytes, *, replace: bool = True) -> None:
    """Writes a private file completely or not at all. `replace=False` keeps an existing one."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    try:
        with open_file(temporary, os.O_WRONLY | os.O_EXCL) as file:
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


def make_folder(path: Path, account: tuple[int, int] | None) -> None:
    path.mkdir(mode=private.FOLDER, exist_ok=True)
    if account:
        os.chown(path, *account, follow_symlinks=False)


def tail(file: IO[bytes], max_bytes: int) -> bytes:
    file.seek(max(0, file.seek(0, os.SEEK_END) - max_bytes))
    return file.read()


def size_bytes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # removed meanwhile
                total += os.lstat(os.path.join(parent, name)).st_size  # noqa: PTH118 - speed
    return total
