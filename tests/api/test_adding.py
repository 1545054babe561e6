"""POST memories and memories/batch: each is stored once, and its result is reported."""

import base64
import json
import struct
from uuid import uuid4

import psycopg
import pytest
from django.conf import settings as django_settings
from django.db import connection
from django.test.utils import CaptureQueriesContext

from accounts.models import AuditEvent, User
from accounts.tenancy import tenant
from memories import embeddings
from memories.models import Agent, CachedVector, Memory, MemoryHistory
from memories.services.memories import memories
from tests.api.conftest import client_with
from tests.makers import TESTER, make_agent, make_key, make_memory, make_user
from tests.memories.encoders import Recorder

VECTOR = [0.5, -2.0, *[0.25] * 382]


def as_base64(numbers):
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


@pytest.fixture(autouse=True)
def encoder(monkeypatch, settings):
    recorder = Recorder()
    monkeypatch.setitem(embeddings._loaded, recorder.name, recorder)
    settings.ENCODER = recorder.name
    return recorder


def batch(client, *items, **rest):
    response = client.post("memories/batch", {"memories": list(items), **rest})
    assert response.status_code == 200, response.content
    return response.json()


def stored(organization):
    with tenant(organization):
        rows = Memory.objects.for_organization(organization).order_by("id").defer(None)
        return list(rows.select_related("user", "agent"))


def test_a_batch_reports_the_result_of_each_item(api, acme):
    with_key = make_memory(acme, external_id="m-1", content="Likes tea")
    there = make_memory(acme, content="Opens at eight")
    answer = batch(
        api,
        {"content": "New"},
        {"content": ""},
        {"content": " New "},
        {"external_id": "m-1", "content": "Likes tea"},
        {"external_id": "m-1", "content": "Likes coffee"},
        {"content": "Opens at eight"},
        {"content": "x", "color": "red"},
        "text",
        {"external_id": "m-2", "content": "Twice"},
        {"external_id": "m-2", "content": "Twice"},
        {"external_id": "m-2", "content": "Twice, but other words"},
    )
    results = answer["results"]
    assert [r["index"] for r in results] == list(range(11))
    assert [r["status"] for r in results] == [
        "created",
        "rejected",
        "duplicate",
        "duplicate",
        "rejected",
        "duplicate",
        "rejected",
        "rejected",
        "created",
        "duplicate",
        "rejected",
    ]
    assert (answer["created"], answer["duplicates"], answer["rejected"]) == (2, 4, 5)
    assert results[2]["id"] == results[0]["id"]
    assert results[3]["id"] == str(with_key.pk)
    assert results[5]["id"] == str(there.pk)
    assert results[9]["id"] == results[8]["id"]
    errors = {r["index"]: r["error"] for r in results if "error" in r}
    assert errors[1] == {
        "field": "content",
        "code": "invalid_value",
        "message": "It must not be empty.",
    }
    assert (errors[4]["field"], errors[4]["code"]) == ("external_id", "duplicate")
    assert errors[4]["message"].startswith("Another memory has this external_id")
    assert errors[6]["message"].startswith("Unknown field; allowed: ")
    assert errors[7]["message"] == 'An object is needed, got the text "text".'
    assert errors[10] == errors[4]
    assert [m.content for m in stored(acme)] == ["Likes tea", "Opens at eight", "New", "Twice"]


def test_a_batch_writes_history_and_one_audit_event(api, acme, encoder):
    result = batch(api, {"content": "One", "user_id": "ann"}, {"content": "Two"})["results"]
    with tenant(acme):
        history = MemoryHistory.objects.for_organization(acme).order_by("id")
        assert sorted((str(h.memory_id), h.change_type, h.content) for h in history) == sorted(
            [(result[0]["id"], "created", "One"), (result[1]["id"], "created", "Two")]
        )
        event = AuditEvent.objects.for_organization(acme).get(resource_type="memory")
    assert (event.action, event.actor_name) == ("created", "key")
    assert event.changes == {
        "rows": {"memory": 2, "user": 1},
        "ids": [result[0]["id"], result[1]["id"]],
    }
    batch(api, {"content": "One", "user_id": "ann"})
    with tenant(acme):
        assert AuditEvent.objects.for_organization(acme).filter(resource_type="memory").count() == 1


def test_existing_content_is_not_encoded_again(api, acme, encoder):
    created = batch(api, {"content": "Tea", "speaker": "Ann"}, {"content": "Tea", "speaker": "Bob"})
    assert created["embedded"] is True
    assert encoder.texts == ["Ann: Tea", "Bob: Tea"]
    batch(api, {"content": "Tea", "speaker": "Ann", "user_id": "ann"})
    assert len(encoder.texts) == 2
    assert {(m.embedding_state, m.embedding_model) for m in stored(acme)} == {("ready", "recorder")}
    with tenant(acme):
        assert CachedVector.objects.for_organization(acme).count() == 2


