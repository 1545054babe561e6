"""What a body says is stored, refused by name, or the default: nothing is dropped in silence."""

from uuid import uuid4

import pytest

from tests.api.routes import BODIES

THEN = "2020-02-03T04:05:06Z"
PATHS = {
    "users": "users",
    "agents": "agents",
    "blocks": "blocks",
    "tools": "tools",
    "sessions": "sessions",
    "session-runs": "sessions/s/runs",
    "session-messages": "sessions/s/messages",
    "messages": "messages",
    "memories": "memories",
    "members": "members",
    "api-keys": "api-keys",
}
DATED = ("sessions", "session-runs", "session-messages", "messages", "memories")
KEYS = {"tools": "name", "sessions": "session_id", "session-runs": "run_id"}
OPENAI = [
    {"role": "developer", "content": "Be terse."},
    {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image_url"}]},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function"}]},
    {"role": "tool", "tool_call_id": "c1", "content": "42"},
    {"role": "function", "name": "lookup", "content": "42"},
]


@pytest.fixture(autouse=True)
def static_encoder(settings):
    settings.ENCODER = "static"


@pytest.mark.parametrize("name", DATED)
def test_what_happened_at_a_time_keeps_it(api, name):
    path, body = PATHS[name], BODIES[name]
    made = api.post(path, {**body, "created_at": "2020-02-03 05:05:06+01:00"})
    assert (made.status_code, made.json()["created_at"]) == (201, THEN), made.content
    assert made.json()["updated_at"] > THEN
    for moment in ("1969-12-31T00:00:00Z", "2200-01-01T00:00:00Z", "2020-02-03T04:05:06"):
        refused = api.post(path, {**body, "created_at": moment})
        assert refused.json()["errors"][0]["field"] == "created_at"
    if name == "session-messages":
        return
    here = f"{path}/{made.json()['id']}"
    put = {k: v for k, v in body.items() if k not in ("external_id", "run_id", "session_id")}
    assert api.put(here, put).json()["created_at"] == THEN
    assert api.put(here, {**put, "created_at": None}).json()["created_at"] == THEN
    later = api.put(here, {**put, "created_at": "2021-01-01T00:00:00Z"})
    assert later.json()["created_at"] == "2021-01-01T00:00:00Z"
    refused = api.patch(here, {"created_at": THEN})
    assert refused.json()["errors"][0]["code"] == "fixed"
    assert api.patch(here, {"created_at": "2021-01-01T01:00:00+01:00"}).status_code == 200
    key = KEYS.get(name, "external_id")
    by_put = api.put(f"{path}/by-put", {**put, "created_at": THEN})
    assert (by_put.status_code, by_put.json()["created_at"]) == (201, THEN)
    assert by_put.json()[key] == "by-put"


@pytest.mark.parametrize("name", PATHS)
def test_a_read_only_field_is_refused_by_name(api, name):
    path, body = PATHS[name], BODIES[name]
    given = {
        "id": str(uuid4()),
        "organization_id": str(uuid4()),
        "updated_at": THEN,
        "created_by_id": None,
        "last_updated_by_id": str(uuid4()),
        "is_deleted": True,
        "deleted_at": THEN,
    }
    own = {
        "memories": ["version", "hash", "access_count", "embedding_state"],
        "blocks": ["version"],
        "session-runs": ["position", "session_id"],
        "api-keys": ["prefix", "revoked_at"],
        "members": ["last_login"],
    }
    given |= dict.fromkeys(own.get(name, []), 7)
    if name not in DATED:
        given["created_at"] = THEN
    for field, value in given.items():
        refused = api.post(path, {**body, field: value})
        assert refused.status_code == 400, field
        (error,) = refused.json()["errors"]
        assert (error["field"], error["code"]) == (field, "read_only")
    together = api.post(path, {**body, **given}).json()
    assert {e["field"] for e in together["errors"]} == given.keys()


@pytest.mark.parametrize("name", [n for n in PATHS if n not in ("session-messages", "api-keys")])
def test_what_a_get_answers_may_be_sent_back(api, name):
    path = PATHS[name]
    here = f"{path}/{api.post(path, BODIES[name]).json()['id']}"
    row = api.get(here).json()
    for method in (api.put, api.patch):
        same = method(here, row)
        assert (same.status_code, same.json()) == (200, row), same.content
        otherwise = {**row, "created_at": row["created_at"].replace("Z", "+00:00")}
        assert method(here, otherwise).json() == row
        for field, value in {"is_deleted": True, "updated_at": THEN, "id": str(uuid4())}.items():
            refused = method(here, {**row, field: value})
            assert [(e["field"], e["code"]) for e in refused.json()["errors"]] == [
                (field, "read_only")
            ]
    assert api.get(here).json() == row


def test_counts_that_move_by_themselves_do_not_stop_a_put(api):
    api.post("memories", {"external_id": "m", "content": "Likes tea."})
    row = {**api.get("memories/m").json(), "access_count": 99, "embedding_state": "pending"}
    put = api.put("memories/m", {**row, "importance": 0.9})
    assert (put.status_code, put.json()["access_count"]) == (200, 0)
    assert put.json()["embedding_state"] == "ready"


