"""An unchanged line is recognized by its hash; after any change it is compared again."""

import pytest
from django.db import connection

from accounts.models import User
from accounts.services.users import users
from accounts.tenancy import tenant
from memories.models import Agent, Memory
from memories.services.agents import agents
from sessions.models import Message, Run, Session
from sessions.services.conversations import append_run, runs
from tests.bulk.loading import load
from tests.makers import TESTER

ROWS = {
    "users": [{"external_id": "u1", "name": "Ann"}],
    "agents": [{"external_id": "a1", "system": "Be kind."}],
    "blocks": [{"external_id": "b1", "label": "human", "value": "Ann", "user_id": "u1"}],
    "tools": [{"name": "t1", "description": "Adds"}],
    "sessions": [
        {
            "session_id": "s1",
            "agent_id": "a1",
            "user_id": "u1",
            "runs": [{"run_id": "r1", "content": "Hello"}, {"run_id": "r2"}],
        }
    ],
    "messages": [{"external_id": "m1", "role": "user", "text": "Hi", "session_id": "s1"}],
    "memories": [{"external_id": "m1", "content": "Ann likes tea.", "user_id": "u1"}],
}


@pytest.fixture
def written():
    """The statements that copy lines into a staging table. Unchanged lines need none."""
    statements = []

    def note(execute, sql, parameters, many, context):
        text = sql if isinstance(sql, str) else sql.as_string(None)
        if "CREATE TEMP TABLE" in text:
            statements.append(text)
        return execute(sql, parameters, many, context)

    with connection.execute_wrapper(note):
        yield statements


@pytest.mark.parametrize("resource", ROWS)
def test_unchanged_lines_are_recognized_by_their_hash(acme, tmp_path, resource, written):
    first = load(tmp_path, resource, ROWS[resource])
    assert first["inserted"] == 1
    assert written
    written.clear()
    again = load(tmp_path, resource, ROWS[resource])
    assert (again["unchanged"], again["read"]) == (1, 1)
    assert not written
    if resource == "sessions":
        assert again["runs"]["unchanged"] == 2


def _rename_user(acme):
    user = User.objects.for_organization(acme).get(external_id="u1")
    users.update(user, organization=acme, actor=TESTER, values={"external_id": "u2"})


def _another_agent(acme):
    agent = Agent.objects.for_organization(acme).get(external_id="a1")
    agents.update(agent, organization=acme, actor=TESTER, values={"external_id": "a2"})
    agents.create(organization=acme, actor=TESTER, values={"external_id": "a1"})


def _run(acme):
    return Run.objects.for_organization(acme).get(run_id="r1")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda acme: runs.update(
                _run(acme), organization=acme, actor=TESTER, values={"content": "Other"}
            ),
            ("updated", 1),
        ),
        (
            lambda acme: runs.purge(
                Run.objects.for_organization(acme).filter(run_id="r1"),
                organization=acme,
                actor=TESTER,
            ),
            ("updated", 1),
        ),
        (_rename_user, ("updated", 1)),
        (_another_agent, ("updated", 1)),
        # A run that the line does not have changes nothing about it.
        (
            lambda acme: append_run(
                Session.objects.get(organization=acme),
                organization=acme,
                actor=TESTER,
                values={"run_id": "r3"},
            ),
            ("unchanged", 1),
        ),
    ],
    ids=["run changed", "run purged", "user has another key", "another agent", "run appended"],
)
def test_changes_below_a_session_are_noticed(acme, tmp_path, change, expected):
    load(tmp_path, "sessions", ROWS["sessions"])
    with tenant(acme):
        change(acme)
    report = load(tmp_path, "sessions", ROWS["sessions"])
    assert report[expected[0]] == expected[1]
    with tenant(acme):
        session = Session.objects.get(organization=acme)
        assert (session.user.external_id, session.agent.external_id) == ("u1", "a1")
        assert _run(acme).content == "Hello"


def test_a_deleted_run_comes_back_with_restore(acme, tmp_path):
    load(tmp_path, "sessions", ROWS["sessions"])
    with tenant(acme):
        one = Run.objects.for_organization(acme).filter(run_id="r1")
        runs.delete(one, organization=acme, actor=TESTER)
    assert load(tmp_path, "sessions", ROWS["sessions"])["runs"]["deleted"] == 1
    report = load(tmp_path, "sessions", ROWS["sessions"], restore=True)
    assert report["runs"]["updated"] == 1
    with tenant(acme):
        assert not _run(acme).is_deleted


def test_a_line_whose_run_stayed_in_the_trash_is_compared_again(acme, tmp_path):
    load(tmp_path, "sessions", ROWS["sessions"])
    with tenant(acme):
        one = Run.objects.for_organization(acme).filter(run_id="r1")
        runs.delete(one, organization=acme, actor=TESTER)
    renamed = [{**ROWS["sessions"][0], "name": "Tea"}]
    for updated in (1, 0):  # the session is written once
        report = load(tmp_path, "sessions", renamed)
        assert (report["updated"], report["runs"]["deleted"]) == (updated, 1)
    assert load(tmp_path, "sessions", renamed, restore=True)["runs"]["updated"] == 1
    with tenant(acme):
        assert not _run(acme).is_deleted


def test_the_same_line_with_other_options_is_compared_again(acme, tmp_path):
    row = {"external_id": "u1", "created_at": "2020-01-01T00:00:00Z"}
    load(tmp_path, "users", [row])
    assert load(tmp_path, "users", [row], preserve_timestamps=True)["updated"] == 1


def test_a_new_vector_is_replaced_by_the_one_in_the_line(acme, tmp_path):
    row = {"content": "Tea", "external_id": "m", "embedding": [0.5] * 384, "embedding_model": "x"}
    load(tmp_path, "memories", [row])
    with tenant(acme):
        Memory.objects.for_organization(acme).update(
            embedding=[0.25] * 384, embedding_model="y", line_hash=None
        )
    assert load(tmp_path, "memories", [row])["updated"] == 1


def test_the_last_line_of_a_key_counts_if_an_earlier_one_is_unchanged(acme, tmp_path):
    known, other = {"external_id": "u1", "name": "A"}, {"external_id": "u1", "name": "B"}
    load(tmp_path, "users", [known])
    report = load(tmp_path, "users", [other, known])
    assert (report["unchanged"], report["duplicates"]) == (1, 1)
    with tenant(acme):
        assert User.objects.get(organization=acme).name == "A"
    assert load(tmp_path, "users", [known, other])["updated"] == 1


def test_sessions_with_messages_in_runs_are_recognized_too(acme, tmp_path):
    load(tmp_path, "sessions", ROWS["sessions"])
    row = {**ROWS["messages"][0], "run_id": "r1"}
    load(tmp_path, "messages", [row])
    assert load(tmp_path, "messages", [row])["unchanged"] == 1
    with tenant(acme):
        assert Message.objects.get(organization=acme).run.run_id == "r1"
