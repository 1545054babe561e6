"""References to rows in the trash: refused, or restored; never a live row below a deleted one."""

import json
from contextlib import contextmanager
from threading import Thread

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import CommandError
from django.db import connection
from django.urls import reverse

from accounts.errors import Invalid
from accounts.models import User
from accounts.services import records
from accounts.services.users import users
from accounts.tenancy import tenant
from agentmem_site.bulk import LoadOptions
from agentmem_site.bulk.writing import Writer
from agentmem_site.services.loads import run_load
from memories.models import Agent, Block, Memory
from memories.services import adding
from memories.services.agents import agents
from sessions.models import Message, Run, Session
from sessions.services.conversations import messages, runs, sessions
from tests.api.conftest import client_with
from tests.bulk.loading import load
from tests.console.conftest import signed_in
from tests.makers import (
    TESTER,
    make_agent,
    make_key,
    make_member,
    make_organization,
    make_session,
    make_user,
)

RECORDS = {"user_id": users, "agent_id": agents, "session_id": sessions, "run_id": runs}
LABELS = {"user_id": "user", "agent_id": "agent", "session_id": "session", "run_id": "run"}
ROWS = {
    "blocks": (Block, {"external_id": "b", "label": "human"}),
    "sessions": (Session, {"session_id": "new"}),
    "messages": (Message, {"external_id": "m", "role": "user"}),
    "memories": (Memory, {"content": "Likes tea.", "external_id": "f"}),
}
CASES = [
    ("blocks", "user_id"),
    ("sessions", "user_id"),
    ("sessions", "agent_id"),
    ("messages", "user_id"),
    ("messages", "agent_id"),
    ("messages", "session_id"),
    ("messages", "run_id"),
    ("memories", "user_id"),
    ("memories", "agent_id"),
]


def move(verb, organization, column, key="gone"):
    records = RECORDS[column]
    name = column if column in ("session_id", "run_id") else "external_id"
    with tenant(organization):
        rows = records.model.objects.for_organization(organization).filter(**{name: key})
        getattr(records, verb)(rows, organization=organization, actor=TESTER)


@pytest.fixture
def trash(acme, tmp_path):
    """One of each in the trash, under the key `gone`; a session `s` with a run in the trash."""
    load(tmp_path, "users", [{"external_id": "gone"}, {"external_id": "ann"}])
    load(tmp_path, "agents", [{"external_id": "gone"}])
    load(
        tmp_path,
        "sessions",
        [{"session_id": "gone"}, {"session_id": "s", "runs": [{"run_id": "gone"}]}],
    )
    for column in RECORDS:
        move("delete", acme, column)
    return acme


def line_of(resource, column):
    row = {**ROWS[resource][1], column: "gone"}
    return {**row, "session_id": "s"} if column == "run_id" else row


def count(organization, model):
    with tenant(organization):
        return model.objects.for_organization(organization).count()


# -- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("resource", "column"), CASES)
def test_a_reference_to_a_row_in_the_trash_is_a_bad_line(trash, tmp_path, resource, column):
    model, before = ROWS[resource][0], count(trash, ROWS[resource][0])
    row = line_of(resource, column)
    with pytest.raises(CommandError) as stopped:
        load(tmp_path, resource, [row])
    assert stopped.value.returncode == 65
    expected = f"line 1: {column}: The {LABELS[column]} 'gone' is in the trash: restore it"
    assert expected in str(stopped.value)
    assert count(trash, model) == before


@pytest.mark.parametrize(("resource", "column"), CASES)
def test_the_referenced_row_is_restored_on_request(trash, tmp_path, resource, column):
    report = load(tmp_path, resource, [line_of(resource, column)], restore=True)
    assert report["inserted"] == 1
    with tenant(trash):
        rows = RECORDS[column].model.objects.for_organization(trash)
        name = column if column in ("session_id", "run_id") else "external_id"
        assert not rows.get(**{name: "gone"}).is_deleted
    # Loaded again it is unchanged; deleted again, it is restored again.
    assert load(tmp_path, resource, [line_of(resource, column)], restore=True)["unchanged"] == 1


