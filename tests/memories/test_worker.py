"""The worker: each pending memory gets its own vector, once."""

import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections
from django.utils import timezone

from accounts.models import AuditEvent
from accounts.tenancy import tenant
from memories import embeddings
from memories.embeddings import EncoderError, encode_texts, get_encoder
from memories.models import EMBEDDING_DIM, Memory, MemoryHistory, embedded_text
from memories.services import indexing
from memories.services.embed_worker import Listener
from memories.services.memories import memories
from memories.services.pending import claim
from tests.makers import TESTER, make_memory, make_organization

ROOT = Path(__file__).resolve().parents[2]
TERRIBLE = "terrible"


class Letters:
    """Vectors by the letters of a text. Refuses "terrible", and all while unavailable."""

    name, dim, is_cheap = "letters", EMBEDDING_DIM, True

    def __init__(self):
        self.is_away = False
        self.texts = []
        self.while_encoding = lambda texts: None
        self.unread = "?"

    def encode(self, texts):
        if self.is_away:
            raise EncoderError("The encoder is away.")
        self.texts += texts
        self.while_encoding(texts)
        if any(TERRIBLE in text for text in texts):
            raise ValueError(f"Cannot encode {texts}")
        rows = np.zeros((len(texts), self.dim), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for letter in text:
                row[ord(letter) % self.dim] += 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def known_shares(self, texts):
        return [float(self.unread not in text) for text in texts]


@pytest.fixture
def letters(monkeypatch, settings):
    encoder = Letters()
    monkeypatch.setitem(embeddings._loaded, encoder.name, encoder)
    settings.ENCODER = encoder.name
    return encoder


def embed_all(**options):
    """The output of `embed_worker --once`."""
    out = io.StringIO()
    call_command("embed_worker", once=True, no_progress=True, stdout=out, **options)
    return out.getvalue()


def rows(organization):
    with tenant(organization):
        memories = Memory.objects.for_organization(organization).defer(None).order_by("created_at")
        return list(memories)


def only(organization):
    (row,) = rows(organization)
    return row


def make_due_now(organization):
    with tenant(organization):
        due = Memory.objects.for_organization(organization).exclude(embedding_due_at=None)
        due.update(embedding_due_at=timezone.now() - timedelta(seconds=1))


def is_vector_of(row, encoder):
    expected = encode_texts([embedded_text(row.speaker, row.content)], encoder)[0]
    return float(np.array(row.embedding, np.float32) @ expected) > 0.98


def test_pending_memories_of_all_organizations_get_their_vectors(acme, globex, letters):
    make_memory(acme, content="Likes tea", speaker="Ann")
    make_memory(globex, content="Likes coffee")
    assert embed_all().startswith("2 embedded,")
    for organization in (acme, globex):
        row = only(organization)
        assert (row.embedding_state, row.embedding_model) == ("ready", "letters")
        assert row.embedding_due_at is None
        assert is_vector_of(row, letters)
    assert "Ann: Likes tea" in letters.texts


def test_one_organization_can_be_embedded_alone(acme, globex, letters):
    make_memory(acme)
    make_memory(globex)
    assert embed_all(organization="globex").startswith("1 embedded,")
    assert only(acme).embedding_state == "pending"


def test_embedding_writes_no_history_and_no_timestamp(acme, letters):
    before = make_memory(acme)
    embed_all()
    after = only(acme)
    assert (after.updated_at, after.version) == (before.updated_at, before.version)
    with tenant(acme):
        assert MemoryHistory.objects.for_organization(acme).count() == 1
        about = AuditEvent.objects.for_organization(acme).filter(resource_type="memory")
        assert [event.action for event in about] == ["created"]


def test_the_trash_is_not_embedded(acme, letters):
    memory = make_memory(acme)
    with tenant(acme):
        own = Memory.objects.for_organization(acme).filter(pk=memory.pk)
        memories.delete(own, organization=acme, actor=TESTER)
    assert embed_all().startswith("0 embedded")
    assert letters.texts == []


def test_a_large_organization_does_not_delay_another(acme, globex, letters):
    for number in range(6):
        make_memory(acme, content=f"acme {number}")
    make_memory(globex, content="globex")
    embed_all(batch_size=2)
    assert letters.texts.index("globex") <= 4  # within the first round


def test_a_memory_that_changed_during_encoding_gets_the_vector_of_its_new_text(acme, letters):
    memory = make_memory(acme, content="Likes tea")

    def change(texts):
        letters.while_encoding = lambda texts: None
        with tenant(acme):
            memories.update(
                memory, organization=acme, actor=TESTER, values={"content": "Hates tea"}
            )

    letters.while_encoding = change
    assert embed_all().startswith("1 embedded,")
    assert letters.texts == ["Likes tea", "Hates tea"]
    assert is_vector_of(only(acme), letters)


def test_a_failed_text_does_not_fail_its_batch(acme, letters):
    for number in range(5):
        make_memory(acme, content=f"Fine {number}")
    make_memory(acme, content=f"A {TERRIBLE} secret")
    make_memory(acme, content="Fine at last")
    assert embed_all().startswith("6 embedded, 1 failures")
    (bad,) = [row for row in rows(acme) if row.embedding_state != "ready"]
    assert TERRIBLE in bad.content
    assert (bad.embedding_state, bad.embedding_attempts) == ("pending", 1)
    assert bad.embedding_error == "The encoder refused this text (ValueError)."
    wait = bad.embedding_due_at - timezone.now()
    assert timedelta(seconds=20) < wait <= timedelta(seconds=30)


def test_a_failed_text_is_tried_five_times_with_doubled_waits(acme, letters):
    make_memory(acme, content=TERRIBLE)
    waits = []
    for _ in range(4):
        embed_all()
        waits.append(round((only(acme).embedding_due_at - timezone.now()).total_seconds(), -1))
        assert embed_all().startswith("0 embedded")  # it waits
        make_due_now(acme)
    assert waits == [30, 60, 120, 240]
    assert only(acme).embedding_state == "pending"
    embed_all()
    row = only(acme)
    assert (row.embedding_state, row.embedding_attempts) == ("failed", 5)
    assert row.embedding_due_at is None
    assert embed_all().startswith("0 embedded, 0/s")


def test_a_changed_text_is_tried_again(acme, letters):
    memory = make_memory(acme, content=TERRIBLE)
    embed_all()
    with tenant(acme):
        memories.update(memory, organization=acme, actor=TESTER, values={"content": "Fine"})
    embed_all()
    row = only(acme)
    assert (row.embedding_state, row.embedding_attempts, row.embedding_error) == ("ready", 0, "")


def test_while_the_encoder_is_unavailable_no_attempt_is_counted(acme, letters):
    make_memory(acme)
    letters.is_away = True
    with pytest.raises(CommandError, match="The encoder is away") as refusal:
        embed_all()
    assert refusal.value.returncode == 75
    row = only(acme)
    assert (row.embedding_state, row.embedding_attempts) == ("pending", 0)
    assert row.embedding_due_at is None  # released: the next worker need not wait for the lease
    letters.is_away = False
    assert embed_all().startswith("1 embedded")


def test_an_encoder_that_refuses_a_text_is_not_unavailable(acme, letters):
    """An HTTP endpoint answers 400 to a text that is too long, with the same exception."""
    make_memory(acme, content="Fine")
    make_memory(acme, content="Too long")

    def refuse(texts):
        if "Too long" in texts:
            raise EncoderError("The endpoint answered 400.")

    letters.while_encoding = refuse
    assert embed_all().startswith("1 embedded, 1 failures")
    fine, too_long = rows(acme)
    assert (fine.embedding_state, too_long.embedding_attempts) == ("ready", 1)


def test_a_vector_of_zeros_is_a_failure(acme, letters, monkeypatch):
    make_memory(acme)
    monkeypatch.setattr(letters, "encode", lambda texts: np.zeros((len(texts), 384), np.float32))
    assert embed_all().startswith("0 embedded, 1 failures")
    row = only(acme)
    assert (row.embedding, row.embedding_state) == (None, "pending")
    assert row.embedding_error == "The encoder gave no vector for this text."


def test_claimed_memories_are_not_claimed_again_during_the_lease(acme, letters):
    make_memory(acme)
    first = claim(organization=acme, limit=10, lease_s=60)
    assert len(first.rows) == 1
    assert claim(organization=acme, limit=10, lease_s=60) is None
    assert embed_all().startswith("0 embedded")
    make_due_now(acme)
    assert embed_all().startswith("1 embedded")
    first.release()  # too late, and without effect
    assert only(acme).embedding_state == "ready"


def test_vectors_of_a_large_organization_move_into_the_index_when_nothing_is_pending(
    acme, globex, letters, monkeypatch
):
    monkeypatch.setattr(indexing, "EXACT_ROWS", 3)
    for number in range(5):
        make_memory(acme, content=f"acme {number}")
    make_memory(globex, content="globex")
    assert embed_all().startswith("6 embedded, 5 indexed")
    assert all(row.is_indexed for row in rows(acme))
    assert not only(globex).is_indexed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"lease": 0}, "--lease must be more than 0"),
        ({"organization": "nobody"}, "There is no organization 'nobody'"),
    ],
)
@pytest.mark.django_db
def test_invalid_options_are_refused(options, message):
    with pytest.raises(CommandError, match=message):
        embed_all(**options)


