"""Requests wait for locks and the database only so long. Server processes are supervised."""

import os
import signal
import time
from pathlib import Path

import pytest
from django.db import DataError, OperationalError, connection, transaction

from accounts.tenancy import tenant
from agentmem_site.db.limits import limited
from tests.serving.server import Server, locked, until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.unguarded]


# Of the requested row; of the lookups before the organization is known.
@pytest.mark.parametrize("table", ["accounts_user", "accounts_apikey", "accounts_organization"])
def test_a_locked_table_is_503_in_time(api, settings, table):
    settings.LOCK_TIMEOUT_MS = 200
    with locked(table):
        response = api.get("users")
    assert (response.status_code, response["Retry-After"]) == (503, "1")
    assert api.get("users").status_code == 200


def test_a_readiness_probe_does_not_wait_for_a_locked_table(anonymous):
    with locked("memories_tool"):
        started = time.monotonic()
        response = anonymous.get("/health/ready")
    assert (response.status_code, response.json()["reasons"]) == (200, [])
    assert time.monotonic() - started < 5  # AGENTMEM_LOCK_TIMEOUT_S


def test_a_long_statement_is_cancelled_inside_a_context_and_outside(acme, settings):
    settings.STATEMENT_TIMEOUT_MS = 100
    too_long = pytest.raises(OperationalError, match="statement timeout")
    with limited():
        with connection.cursor() as cursor, too_long:
            cursor.execute("SELECT pg_sleep(%s)", [20])
        with too_long, tenant(acme), connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(20)")
        with connection.cursor() as cursor:
            cursor.execute("SELECT %s::int, current_setting('statement_timeout')", [7])
            assert cursor.fetchall() == [(7, "100ms")]
    with connection.cursor() as cursor:
        cursor.execute("SHOW statement_timeout")
        assert cursor.fetchone() == ("0",)


def test_a_savepoint_recovers_from_a_failed_statement(settings):
    with limited(), transaction.atomic():
        with pytest.raises(DataError), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT 1 / %s", [0])
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            assert cursor.fetchone() == (1,)


def test_a_silent_database_connection_is_given_up(settings):
    settings.STATEMENT_TIMEOUT_MS = 0
    settings.DATABASE_SILENCE_S = 0.3
    silent = pytest.raises(OperationalError, match="has not answered")
    with limited(), connection.cursor() as cursor, silent:
        cursor.execute("SELECT pg_sleep(1)")
    connection.close()
    with limited(), connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    yield server
    server.stop()


def processes_of(server):
    pid = server._process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    # (The resource tracker of multiprocessing is a child, too.)
    return [
        int(child)
        for child in children
        if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def test_a_server_process_that_is_killed_is_replaced(server):
    (worker,) = processes_of(server)
    os.kill(worker, signal.SIGKILL)
    until(lambda: set(processes_of(server)) - {worker}, "there is another process")
    until(server._answers, "the server answers")


def test_server_processes_end_with_their_parent(server):
    workers = processes_of(server)
    assert workers
    os.kill(server._process.pid, signal.SIGKILL)
    server._process.wait()
    until(lambda: not any(map(is_alive, workers)), "they have ended")


def is_alive(pid):
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
