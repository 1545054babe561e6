"""PostgreSQL for people who run none: binaries from PyPI, everything else in one folder.

server.py       Server: connection, start, stop, status
folder.py       the data directory: its owner, its contents, passwords, the lock
binaries.py     where PostgreSQL's programs are
cluster.py      creating a cluster
configuration.py   PostgreSQL's settings for this machine
starting.py     starting a server, and waiting for it
process.py      the server process: finding it, its state, stopping it
account.py      the account that it runs as, and root's access to closed folders
log.py          the server's log
files.py, errors.py

There is no TCP port. If AgentMem runs as root, the server runs as the owner of the folder or, if
that is root, as `postgres` or `nobody`, who then owns only pgdata/ and run/.
"""

from agentmem_site.embedded.errors import (
    DataDirectoryRefusal,
    DiskFull,
    EmbeddedError,
    ServerFailure,
    ServerTimeout,
)
from agentmem_site.embedded.folder import ROLES, SUPERUSER
from agentmem_site.embedded.server import Server, Status

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
