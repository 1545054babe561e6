"""PostgreSQL is killed in the middle of a load: what was committed is there, the rest is told."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from agentmem_site import samples
from agentmem_site.embedded import Server

ROOT = Path(__file__).resolve().parents[2]
ROWS = 12_000


@pytest.fixture
def data_dir(tmp_path):
    """An installation of its own, with an embedded server of its own."""
    yield tmp_path / "data"
    for folder in (tmp_path / "data").glob("postgres-*"):
        Server(folder, version=int(folder.name.removeprefix("postgres-"))).stop()


@pytest.mark.embedded
def test_a_killed_server_costs_one_batch_and_the_next_command_starts_it_again(data_dir, tmp_path):
    unset = {"DATABASE_URL", "DATABASE_OWNER_URL"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment["AGENTMEM_DATA_DIR"] = str(data_dir)

    def command(*arguments):
        return [sys.executable, str(ROOT / "manage.py"), *arguments]

    def run(*arguments):
        return subprocess.run(
            command(*arguments), env=environment, capture_output=True, text=True, check=True
        ).stdout

    run("migrate", "--verbosity=0")
    run("create_organization", "acme")
    file = tmp_path / "sessions.jsonl"
    file.write_bytes(b"".join(samples.lines("sessions", row_count=ROWS, seed=1)))
    load = ["bulk_upsert", "sessions", str(file), "--organization=acme"]
    (folder,) = data_dir.glob("postgres-*")
    server = Server(folder, version=int(folder.name.removeprefix("postgres-")))

    with subprocess.Popen(
        command(*load, "--batch-size=500"), env=environment, stderr=subprocess.PIPE, text=True
    ) as loading:
        _await_rows(server, 1000)
        pid = server.status().pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        _, said = loading.communicate(timeout=60)
    assert loading.returncode == 75, said
    assert "Run the same command again" in said
    assert "Traceback" not in said

    report = json.loads(run(*load, "--json"))
    assert report["read"] == ROWS
    assert report["unchanged"] >= 1000
    assert report["unchanged"] % 500 == 0  # whole batches
    assert report["inserted"] == ROWS - report["unchanged"]
    assert _rows(server) == ROWS


def _rows(server):
    settings = server.connection("agentmem_owner")
    with psycopg.connect(
        dbname=settings["NAME"],
        user=settings["USER"],
        password=settings["PASSWORD"],
        host=settings["HOST"],
        port=settings["PORT"],
    ) as connection:
        return connection.execute("SELECT count(*) FROM agent_sessions_session").fetchone()[0]


def _await_rows(server, count):
    deadline = time.monotonic() + 60
    while _rows(server) < count:
        assert time.monotonic() < deadline, "the load does not get on"
        time.sleep(0.02)