def test_a_run_may_say_the_session_of_its_path(api):
    assert api.post("sessions/s/runs", {"session_id": "s"}).status_code == 201
    assert api.put("sessions/s/runs/r", {"session_id": "s"}).status_code == 201
    assert api.post("sessions/s/runs", {"session_id": "t"}).status_code == 400


def test_a_batch_refuses_what_the_server_sets(api):
    items = [{"content": "x", field: THEN} for field in ("updated_at", "deleted_at", "id")]
    added = api.post("memories/batch", {"memories": [*items, {"content": "y", "created_at": THEN}]})
    results = added.json()["results"]
    assert [r["status"] for r in results] == ["rejected"] * 3 + ["created"]
    assert (results[0]["error"]["field"], results[0]["error"]["code"]) == (
        "updated_at",
        "read_only",
    )
    assert api.get(f"memories/{results[3]['id']}").json()["created_at"] == THEN


# -- nulls ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in PATHS if n != "api-keys"])
def test_a_null_is_the_default(api, name):
    """Of each optional field, when a row is made, replaced and changed."""
    path, body = PATHS[name], BODIES[name]
    plain = api.post(path, body)
    fields = [f for f in plain.json() if f not in ("id", "organization_id", "hash", "version")]
    here = f"{path}/{plain.json()['id']}"
    if name not in ("session-messages",):
        for field in fields:
            if field in body or field in ("session_id", "status", "embedded") or is_set(field):
                continue
            put = api.put(here, {**body, field: None})
            assert put.status_code == 200, (field, put.content)
            assert put.json()[field] == plain.json()[field]
    unkeyed = {k: v for k, v in body.items() if k not in ("external_id", "session_id", "run_id")}
    if name in ("tools", "members"):
        return  # whose key is required
    for field in fields:
        if field in unkeyed or is_set(field) or field in ("status", "embedded"):
            continue
        if field == "session_id" and "sessions/" in path:
            continue
        text = {"content": f"For {field}."} if name == "memories" else {}
        made = api.post(path, {**unkeyed, **text, field: None})
        assert made.status_code == 201, (field, made.content)


def is_set(field):
    """By the server."""
    return field in (
        "created_by_id",
        "last_updated_by_id",
        "updated_at",
        "is_deleted",
        "deleted_at",
        "position",
        "last_login",
        "access_count",
        "last_accessed",
        "embedding_state",
        "embedding_model",
        "created_at",
    )


def test_a_null_in_a_patch_is_the_default_again(api):
    api.post("users", {"external_id": "u", "name": "Ann", "timezone": "Europe/Rome"})
    changed = api.patch("users/u", {"name": None, "timezone": None, "metadata": None}).json()
    assert (changed["name"], changed["timezone"], changed["metadata"]) == ("", "UTC", {})
    assert api.patch("users/u", {"external_id": None}).json()["external_id"] is None
    assert api.post("blocks", {"label": None}).status_code == 400


def test_a_null_in_a_question(api):
    api.post("memories", {"content": "Likes tea.", "user_id": "ann"})
    body = {"query": "tea", "limit": None, "mode": None, "since": None, "weights": None}
    assert len(api.post("memories/search", body).json()["results"]) == 1
    for name in ("user_id", "agent_id", "session_id"):  # nobody's name is not everybody
        assert api.post("memories/search", {"query": "tea", name: None}).status_code == 400
    refused = api.post("memories/batch/update", {"all": True, "set": {"importance": None}})
    assert refused.status_code == 400


# -- messages of OpenAI ---------------------------------------------------------------------------


@pytest.mark.parametrize("message", OPENAI, ids=[m["role"] for m in OPENAI])
def test_messages_of_openai_go_in_and_come_out(api, message):
    stored = {"developer": "system", "function": "tool"}
    made = api.post("sessions/s/messages", message)
    assert made.status_code == 201, made.content
    row = made.json()
    expected = {**message, "role": stored.get(message["role"], message["role"])}
    assert {k: row[k] for k in message} == expected
    assert row["metadata"] == ({"role": message["role"]} if message["role"] in stored else {})
    line = {"external_id": "m", "session_id": "s", **message}
    assert api.post("messages/bulk", [line]).json()["inserted"] == 1
    loaded = api.get("messages/m").json()
    same = ("role", "text", "content", "tool_calls", "tool_call_id", "name", "metadata")
    assert {k: loaded[k] for k in same} == {k: row[k] for k in same}


def test_another_name_of_a_role_stays_as_long_as_the_role(api):
    body = {"external_id": "m", "role": "developer", "metadata": {"a": 1}}
    assert api.post("messages", body).json()["metadata"] == {"a": 1, "role": "developer"}
    assert api.put("messages/m", api.get("messages/m").json()).json()["metadata"]["role"]
    assert api.patch("messages/m", {"role": "function"}).json()["metadata"] == {
        "a": 1,
        "role": "function",
    }
    assert api.patch("messages/m", {"role": "user"}).json()["metadata"] == {"a": 1}
    line = {"external_id": "n", "role": "function", "metadata": {"a": [1.50], "role": "mine"}}
    assert api.post("messages/bulk", [line]).json()["inserted"] == 1
    assert api.get("messages/n").json()["metadata"] == {"a": [1.5], "role": "mine"}
    assert api.post("messages", {"role": "robot"}).status_code == 400
