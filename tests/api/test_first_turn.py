"""The first turn of a new user: what an unknown name matches, and what it creates."""

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from django.db import connections

from accounts.models import AuditEvent, User
from accounts.roles import ALL_PERMISSIONS
from accounts.services.naming import add_named
from accounts.tenancy import tenant
from memories.models import Agent
from sessions.models import Message, Session
from tests.api.conftest import client_with
from tests.makers import (
    TESTER,
    make_agent,
    make_key,
    make_memory,
    make_message,
    make_session,
    make_user,
)


@pytest.fixture(autouse=True)
def static_encoder(settings):
    settings.ENCODER = "static"


@pytest.fixture
def others(acme):
    """What a search for somebody new must not find."""
    user, agent = make_user(acme, external_id="ann"), make_agent(acme, external_id="barista")
    session = make_session(acme, session_id="s", user=user, agent=agent)
    make_memory(acme, content="Likes tea.", user=user, agent=agent, session_id="s")
    make_message(acme, session=session, user=user, agent=agent, role="user", text="Tea, please.")
    return session


NAMES = {"a key": "nobody", "an id": str(uuid4()), "a long key": "n" * 300, "a slash": "a/b"}
LISTS = [
    ("memories", "user_id"),
    ("memories", "agent_id"),
    ("memories", "session_id"),
    ("sessions", "user_id"),
    ("sessions", "agent_id"),
    ("messages", "session_id"),
    ("messages", "user_id"),
    ("messages", "agent_id"),
    ("blocks", "user_id"),
    ("agents/barista/memories", "user_id"),
    ("agents/barista/sessions", "user_id"),
    ("agents/barista/messages", "session_id"),
    ("sessions/s/messages", "user_id"),
    ("memories/duplicates", "user_id"),
    ("memories/duplicates", "agent_id"),
]


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize(("path", "field"), LISTS)
def test_a_list_filtered_by_an_unknown_name_is_empty(api, others, path, field, name):
    answer = api.get(path, {field: name})
    assert (answer.status_code, answer.json().get("results")) == (200, []), answer.content


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("field", ["user_id", "agent_id"])
def test_an_unknown_name_matches_nothing_in_counts_searches_and_exports(api, others, field, name):
    assert api.get("memories/stats", {field: name}).json()["memories"] == 0
    for mode in ("hybrid", "semantic", "keyword"):
        found = api.post("memories/search", {"query": "tea", "mode": mode, field: name})
        assert (found.status_code, found.json()["results"]) == (200, [])
    exported = api.post("memories/export", {field: name})
    assert (exported.status_code, b"".join(exported.streaming_content)) == (200, b"")
    for path, rest in (("update", {"set": {"importance": 1}}), ("delete", {})):
        answer = api.post(f"memories/batch/{path}", {"filter": {field: name}, **rest})
        assert (answer.status_code, answer.json()["matched"]) == (200, 0)


def test_a_batch_of_searches_does_not_fail_for_one_name(api, others):
    searches = [{"query": "tea"}, *({"query": "tea", "user_id": name} for name in NAMES.values())]
    answer = api.post("memories/search/batch", {"searches": searches})
    assert answer.status_code == 200
    assert [len(one["results"]) for one in answer.json()["results"]] == [1, 0, 0, 0, 0]


def test_an_invalid_name_is_refused_in_a_filter(api, others):
    for value in (5.0, True, None, "", " \t", "a\tb", [], {}):
        refused = api.post("memories/search", {"query": "tea", "user_id": value})
        assert refused.status_code == 400
        assert refused.json()["errors"][0]["field"] == "user_id"
    assert api.get("memories?user_id=").status_code == 400


def test_a_name_in_the_trash_matches_when_deleted_asks_for_it(api, others):
    api.delete("users/ann")
    assert api.get("memories?user_id=ann").json()["results"] == []
    (memory,) = api.get("memories?user_id=ann&deleted=only").json()["results"]
    assert memory["content"] == "Likes tea."


def context(api, agent="barista", **body):
    answer = api.post(f"agents/{agent}/context", {"query": "tea", **body})
    assert answer.status_code == 200, answer.content
    return answer.json()