def test_a_reference_by_id_is_refused_likewise(trash, tmp_path):
    with tenant(trash):
        user = User.objects.for_organization(trash).get(external_id="gone")
    with pytest.raises(CommandError, match="is in the trash"):
        load(tmp_path, "sessions", [{"session_id": "new", "user_id": str(user.pk)}])


def test_each_such_line_is_rejected_and_the_others_are_stored(trash, tmp_path, monkeypatch):
    write, tries = Writer.write, []
    monkeypatch.setattr(
        Writer, "write", lambda self, batch: tries.append(len(batch.rows)) or write(self, batch)
    )
    rows = [{"session_id": f"new{n}", "user_id": "gone" if n % 2 else "ann"} for n in range(40)]
    rejects = tmp_path / "rejects.jsonl"
    with pytest.raises(CommandError, match="20 lines are rejected") as stopped:
        load(tmp_path, "sessions", rows, on_error="skip", rejects=rejects)
    assert stopped.value.returncode == 3
    named = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert sorted(reject["line"] for reject in named) == list(range(2, 42, 2))
    assert {(reject["field"], reject["code"]) for reject in named} == {
        ("user_id", "unknown_reference")
    }
    starts = [0]
    for row in rows:
        starts.append(starts[-1] + len(json.dumps(row)) + 1)
    assert all(reject["byte_offset"] == starts[reject["line"] - 1] for reject in named)
    assert tries == [40, 20]
    with tenant(trash):
        stored = Session.objects.for_organization(trash).filter(session_id__startswith="new")
        assert stored.count() == stored.filter(user__external_id="ann").count() == 20


def test_the_api_and_the_console_say_the_same(trash, tmp_path):
    row = {"session_id": "new", "user_id": "gone"}
    client = client_with(make_key(trash))
    kind = "application/x-ndjson"
    answer = client.post("sessions/bulk", json.dumps(row), content_type=kind)
    assert answer.status_code == 207
    (reject,) = answer.json()["rejects"]
    assert (reject["line"], reject["field"], reject["code"]) == (1, "user_id", "unknown_reference")
    assert "'gone' is in the trash" in reject["message"]
    single = client.post("sessions", {"session_id": "new", "user_id": "gone"}, format="json")
    assert single.status_code == 400
    assert "is in the trash" in single.content.decode()
    file = SimpleUploadedFile("s.jsonl", json.dumps(row).encode())
    form = {"resource": "sessions", "on_error": "skip", "file": file}
    page = signed_in(make_member(trash, "alice")).post(reverse("admin:upload"), form)
    assert "is in the trash" in page.content.decode()
    assert page.context["report"].rejected == 1
    restored = client.post("sessions/bulk?restore=true", json.dumps(row), content_type=kind)
    assert (restored.status_code, restored.json()["inserted"]) == (200, 1)


def test_restoring_a_user_needs_the_permission(trash):
    scopes = ["session:read", "session:write", "session:delete", "user:read", "user:write"]
    row = {"session_id": "new", "user_id": "gone"}
    answer = client_with(make_key(trash, scopes)).post(
        "sessions/bulk?restore=true", json.dumps(row), content_type="application/x-ndjson"
    )
    assert answer.status_code == 207
    with tenant(trash):
        assert User.objects.for_organization(trash).get(external_id="gone").is_deleted


# -- left as they are -----------------------------------------------------------------------------