def test_later_leaves_them_to_a_worker(api, acme, encoder):
    answer = batch(api, {"content": "Tea"}, embed="later")
    single = api.post("memories", {"content": "Coffee", "embed": "later"}).json()
    assert (answer["embedded"], single["embedded"]) == (False, False)
    assert single["embedding_state"] == "pending"
    assert encoder.texts == []
    assert {(m.embedding_state, m.embedding_model) for m in stored(acme)} == {("pending", "")}


@pytest.mark.django_db(transaction=True)
def test_workers_are_notified_of_pending_memories(acme_key, acme):
    api = client_with(acme_key)
    options = connection.get_connection_params()
    options = {k: options[k] for k in ("dbname", "user", "password", "host", "port")}
    with psycopg.connect(**options, autocommit=True) as listening:
        listening.execute("LISTEN agentmem_embed")

        def notified():
            listening.execute("NOTIFY agentmem_embed, 'no more'")  # they come in order
            payloads = (n.payload for n in listening.notifies(timeout=60))
            return list(iter(payloads.__next__, "no more"))

        created = api.post("memories", {"content": "Tea"}).json()
        assert notified() == []
        api.patch(f"memories/{created['id']}", {"importance": 1})
        assert notified() == []
        api.patch(f"memories/{created['id']}", {"content": "Coffee"})
        assert notified() == [str(acme.pk)]
        batch(api, {"content": "Water"}, {"content": "Milk"}, embed="later")
        assert notified() == [str(acme.pk)]


def test_an_encoder_that_fails_loses_nothing(api, acme, encoder):
    encoder.failure = embeddings.EncoderError("The embedding service does not answer.")
    answer = batch(api, {"content": "Tea"}, {"content": "Own", "embedding": VECTOR})
    assert (answer["created"], answer["embedded"]) == (2, False)
    single = api.post("memories", {"content": "Coffee"})
    assert (single.status_code, single.json()["embedded"]) == (201, False)
    states = {m.content: m.embedding_state for m in stored(acme)}
    assert states == {"Tea": "pending", "Own": "ready", "Coffee": "pending"}


@pytest.mark.parametrize("given", [VECTOR, as_base64(VECTOR)], ids=["numbers", "base64"])
def test_a_vector_may_be_supplied(api, acme, encoder, given):
    api.post("memories", {"content": "One", "embedding": given})
    named = {"embedding": given, "embedding_model": "mine"}
    batch(api, {"content": "Two", "embedding": given}, {"content": "Three", **named})
    assert encoder.texts == []
    rows = stored(acme)
    assert [m.embedding_model for m in rows] == ["recorder", "recorder", "mine"]
    assert all(m.embedding == VECTOR for m in rows)
    assert {m.embedding_state for m in rows} == {"ready"}


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (VECTOR[:-1], "383 numbers are given; an embedding has 384."),
        (as_base64(VECTOR[:-1]), "383 numbers are given; an embedding has 384."),
        (as_base64([*VECTOR[1:], float("nan")]), "A number is outside -65504 to 65504"),
        (as_base64([*VECTOR[1:], float("inf")]), "A number is outside -65504 to 65504"),
        ([*VECTOR[1:], 65505], "A number is outside -65504 to 65504"),
        ([1e-9] * 384, "An embedding of only zeros has no direction."),
        (as_base64([0.0] * 384), "An embedding of only zeros has no direction."),
        ("@", "An embedding is an array of numbers, or base64 of little-endian float32."),
        (as_base64(VECTOR)[:-2], "An embedding is an array of numbers, or base64"),
    ],
    ids=str,
)
def test_an_invalid_vector_is_rejected(api, acme, vector, message):
    rejected, created = batch(api, {"content": "x", "embedding": vector}, {"content": "y"})[
        "results"
    ]
    assert (rejected["error"]["field"], rejected["error"]["code"]) == (
        "embedding",
        "invalid_vector",
    )
    assert rejected["error"]["message"].startswith(message)
    assert created["status"] == "created"
    single = api.post("memories", {"content": "x", "embedding": vector}).json()
    assert (single["status"], single["errors"][0]["field"]) == (400, "embedding")
    assert single["errors"][0]["message"].startswith(message)


def test_unknown_users_and_agents_are_created_if_the_key_may(api, acme):
    known = make_user(acme, external_id="ann")
    answer = batch(
        api,
        {"content": "1", "user_id": "ann", "agent_id": "barista"},
        {"content": "2", "user_id": str(known.pk), "agent_id": "barista"},
        {"content": "3", "user_id": "bob"},
    )
    assert answer["created"] == 3
    rows = stored(acme)
    assert [m.user.external_id for m in rows] == ["ann", "ann", "bob"]
    assert [m.agent and m.agent.external_id for m in rows] == ["barista", "barista", None]
    single = api.post("memories", {"content": "4", "user_id": "cat"}).json()
    with tenant(acme):
        cat = User.objects.for_organization(acme).get(external_id="cat")
    assert single["user_id"] == str(cat.pk)


