"""An own PostgreSQL for people who run none: binaries from PyPI, everything else below one folder.

server.py       Server: connection, start, stop, status
folder.py       the folder: whose it is, what lies in it, passwords, the lock
binaries.py     where PostgreSQL's programs are
cluster.py      making a cluster
configuration.py   PostgreSQL's settings for this machine
starting.py     starting a server, and waiting for it
process.py      the server process: whether there is one, what it does, how it ends
account.py      the account that it runs as, and root's way through closed folders
log.py          the server's log
files.py, errors.py

There is no TCP port. As root the server runs as the owner of the folder or, where that is root,
as `postgres` or `nobody`; only pgdata/ and run/ are made theirs.
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