def test_rows_deleted_with_their_parent_stay_in_the_trash(acme, tmp_path):
    rows = [{"session_id": f"s{n}", "agent_id": "gone"} for n in range(3)]
    load(tmp_path, "sessions", rows)
    move("delete", acme, "agent_id")
    report = load(tmp_path, "sessions", [{**row, "name": "New"} for row in rows])
    assert (report["deleted"], report["updated"]) == (3, 0)
    with pytest.raises(CommandError, match=r"line 4: agent_id: The agent 'gone' is in"):
        load(tmp_path, "sessions", [*rows, {"session_id": "s4", "agent_id": "gone"}])
    report = load(tmp_path, "sessions", [{**row, "name": "New"} for row in rows], restore=True)
    assert (report["deleted"], report["updated"]) == (0, 3)


def test_a_line_that_changes_nothing_is_unchanged_and_one_that_does_is_refused(acme, tmp_path):
    """A user's messages stay when the user is deleted."""
    row = {"external_id": "m", "role": "user", "user_id": "gone", "session_id": "s"}
    load(tmp_path, "messages", [row])
    move("delete", acme, "user_id")
    assert load(tmp_path, "messages", [row])["unchanged"] == 1
    with tenant(acme):
        Message.objects.for_organization(acme).update(line_hash=None)
    assert load(tmp_path, "messages", [row])["unchanged"] == 1
    with pytest.raises(CommandError, match="The user 'gone' is in the trash"):
        load(tmp_path, "messages", [{**row, "text": "Hello"}])
    assert load(tmp_path, "messages", [row], restore=True)["unchanged"] == 1
    with tenant(acme):
        assert not User.objects.for_organization(acme).get(external_id="gone").is_deleted


# -- deleted meanwhile ----------------------------------------------------------------------------

meanwhile = pytest.mark.django_db(transaction=True)


def lines(rows):
    return ((number, json.dumps(row).encode(), 0) for number, row in enumerate(rows, start=1))


def run(organization, resource, rows, *, on_batch=lambda report: None, **options):
    return run_load(
        resource,
        lines(rows),
        organization=organization,
        actor=TESTER,
        options=LoadOptions(**{"skips_bad": True, **options}),
        on_batch=on_batch,
        embed_first=0,
    )


def elsewhere(work, *given):
    """Runs `work` in a thread, on its own connection."""

    def do():
        try:
            work(*given)
        finally:
            connection.close()

    thread = Thread(target=do)
    thread.start()
    return thread


@meanwhile
@pytest.mark.parametrize("workers", [1, 2])
def test_a_user_deleted_between_two_batches_is_noticed(workers):
    acme = make_organization("acme")
    make_user(acme, external_id="gone")
    rows = [{"session_id": f"s{n}", "user_id": "gone"} for n in range(12)]
    done = []

    def after(report):
        if not done:
            done.append(report.read)
            move("delete", acme, "user_id")

    report = run(acme, "sessions", rows, on_batch=after, batch_size=2, workers=workers)
    assert report.rejected
    with tenant(acme):  # earlier ones were deleted with the user, later ones not inserted
        assert not Session.objects.for_organization(acme).live().exists()


@meanwhile
@pytest.mark.parametrize("restore", [False, True])
def test_a_user_deleted_between_the_look_up_and_the_write_is_noticed(monkeypatch, restore):
    acme = make_organization("acme")
    make_user(acme, external_id="gone")
    lock, deletions = Writer._lock_references, []

    def late(self, *given, **options):
        if not deletions:
            deletions.append(elsewhere(move, "delete", acme, "user_id"))
            deletions[0].join()
        lock(self, *given, **options)

    monkeypatch.setattr(Writer, "_lock_references", late)
    rows = [{"session_id": "s", "user_id": "gone"}, {"session_id": "t", "user_id": "ann"}]
    report = run(acme, "sessions", rows, restore=restore)
    assert (report.rejected, report.counts.inserted) == ((0, 2) if restore else (1, 1))
    with tenant(acme):
        user = User.objects.for_organization(acme).get(external_id="gone")
        assert user.is_deleted is not restore


