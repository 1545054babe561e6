"""Streamed bodies on the real server: flat memory, clients that disconnect, clients that stall."""

import json
import time

import pytest
from django.db import connection

from accounts.models import User
from accounts.tenancy import tenant
from tests.serving.server import CHUNKED, MIB, Server, answer, chunk, until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.unguarded]


@pytest.fixture
def server(tmp_path, transactional_db):
    started = Server(tmp_path)
    yield started
    started.stop()


def users(organization) -> int:
    with tenant(organization):
        return User.objects.for_organization(organization).count()


def open_transactions() -> int:
    """Of others, on this database."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            " AND datname = current_database() AND usename = current_user"
            " AND xact_start IS NOT NULL"
        )
        return cursor.fetchone()[0]


def people(first: int, number: int) -> bytes:
    return b"".join(b'{"external_id":"u%d"}\n' % n for n in range(first, first + number))


def big_lines(mib: int):
    """Lines of 100 KB, all of one key."""
    line = json.dumps({"external_id": "u", "metadata": {"x": "y" * 100_000}}).encode() + b"\n"
    for _ in range(mib * MIB // len(line) // 10):
        yield line * 10


def test_a_body_of_any_size_costs_no_memory(server, acme, acme_key):
    peaks = []
    for mib in (20, 160):
        sent = server.begin(acme_key, "users/bulk", CHUNKED, batch_size=20)
        for block in big_lines(mib):
            sent.sendall(chunk(block))
        sent.sendall(chunk(b""))
        status, report = answer(sent)
        assert (status, report["rejected"]) == (200, 0)
        assert report["read"] * 100_000 > 0.9 * mib * MIB
        peaks.append(server.peak_mib())
    assert peaks[1] < peaks[0] + 40, peaks


@pytest.mark.parametrize("framing", ["Content-Length: 1000000", CHUNKED])
def test_committed_rows_stay_when_the_client_disconnects(server, acme, acme_key, framing):
    for turn in range(3):  # with two threads the third finds one free again
        body = people(turn * 1000, 250)
        sent = server.begin(acme_key, "users/bulk", framing, batch_size=100)
        if framing == CHUNKED:
            # (A mebibyte is a block; one that is not full is waited for.)
            sent.sendall(chunk(body + b" " * (MIB - len(body))))
        else:
            sent.sendall(body)
            time.sleep(0.2)
        sent.close()
        until(lambda turn=turn: users(acme) >= 200 * (turn + 1), "two batches are committed")
    sent = server.begin(acme_key, "users/bulk", "Content-Length: 23")
    sent.sendall(b'{"external_id":"after"}')
    status, report = answer(sent)
    assert (status, report["inserted"]) == (200, 1)
    whole = 250 if framing == CHUNKED else 200  # a chunked body that breaks off looks ended
    until(lambda: users(acme) == 3 * whole + 1, "what came is stored")
    assert "Traceback" not in server.log.read_text()


def test_no_transaction_stays_open_for_a_slow_client(server, acme, acme_key):
    sent = server.begin(acme_key, "users/bulk", CHUNKED, batch_size=100)
    body = people(0, 150)
    sent.sendall(chunk(body + b" " * (MIB - len(body))))
    until(lambda: users(acme) == 100, "a batch is committed")
    until(lambda: open_transactions() == 0, "no transaction is open")
    sent.sendall(chunk(b"\n" + people(150, 50)) + chunk(b""))
    status, report = answer(sent)
    assert (status, report["inserted"], users(acme)) == (200, 200, 200)


def test_a_dry_run_starts_when_the_whole_body_has_arrived(server, acme, acme_key):
    sent = server.begin(acme_key, "users/bulk", CHUNKED, batch_size=100, dry_run="true")
    body = people(0, 250)
    sent.sendall(chunk(body + b" " * (MIB - len(body))))
    time.sleep(0.5)
    assert open_transactions() == 0
    sent.sendall(chunk(b""))
    status, report = answer(sent)
    assert (status, report["inserted"], users(acme)) == (200, 250, 0)


def test_a_refusal_reaches_a_client_that_is_still_sending(server, acme, acme_key):
    sent = server.begin(acme_key, "users/bulk", CHUNKED, on_error="stop")
    try:
        for block in [b'{"nmae": 1}\n', *big_lines(20)]:
            sent.sendall(chunk(block))
    except OSError:
        pass  # it has said what it has to say
    status, told = answer(sent)
    assert (status, told["line"]) == (422, 1)
