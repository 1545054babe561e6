"""The real server, on the tests' database, and clients that speak to it through sockets."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psycopg
from django.db import connection
from django.utils.http import urlencode
from psycopg import sql

ROOT = Path(__file__).resolve().parents[2]
MIB = 1024 * 1024


class _Running:
    """A server in a process of its own."""

    port: int

    def __init__(self, folder: Path, arguments: list[str], environment: dict[str, str]) -> None:
        self.log = folder / "server.log"
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until(self._answers, "the server answers")

    def _answers(self) -> bool:
        assert self._process.poll() is None, self.log.read_text()
        try:
            socket.create_connection(("127.0.0.1", self.port)).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def workers(self) -> list[str]:
        """The ids of its processes that serve."""
        pid = self._process.pid
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()

    def peak_mib(self) -> int:
        """The most memory that its processes have held at once, each."""
        pids = [str(self._process.pid), *self.workers()]
        statuses = [Path(f"/proc/{p}/status").read_text() for p in pids]
        return max(int(re.search(r"VmHWM:\s+(\d+)", s)[1]) for s in statuses) // 1024


class Server(_Running):
    """`manage.py serve` on the tests' database, with two threads; settings by their names."""

    def __init__(self, folder: Path, *options: str, **environment: str) -> None:
        self.port = free_port()
        settings = connection.settings_dict
        host = f"{quote(settings['HOST'], safe='@')}:{settings['PORT']}"
        sign_in = f"{settings['USER']}:{settings['PASSWORD']}"
        environment["DATABASE_URL"] = f"postgres://{sign_in}@{host}/{settings['NAME']}"
        arguments = ["serve", f"--port={self.port}", "--threads=2", "--no-embed", *options]
        super().__init__(folder, ["manage.py", *arguments], environment)

    def lines(self) -> list[dict]:
        """What the log of the server has so far, of its lines of JSON."""
        said = self.log.read_text().splitlines()
        return [json.loads(line) for line in said if line.startswith("{")]

    def begin(self, key: str, path: str, framing: str, **query: object) -> socket.socket:
        """A request whose body is still to come."""
        sent = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        sent.sendall(
            f"POST /api/v1/{path}?{urlencode(query)} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"X-API-Key: {key}\r\nContent-Type: application/x-ndjson\r\n"
            f"Connection: close\r\n{framing}\r\n\r\n".encode()
        )
        return sent


class PlainServer(_Running):
    """The application of tests/serving/plain.py, which needs no database."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        arguments = ["-m", "granian", "--interface=rsgi", f"--port={self.port}"]
        super().__init__(folder, [*arguments, "tests.serving.plain:application"], {})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


CHUNKED = "Transfer-Encoding: chunked"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def answer(sent: socket.socket) -> tuple[int, dict]:
    with sent:
        received = b"".join(iter(lambda: sent.recv(MIB), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    if b"chunked" in head.lower():
        body = body.partition(b"\r\n")[2].rpartition(b"\r\n0")[0]
    return int(head.split()[1]), json.loads(body)


def until(is_so, what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"Waited in vain until {what}"
        time.sleep(0.05)


@contextmanager
def locked(table):
    """As somebody's ALTER TABLE would."""
    settings = connection.settings_dict
    with psycopg.connect(
        dbname=settings["NAME"],
        user=settings["USER"],
        password=settings["PASSWORD"],
        host=settings["HOST"],
        port=settings["PORT"],
    ) as other:
        lock = sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.Identifier(table))
        other.execute(lock)
        yield
        other.rollback()
