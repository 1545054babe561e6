"""Keys in files, by the rule of all doors (agentmem_site/db/keys.py)."""

import json
from uuid import uuid4

import pytest
from django.core.management import CommandError

from accounts.models import User
from accounts.tenancy import tenant
from memories.models import Agent, Memory
from sessions.models import Message, Run, Session
from tests.bulk.loading import load

BAD = {
    "blank": (" \t", "A key must not be empty."),
    "max_length": ("x" * 256, "256 characters are given; a key has at most 255."),
    "control_character": ("a\x07", "A key cannot hold control characters: character 2 is U+0007."),
    "not_text": (4.5, "A text or a whole number is needed, got the number 4.5."),
}


@pytest.fixture(autouse=True)
def static_encoder(settings):
    settings.ENCODER = "static"


def test_blanks_are_trimmed_and_integers_are_texts_in_every_key(acme, tmp_path):
    load(tmp_path, "users", [{"external_id": " ann\n", "name": " Ann "}, {"external_id": 7}])
    load(tmp_path, "tools", [{"name": 12}])
    run = {"run_id": 1}
    load(tmp_path, "sessions", [{"session_id": 3, "user_id": "ann ", "team_id": 5, "runs": [run]}])
    message = {"role": "user", "session_id": " 3", "run_id": " 1 ", "user_id": 7, "agent_id": 9}
    load(tmp_path, "messages", [{"external_id": 11, **message}])
    load(tmp_path, "memories", [{"external_id": 2, "content": "x", "user_id": 7, "session_id": 3}])
    with tenant(acme):
        users = {u.external_id: u for u in User.objects.for_organization(acme)}
        assert (users.keys(), users["ann"].name) == ({"ann", "7"}, " Ann ")
        session = Session.objects.for_organization(acme).get()
        assert (session.session_id, session.team_id) == ("3", "5")
        assert session.user_id == users["ann"].pk
        made = Message.objects.for_organization(acme).get()
        assert (made.external_id, made.session_id, made.user_id) == (
            "11",
            session.pk,
            users["7"].pk,
        )
        assert made.run_id == Run.objects.for_organization(acme).get(run_id="1").pk
        assert Agent.objects.for_organization(acme).get().external_id == "9"
        memory = Memory.objects.for_organization(acme).get()
        assert (memory.external_id, memory.session_id) == ("2", "3")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_key_is_one_however_it_is_written(acme, tmp_path, workers):
    """For the worker that has its lines, for duplicates, and for lines that were seen before."""
    rows = [{"external_id": key, "name": str(n)} for n, key in enumerate(["a", " a", 5, "5", "5 "])]
    done = load(tmp_path, "users", rows, workers=workers)
    assert (done["inserted"], done["duplicates"]) == (2, 3)
    with tenant(acme):
        names = dict(User.objects.for_organization(acme).values_list("external_id", "name"))
    assert names == {"a": "1", "5": "4"}
    rows = [{"external_id": " a", "name": "1"}, {"external_id": 5, "name": "4"}]
    again = load(tmp_path, "users", rows, workers=workers)
    assert (again["unchanged"], again["inserted"], again["updated"]) == (2, 0, 0)


def test_runs_of_one_key_are_one_run(acme, tmp_path):
    rows = [{"session_id": "s", "runs": [{"run_id": " r"}, {"run_id": "r", "content": "2"}]}]
    for unchanged in (0, 1):
        done = load(tmp_path, "sessions", rows)
        assert (done["runs"]["duplicates"], done["runs"]["unchanged"]) == (1, unchanged)
    with tenant(acme):
        assert [r.content for r in Run.objects.for_organization(acme)] == ["2"]


@pytest.mark.parametrize("code", BAD)
@pytest.mark.parametrize(
    ("resource", "row", "field"),
    [
        ("users", {}, "external_id"),
        ("agents", {}, "external_id"),
        ("blocks", {"label": "l"}, "external_id"),
        ("tools", {}, "name"),
        ("sessions", {}, "session_id"),
        ("sessions", {"session_id": "s"}, "user_id"),
        ("sessions", {"session_id": "s"}, "runs[0].run_id"),
        ("messages", {"external_id": "m", "role": "user"}, "session_id"),
        ("messages", {"external_id": "m", "role": "user", "session_id": "s"}, "run_id"),
        ("memories", {"content": "x"}, "external_id"),
        ("memories", {"content": "x"}, "session_id"),
        ("memories", {"content": "x"}, "agent_id"),
    ],
)
def test_what_is_no_key_is_a_bad_line(acme, tmp_path, resource, row, field, code):
    value, message = BAD[code]
    given = {"runs": [{"run_id": value}]} if field.startswith("runs") else {field: value}
    rejects = tmp_path / "rejects.jsonl"
    with pytest.raises(CommandError):
        load(tmp_path, resource, [{**row, **given}], on_error="skip", rejects=rejects)
    reject = json.loads(rejects.read_text())
    assert (reject["field"], reject["code"], reject["message"]) == (field, code, message)


def test_an_export_restores_what_was_stored_before_the_rule(acme, tmp_path):
    users = {" a": str(uuid4()), "a": str(uuid4())}
    rows = [
        {"id": row_id, "external_id": key, "email": "none", "timezone": ""}
        for key, row_id in users.items()
    ]
    load(tmp_path, "users", rows, preserve_ids=True)
    with tenant(acme):
        stored = User.objects.for_organization(acme)
        assert {u.external_id: str(u.pk) for u in stored} == users
        assert {(u.email, u.timezone) for u in stored} == {("none", "")}