def test_a_key_that_may_not_add_users_may_name_existing_ones(acme):
    make_agent(acme, external_id="barista")
    client = client_with(make_key(acme, ["memory:read", "memory:write", "agent:write"]))
    refused, known, created = batch(
        client,
        {"content": "1", "user_id": "bob", "agent_id": "not-made"},
        {"content": "2", "agent_id": "barista"},
        {"content": "3", "agent_id": "waiter"},
    )["results"]
    assert refused["error"] == {
        "field": "user_id",
        "code": "forbidden",
        "message": "There is no user 'bob', and adding one needs the scope user:write.",
    }
    assert (known["status"], created["status"]) == ("created", "created")
    single = client.post("memories", {"content": "4", "user_id": "bob"})
    assert single.status_code == 403
    assert single.json()["detail"] == refused["error"]["message"]
    with tenant(acme):
        agents = Agent.objects.for_organization(acme).values_list("external_id", flat=True)
        assert sorted(agents) == ["barista", "waiter"]


def test_an_id_or_key_of_another_organization_can_be_created_here(acme, globex, theirs):
    user = make_user(acme, external_id="ann")
    names = ["ann", str(user.pk), str(uuid4())]
    for name in names:
        (result,) = batch(theirs, {"content": "x", "user_id": name})["results"]
        again = theirs.post("memories", {"content": "x", "user_id": name}).json()
        assert (result["status"], again["status"]) == ("created", "duplicate")
    memories = stored(globex)
    assert len({memory.user_id for memory in memories} - {user.pk}) == 3
    assert {theirs.get(f"users/{m.user_id}").json()["external_id"] for m in memories} == {*names}
    assert stored(acme) == []


def test_rows_in_the_trash_are_not_written(api, acme):
    user = make_user(acme, external_id="ann")
    memory = make_memory(acme, external_id="m-1", content="Likes tea")
    api.delete(f"users/{user.pk}")
    api.delete(f"memories/{memory.pk}")
    by_key, by_id, taken = batch(
        api,
        {"content": "x", "user_id": "ann"},
        {"content": "x", "user_id": str(user.pk)},
        {"external_id": "m-1", "content": "Likes tea"},
    )["results"]
    assert by_key["error"]["message"] == "The user 'ann' is in the trash: restore it first."
    assert by_id["error"]["message"] == (f"The user '{user.pk}' is in the trash: restore it first.")
    assert taken["error"] == {
        "field": "external_id",
        "code": "in_trash",
        "message": "The memory with this external_id is in the trash: restore or purge it.",
    }
    single = api.post("memories", {"external_id": "m-1", "content": "Likes tea"})
    assert (single.status_code, single.json()["code"]) == (409, "in_trash")


def test_content_in_the_trash_may_be_added_again(api, acme):
    memory = make_memory(acme, content="Likes tea")
    with tenant(acme):
        rows = Memory.objects.for_organization(acme).filter(pk=memory.pk)
        memories.delete(rows, organization=acme, actor=TESTER)
    assert batch(api, {"content": "Likes tea"})["created"] == 1


def test_an_external_id_added_again_is_a_duplicate(api):
    body = {"external_id": "m-1", "content": "Likes tea"}
    first, again = api.post("memories", body), api.post("memories", body)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == {**first.json(), "status": "duplicate"}


def test_every_column_arrives(api, acme):
    item = {
        "content": "Zoë likes tea 🎈",
        "external_id": "m-1",
        "session_id": "s-1",
        "speaker": "Zoë",
        "context": "What can I get you?",
        "memory_type": "core",
        "scope": "agent",
        "level": "strategic",
        "importance": 0.75,
        "score": 2.5,
        "expires_at": "2030-01-01T00:00:00Z",
        "created_at": "2025-03-01T09:00:00+02:00",
        "metadata": {"topic": ["drinks"], "n": 10**37},
    }
    batch(api, item)
    from_batch = api.get("memories/m-1").json()
    from_one = api.post("memories", {**item, "external_id": "m-2"}).json()
    for row, key in ((from_batch, "m-1"), (from_one, "m-2")):
        shown = {**item, "external_id": key, "created_at": "2025-03-01T07:00:00Z"}
        assert {name: row[name] for name in item} == shown
        assert row["updated_at"] > "2026"


def test_memories_are_indexed_in_the_organizations_language(api, acme):
    api.patch("organizations/acme", {"settings": {"language": "german"}})
    batch(api, {"content": "Die Häuser"})
    api.post("memories", {"content": "Das Haus"})
    assert {m.language for m in stored(acme)} == {"german"}


