"""If times are equal or absent, rows have the order of the file: with any number of workers, any
batch size, after splits, interruptions and retries."""

import json
from datetime import timedelta
from threading import Event
from zlib import crc32

import pytest
from django.db import OperationalError
from psycopg import errors

from accounts.models import User
from accounts.tenancy import tenant
from agentmem_site.bulk import LoadOptions, feed
from agentmem_site.bulk.faults import RetryPolicy
from agentmem_site.bulk.packing import UnreadableFile
from agentmem_site.bulk.report import BadLine, Unreadable
from agentmem_site.bulk.worker import Worker
from agentmem_site.bulk.writing import Writer
from agentmem_site.services.loads import run_load
from memories.models import Agent, Memory
from sessions.models import Message, Run, Session
from sessions.services.context import build_context
from tests.api.conftest import client_with
from tests.makers import TESTER, make_key, make_organization

AT_ONCE = RetryPolicy(tries=3, base_s=0, factor=1, cap_s=0)
NOON = "2026-01-31T12:00:00Z"
WAYS = [(1, 1000), (1, 3), (2, 7), (2, 1000), (4, 2)]  # workers, batch size

# (Several workers are several connections: each commits.)
pytestmark = pytest.mark.django_db(transaction=True)


def conversations(count=60, **over):
    """Messages of three sessions in turn, with unsorted keys."""
    return [
        {
            "external_id": f"m{n * 37 % count:03d}",
            "session_id": f"s{n % 3}",
            "role": "user" if n % 2 else "assistant",
            "text": f"{n:03d}",
            **over,
        }
        for n in range(count)
    ]


def lines(rows, broken_after=None):
    for number, row in enumerate(rows, start=1):
        if number - 1 == broken_after:
            raise UnreadableFile("The cable is out.")
        yield number, row if isinstance(row, bytes) else json.dumps(row).encode(), 0


def load(organization, rows, resource="messages", *, job="", broken_after=None, **options):
    return run_load(
        resource,
        lines(rows, broken_after),
        organization=organization,
        actor=TESTER,
        options=LoadOptions(**{"retry": AT_ONCE, **options}),
        embed_first=0,
        job=job,
    )


def rows_of(organization, model=Message, *columns):
    """Rows in the order of lists, but the oldest first."""
    with tenant(organization):
        rows = model.objects.for_organization(organization).order_by("created_at", "id")
        return list(rows.values_list(*(columns or ["text"]), flat=len(columns) < 2))


def in_sessions(organization):
    """Session -> the texts, in order."""
    texts = {}
    for session, text in rows_of(organization, Message, "session__session_id", "text"):
        texts.setdefault(session, []).append(text)
    return texts


def turns(rows):
    texts = {}
    for row in rows:
        texts.setdefault(row["session_id"], []).append(row["text"])
    return texts


# -- one load -------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", ["absent", "equal", "some"])
def test_messages_are_in_the_order_of_their_lines(times):
    rows = conversations(**({"created_at": NOON} if times == "equal" else {}))
    if times == "some":  # (earlier than the load's for the others)
        rows = [{**row, "created_at": NOON} if n < 20 else row for n, row in enumerate(rows)]
    for workers, batch_size in WAYS:
        acme = make_organization(f"by-{workers}-{batch_size}")
        keeps = times != "absent"
        load(acme, rows, workers=workers, batch_size=batch_size, preserve_timestamps=keeps)
        assert rows_of(acme) == [row["text"] for row in rows]


def test_rows_get_the_times_of_their_lines_with_any_number_of_workers():
    for workers, batch_size in WAYS:
        acme = make_organization(f"by-{workers}-{batch_size}")
        load(acme, conversations(), workers=workers, batch_size=batch_size)
        moments = rows_of(acme, Message, "created_at")
        assert [at - moments[0] for at in moments] == [timedelta(microseconds=n) for n in range(60)]
        # Rows created for a line have its time.
        assert rows_of(acme, Session, "session_id") == ["s0", "s1", "s2"]
        assert rows_of(acme, Session, "created_at") == moments[:3]


