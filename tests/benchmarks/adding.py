"""Adding memories over HTTP, one by one and in batches, and from a file.

One client, one connection, one server process (`manage.py serve`): the rate of a cell is the size
of its request by the median of their durations. Contents are those of `make_sample`, each said
once, with user, agent and metadata.
"""

import base64
import http.client
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from statistics import median
from typing import Any
from urllib.parse import quote

from django.db import connection

from accounts.actors import command_actor
from accounts.models import Organization
from accounts.roles import ALL_PERMISSIONS
from accounts.services.keys import issue_key
from accounts.services.organizations import organizations
from accounts.tenancy import platform, tenant
from agentmem_site.bulk import LoadOptions
from agentmem_site.samples import lines
from agentmem_site.services.loads import run_load
from memories.models import EMBEDDING_DIM

ROOT = Path(__file__).resolve().parents[2]
ACTOR = command_actor("benchmark")
SIZES = (1, 10, 100, 1000)
SECONDS, REQUESTS = 2.0, 5  # at least, per cell
KEPT = ("content", "user_id", "agent_id", "memory_type", "scope", "level", "importance", "metadata")
_number = count()
_random = Random(1)

Item = dict[str, Any]
MODES: dict[str, tuple[str, str, bool]] = {  # encoder, embed, whether vectors are supplied
    "default encoder": ("minilm-int8", "now", False),
    "static encoder": ("static", "now", False),
    "embed: later": ("minilm-int8", "later", False),
    "supplied vectors": ("minilm-int8", "now", True),
}


def run(rows: int) -> str:
    """Markdown tables: adds/s by size of the request, rows/s of the loader."""
    with platform():
        organization = organizations.create(actor=ACTOR, values={"slug": "adds", "name": "Adds"})
    with tenant(organization):
        _, key = issue_key(
            organization=organization, actor=ACTOR, name="bench", scopes=ALL_PERMISSIONS
        )
    pool = _contents()
    load = os.getloadavg()[0]
    rates: dict[str, list[float]] = {}
    for encoder in ("minilm-int8", "static"):
        with served(encoder) as port:
            for mode, (wanted, embed, supplied) in MODES.items():
                if wanted == encoder:
                    post = _client(port, key)
                    item = partial(_item, pool, supplied)
                    rates[mode] = [_rate(post, item, size, embed) for size in SIZES]
    return _table(rates, load) + _loaded(organization, rows)


def _contents() -> list[Item]:
    file = b"".join(lines("memories", row_count=5000, seed=3))
    return [{k: v for k, v in json.loads(line).items() if k in KEPT} for line in file.splitlines()]


def _item(pool: list[Item], supplied: bool) -> Item:
    number = next(_number)
    item = dict(pool[number % len(pool)])
    item["content"] += f" ({number})"
    if supplied:
        numbers = [_random.gauss(0, 1) for _ in range(EMBEDDING_DIM)]
        item["embedding"] = base64.b64encode(struct.pack(f"<{EMBEDDING_DIM}f", *numbers)).decode()
    return item


def _rate(
    post: Callable[[str, Any], Any], item: Callable[[], Item], size: int, embed: str
) -> float:
    durations: list[float] = []
    while sum(durations) < SECONDS or len(durations) <= REQUESTS:
        items = [item() for _ in range(size)]
        path, body = "memories/batch", {"memories": items, "embed": embed}
        if size == 1:
            path, body = "memories", {**items[0], "embed": embed}
        started = time.perf_counter()
        answer = post(path, body)
        durations.append(time.perf_counter() - started)
        made = answer["created"] if size > 1 else answer["status"] == "created"
        assert made == size, answer
    return size / median(durations[1:])  # the first one warms up


def _client(port: int, key: str) -> Callable[[str, Any], Any]:
    server = http.client.HTTPConnection("127.0.0.1", port)
    headers = {"X-API-Key": key, "Content-Type": "application/json"}

    def post(path: str, body: Any) -> Any:
        server.request("POST", f"/api/v1/{path}", json.dumps(body), headers)
        return json.loads(server.getresponse().read())

    return post


@contextmanager
def served(encoder: str, **settings: str) -> Iterator[int]:
    """The port of a server on the benchmark's database."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "manage.py", "serve", "--no-embed", f"--port={port}"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(AGENTMEM_ENCODER=encoder, **settings),
        stdout=subprocess.DEVNULL,
    ) as server:
        try:
            await_port(port)
            yield port
        finally:
            server.terminate()


def environment(**more: str) -> dict[str, str]:
    """The environment of a process on the benchmark's database."""
    database = connection.settings_dict
    owner = database["OWNER"]
    url = "postgres://{}:{}@{}:{}/{}"
    place = [quote(database["HOST"], safe="@"), database["PORT"], database["NAME"]]
    return {
        **os.environ,
        "DATABASE_URL": url.format(database["USER"], database["PASSWORD"], *place),
        "DATABASE_OWNER_URL": url.format(owner["USER"], owner["PASSWORD"], *place),
        **more,
    }


def await_port(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("The server does not answer.")


def _loaded(organization: Organization, rows: int) -> str:
    file = b"".join(lines("memories", row_count=rows, seed=4))
    report = run_load(
        "memories",
        numbered(file),
        organization=organization,
        actor=ACTOR,
        options=LoadOptions(),
        on_batch=lambda report: None,
        embed_first=0,
    )
    assert report.counts.inserted == rows, report
    return (
        f"\nThe loader, `--embed later`: {report.rows_per_second:,.0f} memories/s "
        f"({rows:,} lines of {len(file) / rows:.0f} bytes).\n"
    )


def numbered(file: bytes) -> list[tuple[int, bytes, int]]:
    """Lines as a source yields them, without byte offsets."""
    return [(number, line, 0) for number, line in enumerate(file.splitlines(), start=1)]


def _table(rates: dict[str, list[float]], load: float) -> str:
    head = f"One client, one server process; memories/s. Load average before: {load:.1f}.\n\n"
    head += "| | POST memories |"
    head += "".join(f" batch of {size:,} |" for size in SIZES[1:])
    head += "\n|---|" + "---|" * len(SIZES) + "\n"
    return head + "".join(
        f"| {mode} |" + "".join(f" {rate:,.0f} |" for rate in found) + "\n"
        for mode, found in rates.items()
    )