# -- workers in processes that can be killed -------------------------------------------------------


def environment(encoder):
    """The environment of a process on the test's database."""
    settings = connection.settings_dict
    server = (
        f"{quote(settings['HOST'], safe='@')}:{settings['PORT']}"  # may be the path of a folder
    )
    sign_in = f"{settings['USER']}:{settings['PASSWORD']}"
    return {
        **os.environ,
        "DATABASE_URL": f"postgres://{sign_in}@{server}/{settings['NAME']}",
        "AGENTMEM_ENCODER": encoder,
    }


@pytest.fixture
def start():
    """Starts `manage.py ..` with the fast encoder, or another one."""
    started = []

    def start_command(*arguments, encoder="static"):
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "manage.py"), *arguments],
            env=environment(encoder),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start_command
    for process in started:
        process.kill()
        process.communicate()


def await_none_pending(organization, seconds=60):
    deadline = time.monotonic() + seconds
    while True:
        with tenant(organization):
            pending = Memory.objects.for_organization(organization).filter(
                embedding_state="pending"
            )
            if not pending.exists():
                return
            assert time.monotonic() < deadline, f"{pending.count()} are still pending"
        time.sleep(0.05)


def await_connection_of_another():
    """Waits until a worker has connected to the database."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND backend_type = 'client backend'"
            )
            if cursor.fetchone()[0] > 2:  # this one, the one that changes memories
                return
        time.sleep(0.005)
    raise AssertionError("The worker does not start.")


def count_claimed(organization):
    with tenant(organization):
        memories = Memory.objects.for_organization(organization)
        return memories.filter(embedding_due_at__gt=timezone.now()).count()


@pytest.mark.django_db(transaction=True)
def test_a_notification_ends_the_wait():
    listener = Listener()
    listener.wait(60)  # starts to listen, and lets the worker look again
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_notify('agentmem_embed', 'an organization')")
    began = time.monotonic()
    listener.wait(60)
    assert time.monotonic() - began < 30  # otherwise it slept through
    listener.close()


@pytest.mark.django_db(transaction=True)
def test_a_waiting_worker_stops_on_a_signal(start):
    acme = make_organization("acme")
    worker = start("embed_worker", "--no-progress")
    make_memory(acme)
    await_none_pending(acme)
    worker.send_signal(signal.SIGTERM)
    out, err = worker.communicate(timeout=10)
    assert (worker.returncode, err) == (0, "")
    assert out.startswith("1 embedded")


@pytest.mark.django_db(transaction=True)
def test_a_worker_stopped_during_encoding_releases_its_rows(letters):
    acme = make_organization("acme")
    make_memory(acme)
    letters.while_encoding = lambda texts: os.kill(os.getpid(), signal.SIGTERM)
    assert embed_all().startswith("0 embedded, 0/s; 1 pending")
    row = only(acme)
    assert (row.embedding_state, row.embedding_attempts, row.embedding_due_at) == (
        "pending",
        0,
        None,
    )
    letters.while_encoding = lambda texts: None
    assert embed_all().startswith("1 embedded")


@pytest.mark.django_db(transaction=True)
def test_once_reports_what_another_worker_has_claimed():
    acme = make_organization("acme")
    make_memory(acme)
    claim(organization=acme, limit=10, lease_s=60)
    make_memory(acme)
    output = embed_all()
    assert output.startswith("1 embedded")
    assert output.endswith("; 1 pending: another worker's, or to be tried later\n")


@pytest.mark.django_db(transaction=True)
def test_a_worker_that_cannot_work_warns_once_and_tries_again(start):
    acme = make_organization("acme")
    make_memory(acme)
    worker = start("embed_worker", "--no-progress", encoder="no-such")
    line = json.loads(worker.stderr.readline())
    assert line["level"] == "WARNING"
    assert line["message"].startswith("No memory can be embedded for now: There is no encoder")
    time.sleep(1.5)  # it has tried again by then
    worker.send_signal(signal.SIGINT)
    _, err = worker.communicate(timeout=10)
    assert (worker.returncode, err) == (0, "")
    row = only(acme)
    assert (row.embedding_state, row.embedding_attempts, row.embedding_due_at) == (
        "pending",
        0,
        None,
    )


@pytest.mark.django_db(transaction=True)
def test_the_server_embeds_in_a_thread(start):
    acme = make_organization("acme")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = start("serve", f"--port={port}", "--threads=1")
    make_memory(acme)
    await_none_pending(acme)
    server.send_signal(signal.SIGTERM)
    server.communicate(timeout=20)
    assert only(acme).embedding_model == "static"


@pytest.mark.django_db(transaction=True)
def test_a_worker_survives_lost_connections(start):
    acme = make_organization("acme")
    worker = start("embed_worker", "--no-progress")
    make_memory(acme)
    await_none_pending(acme)
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    deadline, there = time.monotonic() + 30, 0
    with connection.cursor() as cursor:
        # (It works on one connection, and then listens on another.)
        while there < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
            cursor.execute(f"SELECT count(*) {others}")
            (there,) = cursor.fetchone()
        cursor.execute(f"SELECT pg_terminate_backend(pid) {others}")
        assert len(cursor.fetchall()) == 2
    make_memory(acme)
    await_none_pending(acme)
    assert worker.poll() is None


@pytest.mark.parametrize("deaths", [3, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.django_db(transaction=True)
def test_killed_workers_leave_no_pending_wrong_or_lost_vector(start, deaths):
    acme, chance = make_organization("acme"), random.Random(deaths)
    added = [make_memory(acme, content=f"Note {number}") for number in range(300)]
    is_over = threading.Event()
    faults = []
    deaths_with_claims = 0

    def change_them():
        try:
            number = 0
            while not is_over.is_set():
                number += 1
                with tenant(acme):
                    memories.update(
                        chance.choice(added),
                        organization=acme,
                        actor=TESTER,
                        values={"content": f"Changed {number}"},
                    )
        except Exception as error:
            faults.append(error)
        finally:
            connections.close_all()

    changing = threading.Thread(target=change_them)
    changing.start()
    try:
        for number in range(10 * deaths):
            if number >= deaths and deaths_with_claims:
                break
            worker = start("embed_worker", "--no-progress", "--lease=1", "--batch-size=3")
            await_connection_of_another()
            time.sleep(chance.random() / 10)
            worker.kill()
            worker.wait()
            deaths_with_claims += count_claimed(acme) > 0
    finally:
        is_over.set()
        changing.join()
    assert faults == []
    assert deaths_with_claims > 0  # some were killed at work
    last = start("embed_worker", "--no-progress", "--lease=1")
    await_none_pending(acme)
    last.terminate()
    last.communicate(timeout=10)

    stored = rows(acme)
    assert {row.pk for row in stored} == {row.pk for row in added}
    assert {row.embedding_state for row in stored} == {"ready"}
    static = get_encoder("static")
    assert [row.content for row in stored if not is_vector_of(row, static)] == []