def test_lists_and_context_show_that_order():
    rows = conversations(agent_id="barista", user_id="ann")
    acme = make_organization("acme")
    load(acme, rows, workers=4, batch_size=2)
    api = client_with(make_key(acme))
    shown = [m["text"] for m in api.get("sessions/s1/messages?limit=200").json()["results"]]
    assert shown[::-1] == turns(rows)["s1"]
    with tenant(acme):
        session = Session.objects.for_organization(acme).get(session_id="s1")
        agent = Agent.objects.for_organization(acme).get(external_id="barista")
    context = build_context(
        organization=acme,
        agent=agent,
        query="What was said?",
        max_characters=10_000,
        session_id=session.pk,
        memory_limit=0,
        message_limit=200,
    )
    texts = [item.text.split(": ")[1] for item in context.items if item.kind == "message"]
    assert texts == turns(rows)["s1"]


@pytest.mark.parametrize("resource", ["users", "sessions", "memories"])
def test_other_rows_are_in_the_order_of_their_lines(resource):
    made = {
        "users": lambda n: {"external_id": f"u{n * 37 % 40}", "name": f"{n:03d}"},
        "sessions": lambda n: {
            "session_id": f"s{n * 37 % 40}",
            "name": f"{n:03d}",
            "runs": [{"run_id": r, "content": f"{n:03d}{r}"} for r in ("z", "a", "m")],
        },
        "memories": lambda n: {"content": f"{n:03d}"},
    }[resource]
    rows = [made(n) for n in range(40)]
    for workers, batch_size in WAYS:
        acme = make_organization(f"by-{workers}-{batch_size}")
        load(acme, rows, resource, workers=workers, batch_size=batch_size)
        model, column = {
            "users": (User, "name"),
            "sessions": (Session, "name"),
            "memories": (Memory, "content"),
        }[resource]
        assert rows_of(acme, model, column) == [f"{n:03d}" for n in range(40)]
        if resource == "sessions":
            runs = [f"{n:03d}{r}" for n in range(40) for r in "zam"]
            assert rows_of(acme, Run, "content") == runs


# -- a key on several lines -----------------------------------------------------------------------


@pytest.mark.parametrize("times", ["absent", "first", "last"])
def test_a_row_has_the_position_of_its_first_line_and_the_values_of_its_last(times):
    rows = conversations(12)
    again = {**rows[1], "text": "Mended."}
    if times == "first":
        rows[1]["created_at"] = NOON
    elif times == "last":
        again["created_at"] = NOON
    expected = [row["text"] for row in rows]
    expected[1] = "Mended."
    if times != "absent":
        expected.insert(0, expected.pop(1))
    for workers, batch_size in WAYS:
        acme = make_organization(f"by-{workers}-{batch_size}")
        load(acme, [*rows, again], workers=workers, batch_size=batch_size, preserve_timestamps=True)
        assert rows_of(acme) == expected


def test_runs_of_a_session_on_two_lines_keep_their_positions():
    runs = [{"run_id": r, "content": r} for r in "zam"]
    rows = [{"session_id": "s", "runs": runs}, {"session_id": "t"}]
    rows.append({"session_id": "s", "runs": [{"run_id": "n"}, {**runs[1], "content": "again"}]})
    seen = []
    for batch_size in (100, 1):
        acme = make_organization(f"by-{batch_size}")
        load(acme, rows, "sessions", batch_size=batch_size)
        assert rows_of(acme, Session, "session_id") == ["s", "t"]
        runs = rows_of(acme, Run, "run_id", "content", "position", "created_at")
        seen.append([(*values, at - runs[0][-1]) for *values, at in runs])
    assert seen[0] == seen[1]
    assert [run for run, *_ in seen[0]] == ["z", "a", "m", "n"]


def test_a_message_that_changes_its_session_has_the_values_of_its_last_line(monkeypatch):
    monkeypatch.setattr(feed, "MAX_KEYS", 15)
    rows = [
        {
            "external_id": f"m{n % 20}",
            "session_id": f"s{n * 7 % 11}",
            "role": "user",
            "text": f"{n}",
        }
        for n in range(100)
    ]
    seen = []
    for workers, batch_size in WAYS:
        acme = make_organization(f"by-{workers}-{batch_size}")
        report = load(acme, rows, workers=workers, batch_size=batch_size)
        assert report.read == 100
        seen.append(rows_of(acme, Message, "external_id", "session__session_id", "text"))
    last = {row["external_id"]: row for row in rows}
    assert {key: (s, t) for key, s, t in seen[0]} == {
        key: (row["session_id"], row["text"]) for key, row in last.items()
    }
    assert all(other == seen[0] for other in seen)