def test_the_context_of_an_unknown_user_has_what_everybody_may_know(acme, api, others):
    make_memory(acme, content="Tea is sold until six.")
    make_user(acme, external_id="bob")
    for body, missing in [
        ({"user_id": "nobody"}, "user"),
        ({"session_id": "nowhere"}, "session"),
        ({"session_id": "nowhere", "user_id": "bob"}, "session"),
    ]:
        answer = context(api, **body)
        assert "sold until six" in answer["text"]
        assert "Likes tea" not in answer["text"]
        assert "Tea, please" not in answer["text"]
        assert answer["notice"] == f"There is no such {missing} yet."
    answer = context(api, agent="new-agent", user_id="ann")
    assert answer["notice"] == "There is no such agent yet."
    assert "sold until six" in answer["text"]
    assert "Likes tea" not in answer["text"]  # it is Ann's with another agent


def row(model, organization, **named):
    with tenant(organization):
        return model.objects.for_organization(organization).get(**named)


def test_a_message_creates_its_session_user_and_agent(acme, api):
    body = {"role": "user", "text": "Hi!", "session_id": "s", "user_id": "ann", "agent_id": "bot"}
    created = api.post("messages", body)
    assert created.status_code == 201, created.content
    assert created.json()["session_id"] == "s"
    session = row(Session, acme, session_id="s")
    ann, bot = row(User, acme, external_id="ann"), row(Agent, acme, external_id="bot")
    assert (session.user_id, session.agent_id) == (ann.pk, bot.pk)
    assert (created.json()["user_id"], created.json()["agent_id"]) == (str(ann.pk), str(bot.pk))
    again = api.post("messages", {**body, "text": "Again."}).json()
    assert again["user_id"] == created.json()["user_id"]
    assert row(Session, acme, session_id="s").pk == session.pk
    with tenant(acme):
        events = AuditEvent.objects.filter(organization=acme, action="created")
        events = events.exclude(resource_type__in=["apikey", "organization"])
        types = sorted(events.values_list("resource_type", flat=True))
    assert types == ["agent", "message", "message", "session", "user"]


def test_a_message_to_an_unknown_session_path_creates_it(acme, api):
    created = api.post("sessions/s-1/messages", {"role": "user", "text": "Hi!", "user_id": "ann"})
    assert (created.status_code, created.json()["session_id"]) == (201, "s-1")
    named = {"role": "user", "text": "Hi!", "session_id": "s-2"}
    assert api.post("sessions/s-2/messages", named).status_code == 201
    astray = api.post("sessions/s-3/messages", named)
    assert astray.json()["detail"] == "session_id: This is not the session in the path."
    run = api.post("sessions/s-4/runs", {"run_id": "r"})
    assert (run.status_code, run.json()["session_id"], run.json()["position"]) == (201, "s-4", 0)
    assert api.post("sessions/s-4/runs", {"run_id": "r2"}).json()["position"] == 1
    with tenant(acme):
        keys = Session.objects.for_organization(acme).values_list("session_id", flat=True)
        assert sorted(keys) == ["s-1", "s-2", "s-4"]


WRITES = [
    ("post", "sessions", {"session_id": "new"}, ["user_id", "agent_id"]),
    ("post", "messages", {"role": "user"}, ["user_id", "agent_id", "session_id"]),
    ("post", "sessions/s/messages", {"role": "user"}, ["user_id", "agent_id"]),
    ("post", "blocks", {"label": "human"}, ["user_id"]),
    ("post", "memories", {"content": "Likes coffee."}, ["user_id", "agent_id"]),
    ("patch", "sessions/s", {}, ["user_id", "agent_id"]),
    ("put", "sessions/s", {}, ["user_id", "agent_id"]),
    ("patch", "messages/m", {}, ["user_id", "agent_id", "session_id"]),
    ("patch", "memories/f", {}, ["user_id", "agent_id"]),
    ("patch", "blocks/b", {}, ["user_id"]),
]
EACH = [(m, p, body, field) for m, p, body, fields in WRITES for field in fields]
MODELS = {"user_id": User, "agent_id": Agent, "session_id": Session}


@pytest.fixture
def rows(api, others):
    api.post("messages", {"external_id": "m", "role": "user"})
    api.post("memories", {"external_id": "f", "content": "Likes cake."})
    api.post("blocks", {"external_id": "b", "label": "persona"})


