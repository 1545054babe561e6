"""PostgreSQL's settings for this machine, which it shares with AgentMem."""

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from agentmem_site.db import quiet
from agentmem_site.embedded.files import write
from agentmem_site.embedded.folder import MB, PORT, Folder


def write_configuration(folder: Folder) -> None:
    """Writes agentmem.conf, at each start; postgresql.conf includes it."""
    free_bytes = shutil.disk_usage(folder.root).free
    lines = ["# Written at each start. Your own settings: postgresql.conf, below the include."]
    for name, value in settings(usable_memory(), free_bytes, folder.host).items():
        lines.append(f"{name} = {_quoted(value)}")
    write(folder.pgdata / "agentmem.conf", "\n".join([*lines, ""]))


def settings(memory_bytes: int, free_bytes: int, host: str) -> dict[str, str]:
    """PostgreSQL's settings for a machine of this size, which it shares with AgentMem."""

    def share(parts: int, least_mb: int, most_mb: int) -> str:
        return f"{min(max(memory_bytes // parts // MB, least_mb), most_mb)}MB"

    chosen = {
        "listen_addresses": "",
        "unix_socket_directories": '"' + host.replace('"', '""') + '"',
        "port": PORT,
        "unix_socket_permissions": "0700",
        "max_connections": "100",
        "shared_buffers": share(4, 32, 2048),
        "effective_cache_size": share(2, 64, 65536),
        "maintenance_work_mem": share(16, 32, 1024),
        "autovacuum_work_mem": share(32, 16, 256),
        "work_mem": share(512, 4, 32),
        "fsync": "on",
        "full_page_writes": "on",
        "wal_compression": "on",
        "max_wal_size": f"{min(max(free_bytes // 8 // MB, 128), 4096)}MB",
        "checkpoint_timeout": "15min",
        # For building the index of vectors: workers in addition to the leader.
        "max_parallel_maintenance_workers": str(max((os.cpu_count() or 1) - 1, 0)),
        "random_page_cost": "1.1",
        "jit": "off",
        "huge_pages": "off",  # if reserved but not granted to a container, they crash the server
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_line_prefix": "%m [%p] %u@%d ",
        "lc_messages": "C",  # starting.py reads the log
        **quiet.VALUES,
    }
    if sys.platform.startswith("linux"):
        # /dev/shm is 64 MB in containers, and logind empties it when an ordinary user logs out.
        chosen["dynamic_shared_memory_type"] = "sysv"
    return chosen


def usable_memory(root: Path = Path("/")) -> int:
    """Bytes of memory, or the control group's limit (v1 or v2) if that is less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(FileNotFoundError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            base, name = root / "sys/fs/cgroup", "memory.max"
            if controllers:
                base, name = base / "memory", "memory.limit_in_bytes"
            if controllers not in ("", "memory"):
                continue
            leaf = base / group.lstrip("/")
            for folder in (leaf, *leaf.parents):
                with suppress(OSError, ValueError):  # no such file, or "max"
                    limits.append(int((folder / name).read_text()))
    return min(limits)


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n") + "'"