def test_a_message_that_changes_its_session_waits_for_a_slow_worker(monkeypatch):
    """m0's line in s0 goes to the slow worker, its later line in another session does not."""
    sessions = [f"s{n}" for n in range(20)]
    slow = sessions[0]
    other = next(s for s in sessions if crc32(s.encode()) % 2 != crc32(slow.encode()) % 2)
    waits, run = Event(), Worker._store

    def late(self, batch):
        if any(
            row.parts[self._shared.encoder.place_of["session_id"]] == slow for row in batch.rows
        ):
            waits.wait(1)
        run(self, batch)

    monkeypatch.setattr(Worker, "_store", late)
    rows = [
        {"external_id": "m0", "session_id": slow, "role": "user", "text": "first"},
        *({"external_id": f"m{n}", "session_id": other, "role": "user"} for n in range(1, 9)),
        {"external_id": "m0", "session_id": other, "role": "user", "text": "last"},
    ]
    acme = make_organization("acme")
    load(acme, rows, workers=2, batch_size=2)
    rows = rows_of(acme, Message, "external_id", "session__session_id", "text")
    assert rows[0] == ("m0", other, "last")


# -- interrupted, halved, retried -----------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("times", [{}, {"created_at": NOON}])
def test_a_resumed_load_keeps_the_order(workers, times):
    rows, acme = conversations(90, **times), make_organization("acme")
    options = {"job": "nightly", "workers": workers, "batch_size": 4, "preserve_timestamps": True}
    for broken_after in (50, 71):
        with pytest.raises(Unreadable):
            load(acme, rows, broken_after=broken_after, **options)
    assert 0 < len(rows_of(acme)) < 90
    load(acme, rows, **options)
    assert rows_of(acme) == [row["text"] for row in rows]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_restarted_load_keeps_the_order_of_each_conversation(workers):
    rows, acme = conversations(90), make_organization("acme")
    with pytest.raises(BadLine):
        load(acme, [*rows[:57], b"{", *rows[58:]], workers=workers, batch_size=2)
    stored = in_sessions(acme)
    assert stored
    for session, texts in stored.items():  # without gaps
        assert texts == turns(rows)[session][: len(texts)]
    load(acme, rows, workers=workers, batch_size=2)
    assert in_sessions(acme) == turns(rows)


def test_batches_that_are_halved_and_retried_keep_the_order(monkeypatch):
    write, tries = Writer.write, []

    def fail(self, batch):
        tries.append(len(batch.rows))
        if len(batch.rows) > 5:
            raise OperationalError("It is refused") from errors.QueryCanceled()
        if len(tries) % 5 == 0:
            raise OperationalError("It is refused") from errors.DeadlockDetected()
        return write(self, batch)

    monkeypatch.setattr(Writer, "write", fail)
    rows, acme = conversations(60, created_at=NOON), make_organization("acme")
    options = {"workers": 2, "batch_size": 20, "min_batch_size": 1, "preserve_timestamps": True}
    load(acme, rows, **options)
    assert any(count > 5 for count in tries)
    assert rows_of(acme) == [row["text"] for row in rows]


@pytest.mark.parametrize("workers", [1, 2])
def test_new_lines_among_unchanged_lines_keep_the_order(workers):
    """Some batches are decoded by the feed, some by the worker."""
    rows, acme = conversations(400, created_at=NOON), make_organization("acme")
    options = {"workers": workers, "batch_size": 10, "preserve_timestamps": True}
    load(acme, rows[:60], **options)
    load(acme, rows, **options)
    assert rows_of(acme) == [row["text"] for row in rows]


def test_the_same_file_again_changes_nothing():
    rows, acme = conversations(), make_organization("acme")
    load(acme, rows, workers=2, batch_size=7)
    columns = ("id", "created_at", "updated_at", "text")
    before = rows_of(acme, Message, *columns)
    for workers, batch_size in WAYS:
        report = load(acme, rows, workers=workers, batch_size=batch_size)
        assert (report.counts.unchanged, report.read) == (60, 60)
    assert rows_of(acme, Message, *columns) == before
    changed = [{**row, "name": "Ann"} for row in rows]
    assert load(acme, changed[::-1], workers=2, batch_size=7).counts.updated == 60
    assert rows_of(acme) == [row["text"] for row in rows]