@pytest.mark.parametrize(("method", "path", "body", "field"), EACH)
def test_an_unknown_name_creates_the_row(acme, api, rows, method, path, body, field):
    answer = getattr(api, method)(path, {**body, field: "newcomer"})
    assert answer.status_code in (200, 201), answer.content
    model = MODELS[field]
    created = row(model, acme, **{model.auto_create_key: "newcomer"})
    assert answer.json()[field] in (str(created.pk), "newcomer")
    with tenant(acme):
        event = AuditEvent.objects.filter(organization=acme, resource_type=field[:-3]).latest("pk")
    if path != "memories":  # (one event for the batch, with the number of rows)
        assert (event.action, event.resource_id) == ("created", created.pk)


@pytest.mark.parametrize(("method", "path", "body", "field"), EACH)
def test_a_name_in_the_trash_and_an_invalid_one_are_refused(
    acme, api, rows, method, path, body, field
):
    model = MODELS[field]
    label = model._meta.verbose_name
    resource = f"{field[:-3]}s"
    api.post(resource, {model.auto_create_key: "gone"})
    api.delete(f"{resource}/gone")
    refused = getattr(api, method)(path, {**body, field: "gone"})
    assert refused.status_code == 400
    message = f"The {label} 'gone' is in the trash: restore it first."
    assert refused.json()["errors"][0]["message"] == message
    for name in ("", " \n ", "a\x07b", "x" * 256, 7.0, False, ["a"]):
        refused = getattr(api, method)(path, {**body, field: name})
        assert refused.status_code == 400, (name, refused.content)
        assert refused.json()["errors"][0]["field"] == field


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        each for each in EACH if each[3] != "session_id"
    ],  # the scope for messages creates sessions, too
)
def test_a_caller_who_may_not_create_the_row_gets_the_scope(acme, rows, method, path, body, field):
    scope = f"{field[:-3]}:write"
    client = client_with(make_key(acme, [s for s in ALL_PERMISSIONS if s != scope]))
    known = getattr(client, method)(
        path, {**body, field: "ann" if field == "user_id" else "barista"}
    )
    assert known.status_code in (200, 201), known.content
    refused = getattr(client, method)(path, {**body, field: "newcomer"})
    label = field[:-3]
    assert refused.status_code == 403
    assert refused.json()["errors"] == [
        {
            "field": field,
            "code": "forbidden",
            "message": f"There is no {label} 'newcomer', and adding one needs the scope {scope}.",
        }
    ]
    with tenant(acme):
        rows = MODELS[field].objects.for_organization(acme)
        assert not rows.filter(external_id="newcomer").exists()


def test_a_refused_row_creates_nothing(acme, api, others):
    for path, body in [
        ("messages", {"role": "nobody", "user_id": "eve", "session_id": "e"}),
        ("messages", {"role": "user", "user_id": "eve", "session_id": "e", "run_id": "r"}),
        ("sessions", {"session_id": "s", "user_id": "eve"}),
        ("sessions/e/runs", {"run_id": ""}),
        ("sessions/e/runs", {"run_id": "r", "status": "lost"}),
    ]:
        assert api.post(path, body).status_code in (400, 409), path
    with tenant(acme):
        assert not User.objects.for_organization(acme).filter(external_id="eve").exists()
        assert Session.objects.for_organization(acme).count() == 1


def test_a_session_in_the_trash_takes_no_run_or_message(api, others):
    api.delete("sessions/s")
    for path, body in (("runs", {}), ("messages", {"role": "user"})):
        refused = api.post(f"sessions/s/{path}", body)
        assert refused.status_code == 400
        assert refused.json()["detail"] == (
            "session_id: The session 's' is in the trash: restore it first."
        )
        assert api.get(f"sessions/s/{path}").status_code == 404


def test_a_reference_does_not_create_a_run(api, others):
    refused = api.post("messages", {"role": "user", "session_id": "s", "run_id": "r"})
    assert refused.json()["detail"] == "run_id: There is no run 'r' in this session."


def test_a_row_that_another_request_created_meanwhile_is_used(acme):
    late = [User(organization=acme, external_id="ann") for _ in range(2)]
    with tenant(acme):
        for user in late:
            add_named({"user": user}, organization=acme, actor=TESTER)
    assert late[0].pk == late[1].pk == row(User, acme, external_id="ann").pk


@pytest.mark.django_db(transaction=True)
def test_two_first_messages_at_once_share_one_session(acme, acme_key):
    def say(number):
        try:
            body = {"role": "user", "text": str(number), "session_id": "s", "user_id": "ann"}
            return client_with(acme_key).post("messages", body).status_code
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(say, range(8))) == [201] * 8
    with tenant(acme):
        assert Message.objects.for_organization(acme).filter(session__session_id="s").count() == 8