@pytest.mark.parametrize("count", [0, 1001])
def test_a_batch_has_a_size(api, count):
    refused = api.post("memories/batch", {"memories": [{"content": "x"}] * count})
    assert refused.status_code == 400
    assert refused.json()["detail"] == (
        f"The batch has {count:,} memories; it may have 1 to 1,000."
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{}", "memories: This field is required."),
        (b"", "memories: This field is required."),
        (b'{"memories": 5}', "memories: An array of memories is needed."),
        (b'{"memories": [], "memory": 1}', "memory: There is no such field. Known: memories, "),
        (b'{"memories": [{}], "embed": "soon"}', 'embed: "soon" is not a valid choice.'),
        (b'{"memories": [{}], "memories": [{}]}', "The key 'memories' is given twice."),
        (b'{"memories": [{"metadata": {"x": NaN}}]}', "NaN is not JSON."),
        (b'{"memories": [{"content": "\\ud800"}]}', "A string contains a NUL character or"),
        (b'{"memories": [' + b"[" * 100_000, "The JSON is nested deeper than 64 levels."),
        (b'{"memories": [{"content": "x"}', "The body is not JSON: "),
    ],
)
def test_an_invalid_batch_is_refused_as_a_whole(api, body, message):
    response = api.generic("POST", "memories/batch", body, "application/json")
    assert response.status_code == 400
    assert response.json()["detail"].startswith(message), response.json()["detail"]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (b'{"content": "a\\u0000b"}', "Text cannot hold the character \\u0000"),
        (b'{"content": "\xff"}', "Invalid UTF-8"),
        (b'{"content": "x", "content": "y"}', "The key is given twice"),
        (b'{"content": "x", "metadata": {"a": 1, "a": 2}}', "The key is given twice"),
        (b'{"content": "x", "metadata": {"a": 1e400}}', "A number has more than 38 digits"),
        (b'{"content": "x", "metadata": {"a": 1e38}}', "A number has more than 38 digits"),
        (b'{"content": "x", "metadata": {"a": %s}}' % (b"1" * 5000), "A number has more than"),
        (b'{"content": "x", "metadata": ' + b'{"a":' * 64 + b"1" + b"}" * 65, "Nested deeper"),
        (b'{"content": "x", "metadata": []}', "An object is needed, got an array."),
        (
            b'{"content": "x", "created_at": "2026-01-01T00:00:00"}',
            "'2026-01-01T00:00:00' has no time zone; add Z",
        ),
        (b'{"content": "x", "created_at": "1969-01-01T00:00:00Z"}', "Expected a moment between"),
        (b'{"content": " "}', "This field may not be blank."),
        (b'{"content": "x", "score": 1e39}', ""),
    ],
)
def test_json_that_cannot_be_stored_is_rejected_item_by_item(api, acme, item, message):
    body = b'{"memories": [{"content": "good"}, ' + item + b"]}"
    response = api.generic("POST", "memories/batch", body, "application/json").json()
    good, bad = response["results"]
    assert (good["status"], bad["status"]) == ("created", "rejected")
    assert bad["error"]["message"].startswith(message), bad
    assert [m.content for m in stored(acme)] == ["good"]


def test_a_byte_order_mark_may_lead_a_batch(api, acme):
    body = b'\xef\xbb\xbf{"memories": [{"content": "x"}]}'
    assert api.generic("POST", "memories/batch", body, "application/json").status_code == 200
    assert [m.content for m in stored(acme)] == ["x"]


def test_a_batch_has_more_room_than_other_bodies(api, acme):
    item = {"content": "x", "context": "y" * 65_000}
    many = [{**item, "content": str(n)} for n in range(100)]
    assert len(json.dumps(many)) > django_settings.DATA_UPLOAD_MAX_MEMORY_SIZE
    assert batch(api, *many, embed="later")["created"] == 100
    body = b'{"memories": [' + b" " * (16 * 1024 * 1024) + b"]}"
    refused = api.generic("POST", "memories/batch", body, "application/json")
    assert (refused.status_code, refused.json()["code"]) == (413, "body_too_large")
    assert refused.json()["detail"] == "The body is larger than 16777216 bytes."


def test_a_full_batch_costs_as_many_statements_as_a_small_one(api, acme, django_assert_num_queries):
    def add(count, name):
        return batch(api, *[{"content": f"{name} {n}"} for n in range(count)])

    add(1, "the key's first use is noted")
    with CaptureQueriesContext(connection) as few:
        add(2, "few")
    with CaptureQueriesContext(connection) as many:
        assert add(1000, "many")["created"] == 1000
    # (Four more when the load analyzes a table that has grown.)
    assert len(many) <= len(few) + 4 < 30
