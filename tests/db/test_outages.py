"""A full disk and a read-only server: each door says so and when to retry; probes notice them."""

import errno
import json
import shutil
import subprocess
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
from django.core.management import CommandError
from django.db import OperationalError, connection, connections, transaction

from agentmem_site.api import bulk as bulk_api
from agentmem_site.api import health
from agentmem_site.bulk import worker
from agentmem_site.bulk.writing import Writer
from agentmem_site.db import outages
from agentmem_site.db.outages import AWAY, DISK_FULL, outage_of, write_outage
from agentmem_site.db.setup import prepare_embedded
from agentmem_site.embedded import DiskFull, EmbeddedError, Server
from tests.api.conftest import client_with
from tests.bulk.loading import load

RAISED = """
CREATE TEMPORARY TABLE accounts_user (LIKE public.accounts_user INCLUDING ALL);
CREATE FUNCTION pg_temp.refused() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '{}'; END $$;
CREATE TRIGGER refused BEFORE INSERT ON pg_temp.accounts_user
    FOR EACH ROW EXECUTE FUNCTION pg_temp.refused()
"""


@pytest.fixture(autouse=True)
def unasked(settings):
    settings.DISK_LEAST_BYTES = 0
    health.writes.forget()
    yield
    health.writes.forget()


@pytest.mark.parametrize(
    ("state", "code", "words"),
    [("53100", "disk_full", "disk is full"), ("25006", "read_only", "is read-only")],
)
def test_a_refused_write_says_why_and_when_to_retry(state, code, words, acme_key):
    with connection.cursor() as cursor:
        cursor.execute(RAISED.format(state))
    answer = client_with(acme_key).post("users", {"external_id": "ann"})
    assert (answer.status_code, answer["Retry-After"]) == (503, "60")
    assert answer.json()["code"] == code
    assert words in answer.json()["detail"]


@pytest.mark.parametrize(("state", "code"), [("53100", "disk_full"), ("25006", "read_only")])
@pytest.mark.django_db(transaction=True)
def test_a_refused_load_says_so(state, code, acme, acme_key, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "DISK_FULL_PAUSES_S", (0, 0))

    refused = psycopg.errors.lookup(state)("refused")

    def refuse(writer, batch):
        raise OperationalError("refused") from refused

    monkeypatch.setattr(Writer, "write", refuse)
    answer = client_with(acme_key).generic(
        "POST", "users/bulk", b'{"external_id": "ann"}\n', content_type="application/x-ndjson"
    )
    assert (answer.status_code, answer["Retry-After"], answer.json()["code"]) == (503, "60", code)
    assert answer.json()["report"]["last_line"] == 0
    with pytest.raises(CommandError) as stopped:
        load(tmp_path, "users", [{"external_id": "ann"}])
    assert stopped.value.returncode == 75


@pytest.mark.django_db(transaction=True)
def test_an_upload_to_a_full_disk_says_so(acme, acme_key, monkeypatch):
    @contextmanager
    def full():
        def write(data):
            raise OSError(errno.ENOSPC, "No space left on device")

        yield SimpleNamespace(write=write)

    monkeypatch.setattr(bulk_api, "TemporaryFile", full)
    answer = client_with(acme_key).generic(
        "POST",
        "users/bulk?dry_run=true",
        b'{"external_id": "ann"}\n',
        content_type="application/x-ndjson",
    )
    assert (answer.status_code, answer["Retry-After"]) == (503, "60")
    assert answer.json()["code"] == "disk_full"


def test_what_is_an_outage():
    assert outage_of(OperationalError("connection refused")) is AWAY
    assert outage_of(OperationalError("could not write: No space left on device")) is DISK_FULL
    assert outage_of(OSError(errno.ENOSPC, "No space left on device")) is DISK_FULL
    assert outage_of(DiskFull("x")) is DISK_FULL
    assert outage_of(OSError(errno.EACCES, "Permission denied")) is None
    assert outage_of(ValueError("x")) is None
    assert outage_of(None) is None


# -- probes ---------------------------------------------------------------------------------------


