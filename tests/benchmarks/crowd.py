"""One client's requests beside crowds of clients that hold connections: 50 of each kind.

The client sends a request 20 ms after each response, on its own connection, in its own process.
The members of a crowd reconnect as soon as they are disconnected.
"""

import http.client
import json
import multiprocessing
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from statistics import quantiles

from accounts.actors import command_actor
from accounts.roles import ALL_PERMISSIONS
from accounts.services.keys import issue_key
from accounts.services.organizations import organizations
from accounts.tenancy import platform, tenant
from agentmem_site.bulk import LoadOptions
from agentmem_site.samples import lines
from agentmem_site.services.loads import run_load
from tests.benchmarks.adding import numbered, served
from tests.serving.server import locked

ACTOR = command_actor("benchmark")
CROWD = 50
SECONDS = 10.0
PAUSE_S = 0.02
USERS, MEMORIES = 2000, 1000

Answers = Counter[str]


class Crowd:
    """`CROWD` clients with the same behaviour, until `end` is called."""

    def __init__(self, port: int, key: str, behaviour: "Behaviour") -> None:
        self.port = port
        self.key = key
        self.answers: Answers = Counter()
        self.stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._come, args=(behaviour,), daemon=True)
            for _ in range(CROWD)
        ]
        for thread in self._threads:
            thread.start()

    def _come(self, behaviour: "Behaviour") -> None:
        while not self.stop.wait(0.1):
            with suppress(OSError), self.connection() as connection:
                status = behaviour(self, connection)
                if not self.stop.is_set():
                    self.answers[status] += 1

    @contextmanager
    def connection(self) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=120) as connection:
            yield connection

    def end(self) -> Answers:
        self.stop.set()
        return self.answers

    def trickle(self, connection: socket.socket, data: bytes, every_s: float) -> str:
        """Sends it repeatedly; returns the status of a response that arrives meanwhile."""
        while not self.stop.is_set():
            connection.sendall(data)
            connection.settimeout(every_s)
            with suppress(TimeoutError):
                return connection.recv(4096)[9:12].decode() or "closed"
        return ""


Behaviour = Callable[[Crowd, socket.socket], str]


def stalled(crowd: Crowd, connection: socket.socket) -> str:
    """A chunked POST without a key: five bytes, then silence."""
    connection.sendall(
        b"POST /api/v1/memories HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"con\r\n'
    )
    status = connection.recv(4096)[9:12].decode()
    while not crowd.stop.is_set() and connection.recv(4096):
        pass
    return status


def endless_form(crowd: Crowd, connection: socket.socket) -> str:
    """A sign-in form that never ends, a byte a second."""
    connection.sendall(
        b"POST /admin/login/ HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\n\r\nusername="
    )
    return crowd.trickle(connection, b"a", 1)


def slow_upload(crowd: Crowd, connection: socket.socket) -> str:
    """A real upload over a slow connection: four users a second."""
    connection.sendall(
        b"POST /api/v1/users/bulk HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: %b\r\n"
        b"Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
        % crowd.key.encode()
    )
    line = b'{"external_id": "slow", "name": "Slow but honest"}\n'
    return crowd.trickle(connection, b"%x\r\n%b\r\n" % (len(line), line), 0.25)


def locked_out(crowd: Crowd, connection: socket.socket) -> str:
    """A request that waits for a table that an ALTER TABLE has locked."""
    connection.sendall(
        b"GET /api/v1/tools HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: %b\r\n\r\n"
        % crowd.key.encode()
    )
    return connection.recv(4096)[9:12].decode()


KINDS: dict[str, Behaviour] = {
    "stalled POST without a key": stalled,
    "endless sign-in form": endless_form,
    "slow upload": slow_upload,
    "request on a locked table": locked_out,
}
REQUESTS: dict[str, tuple[str, str, str | None]] = {
    "`GET users`": ("GET", "/api/v1/users?limit=20", None),
    "`POST memories/search`": (
        "POST",
        "/api/v1/memories/search",
        json.dumps({"query": "the energy bill", "limit": 10}),
    ),
    "`/health/live`": ("GET", "/health/live", None),
}


def run() -> str:
    """A markdown table: the client's p50 and p95, alone and beside each crowd and all of them."""
    with platform():
        organization = organizations.create(actor=ACTOR, values={"slug": "crowd", "name": "Crowd"})
    with tenant(organization):
        _, key = issue_key(
            organization=organization, actor=ACTOR, name="bench", scopes=ALL_PERMISSIONS
        )
    for resource, count in [("users", USERS), ("memories", MEMORIES)]:
        file = b"".join(lines(resource, row_count=count, seed=5))
        run_load(
            resource,
            numbered(file),
            organization=organization,
            actor=ACTOR,
            options=LoadOptions(),
            embed_first=0,
        )
    load = os.getloadavg()[0]
    rows = []
    with (
        served("minilm-int8", AGENTMEM_LOG_LEVEL="CRITICAL") as port,
        locked("memories_tool"),
        ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as client,
    ):

        def measured(seconds: float) -> list[list[float]]:
            return client.submit(_measured, port, key, seconds).result()

        measured(3.0)  # warms up, and forks before the crowds start
        rows.append(("alone", measured(SECONDS), Counter()))
        for name, behaviour in KINDS.items():
            crowds = [Crowd(port, key, behaviour)]
            rows.append((f"beside {CROWD}: {name}", *_beside(crowds, measured)))
        crowds = [Crowd(port, key, behaviour) for behaviour in KINDS.values()]
        rows.append((f"beside {CROWD} of each", *_beside(crowds, measured)))
    return _table(rows, load)


def _beside(
    crowds: list[Crowd], measured: Callable[[float], list[list[float]]]
) -> tuple[list[list[float]], Answers]:
    time.sleep(3)
    found = measured(SECONDS)
    answers = sum((crowd.end() for crowd in crowds), Counter())
    time.sleep(6)  # the requests that waited for the lock have ended
    return found, answers


def _measured(port: int, key: str, seconds: float) -> list[list[float]]:
    """Milliseconds of each of `REQUESTS`, sent one after the other."""
    found: list[list[float]] = [[] for _ in REQUESTS]
    server = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    headers = {"X-API-Key": key, "Content-Type": "application/json"}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for durations, (method, path, body) in zip(found, REQUESTS.values(), strict=True):
            started = time.perf_counter()
            server.request(method, path, body, headers)
            response = server.getresponse()
            response.read()
            durations.append(1000 * (time.perf_counter() - started))
            assert response.status == 200, (path, response.status)
            time.sleep(PAUSE_S)
    return found


def _table(rows: list[tuple[str, list[list[float]], Answers]], load: float) -> str:
    head = "".join(f" {name} |" for name in REQUESTS)
    table = f"One server process. Load average before: {load:.1f}. p50 / p95 in ms.\n\n"
    table += f"| |{head} answers to the crowd |\n|---|{'---|' * (len(REQUESTS) + 1)}\n"
    for name, found, answers in rows:
        cells = "".join(
            f" {_p(durations, 50):.1f} / {_p(durations, 95):.1f} |" for durations in found
        )
        counts = ", ".join(f"{count} x {status}" for status, count in sorted(answers.items()))
        table += f"| {name} |{cells} {counts} |\n"
    return table


def _p(durations: list[float], percent: int) -> float:
    return quantiles(durations, n=100)[percent - 1]
