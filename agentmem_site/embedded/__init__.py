"""An own PostgreSQL for people who run none."""

from agentmem_site.embedded.server import (
    ROLES,
    SUPERUSER,
    DataDirectoryRefusal,
    DiskFull,
    EmbeddedError,
    Server,
    ServerFailure,
    ServerTimeout,
    Status,
)

__all__ = [
    "ROLES",
    "SUPERUSER",
    "DataDirectoryRefusal",
    "DiskFull",
    "EmbeddedError",
    "Server",
    "ServerFailure",
    "ServerTimeout",
    "Status",
]
