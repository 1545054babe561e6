"""Why the embedded PostgreSQL cannot be used."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class EmbeddedError(Exception):
    """The embedded PostgreSQL cannot be used."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or self.__doc__)


class DataDirectoryRefusal(EmbeddedError):
    """The data directory cannot be used."""


class ServerFailure(EmbeddedError):
    """PostgreSQL exited while it was starting."""


class DiskFull(DataDirectoryRefusal, ServerFailure, OSError):
    """The disk of the data directory is full. (An OSError with ENOSPC, as for any full disk.)"""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.errno = errno.ENOSPC


class ServerTimeout(EmbeddedError):
    """PostgreSQL did not answer in time."""


@contextmanager
def plain_refusals(root: Path) -> Iterator[None]:
    """Turns an OSError into one sentence with a remedy."""
    try:
        yield
    except EmbeddedError:
        raise
    except OSError as error:
        remedy = "fix that, or set AGENTMEM_DATA_DIR to another folder"
        refusal = DataDirectoryRefusal
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free some space and start again"
            refusal = DiskFull
        raise refusal(f"{error.filename or root}: {error.strerror or error}: {remedy}.") from error