@contextmanager
def deleting_after(monkeypatch, owner, name, organization, column):
    """Starts a deletion in a thread after the first call of `name`, in the middle of its
    transaction; waits for the deletion at the end."""
    work, threads = getattr(owner, name), []

    def then_delete(*given, **options):
        answer = work(*given, **options)
        if not threads:
            threads.append(elsewhere(move, "delete", organization, column))
            threads[0].join(0.5)
            assert threads[0].is_alive(), "it does not wait"
        return answer

    monkeypatch.setattr(owner, name, then_delete)
    yield
    threads[0].join(20)
    assert not threads[0].is_alive()


@meanwhile
@pytest.mark.parametrize(
    ("resource", "column"), [("sessions", "user_id"), ("messages", "session_id")]
)
def test_a_deletion_after_the_look_up_waits_and_includes_the_new_rows(
    monkeypatch, resource, column
):
    acme = make_organization("acme")
    make_user(acme, external_id="gone")
    make_session(acme, session_id="gone")
    model, row = ROWS[resource]
    with deleting_after(monkeypatch, Writer, "_lock_references", acme, column):
        assert run(acme, resource, [{**row, column: "gone"}]).counts.inserted == 1
    with tenant(acme):
        assert (
            not model.objects.for_organization(acme)
            .live()
            .filter(user=None)
            .exclude(**{"session_id": "gone"} if model is Session else {})
            .exists()
        )
        assert model.objects.for_organization(acme).deleted().exists()


@meanwhile
def test_runs_of_a_session_deleted_meanwhile_are_not_left_live(monkeypatch):
    acme = make_organization("acme")
    make_session(acme, session_id="gone")
    match, deletions = Writer._match, []

    def late(self, stage, *given, **options):
        match(self, stage, *given, **options)
        if not deletions:
            deletions.append(elsewhere(move, "delete", acme, "session_id"))
            deletions[0].join()

    monkeypatch.setattr(Writer, "_match", late)
    row = {"session_id": "gone", "runs": [{"run_id": "r"}]}
    report = run(acme, "sessions", [row])
    assert (report.counts.deleted, report.children["runs"].deleted) == (1, 1)
    with tenant(acme):
        assert not Run.objects.for_organization(acme).exists()


@meanwhile
def test_a_memory_added_while_its_user_is_deleted_is_deleted_too(monkeypatch):
    acme = make_organization("acme")
    make_user(acme, external_id="gone")
    item = json.dumps({"content": "Likes tea.", "user_id": "gone"}).encode()
    with deleting_after(monkeypatch, adding.References, "find", acme, "user_id"):
        (added,) = adding.add_memories(organization=acme, actor=TESTER, items=[item], embed="later")
    assert added.status == "created"
    with tenant(acme):
        assert Memory.objects.for_organization(acme).get().is_deleted


@meanwhile
def test_a_row_created_while_its_parent_is_deleted_is_deleted_too(monkeypatch):
    acme = make_organization("acme")
    user, agent = make_user(acme, external_id="gone"), make_agent(acme)
    session = make_session(acme, user=user, agent=agent)
    values = {"role": "user", "session": session}
    with (
        deleting_after(monkeypatch, records, "lock_parents", acme, "user_id"),
        tenant(acme),
    ):
        messages.create(organization=acme, actor=TESTER, values=values)
    with tenant(acme):
        assert Message.objects.for_organization(acme).get().is_deleted


def test_a_row_is_not_created_below_or_moved_to_a_deleted_parent(acme):
    user, other = make_user(acme, external_id="gone"), make_session(acme)
    agent = make_agent(acme)
    move("delete", acme, "user_id")
    with tenant(acme):
        with pytest.raises(Invalid, match="The user is in the trash"):
            sessions.create(
                organization=acme, actor=TESTER, values={"session_id": "s", "user": user}
            )
        with pytest.raises(Invalid, match="The user is in the trash"):
            sessions.update(other, organization=acme, actor=TESTER, values={"user": user})
        sessions.update(other, organization=acme, actor=TESTER, values={"agent": agent})
        assert not Agent.objects.for_organization(acme).deleted().exists()