def test_ready_says_that_the_disk_is_full_and_since_when(client, db, monkeypatch):
    outage = [DISK_FULL]
    probes = []
    monkeypatch.setattr(outages, "write_outage", lambda at: probes.append(at) or outage[0])
    clock = [100.0]
    monkeypatch.setattr(outages.time, "monotonic", lambda: clock[0])
    started = datetime.now(UTC) - timedelta(seconds=1)
    first = client.get("/health/ready")
    assert (first.status_code, first["Retry-After"]) == (503, "60")
    (reason,) = first.json()["reasons"]
    words, since = reason.removesuffix(" UTC.").split(" Seen since ")
    assert words == "The disk is full: nothing can be saved. Make room."
    assert started <= datetime.fromisoformat(since + "+00:00") + timedelta(seconds=1)
    clock[0] += 4.9
    client.get("/health/ready")
    assert len(probes) == 1
    clock[0] += 5
    assert client.get("/health/ready").json()["reasons"] == [reason]
    assert len(probes) == 2
    outage[0] = None
    clock[0] += 5
    assert client.get("/health/ready").json()["status"] == "ready"


def test_ready_says_that_the_database_is_read_only(client, db):
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = on")
    try:
        response = client.get("/health/ready")
    finally:
        with connection.cursor() as cursor:
            cursor.execute("RESET default_transaction_read_only")
    assert response.status_code == 503
    (reason,) = response.json()["reasons"]
    assert reason.startswith("The database is read-only: nothing can be saved.")


def test_the_probe_writes_a_file(db):
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(outages._IS_READ_ONLY)
        cursor.execute("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + outages._SPILL)
        plan = cursor.fetchone()[0]
        plan = json.loads(plan) if isinstance(plan, str) else plan
    assert plan[0]["Plan"]["Temp Written Blocks"] >= 32
    assert write_outage(connection) is None


def test_a_disk_that_is_nearly_full_is_a_warning(client, db, settings, monkeypatch):
    settings.DISK_LEAST_BYTES = 512 * 1024 * 1024
    left = SimpleNamespace(free=100 * 1024 * 1024)
    monkeypatch.setattr(health.shutil, "disk_usage", lambda folder: left)
    response = client.get("/health/ready")
    assert response.status_code == 200
    warnings = response.json()["warnings"]
    assert warnings[0].startswith("The folder for temporary files, which uploads need,")
    assert all("has 100 MB left: make room." in warning for warning in warnings)


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    size = 320 * 1024 * 1024
    mounted = (
        shutil.which("mount")
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0711", "tmpfs", disk],
            capture_output=True,
            check=False,
        ).returncode
    )
    if not mounted:
        pytest.skip("needs a disk of its own: root, and mount")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for _ in range(20):  # also takes the space that an exiting process frees
            with suppress(OSError):
                while True:
                    file.write(bytes(65536))
            time.sleep(0.02)
        with pytest.raises(OSError, match="No space left"):
            file.write(b"x" * 4096)
    return filler


@pytest.mark.unguarded
def test_a_full_disk_is_noticed_before_a_write(small_disk, django_db_blocker):
    server = Server(small_disk / "postgres-18")
    server.start(prepare=prepare_embedded(server.connection))
    beside = connections.create_connection("default")
    beside.settings_dict = {**beside.settings_dict, **server.connection()}
    kept, connections["default"] = connections["default"], beside
    try:
        with django_db_blocker.unblock():
            assert write_outage(beside) is None
            filler = fill(small_disk)
            assert write_outage(beside) is DISK_FULL
            filler.unlink()
            assert write_outage(beside) is None
    finally:
        beside.close()
        connections["default"] = kept
        server.stop(timeout_s=20)
    for _ in range(5):  # (space that the exited server freed is not available at once)
        filler = fill(small_disk)
        try:
            server.start()
        except EmbeddedError as error:
            assert outage_of(error) is DISK_FULL
            break
        server.stop(timeout_s=20)
        filler.unlink()
    else:
        pytest.fail("It starts on a full disk.")
    filler.unlink()
