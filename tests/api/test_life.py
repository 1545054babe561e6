"""Each resource is created, listed, shown, changed, replaced, deleted and restored."""

import pytest

from memories.models import content_hash
from tests.api.routes import BODIES
from tests.makers import make_session

# path, body, a change, what a replacement leaves out and its default, the natural key
RESOURCES = {
    "users": ({"name": "Anna"}, {"name": ""}, "external_id"),
    "agents": ({"name": "Waiter"}, {"llm_config": {}}, "external_id"),
    "blocks": ({"value": "Curt."}, {"limit": 2000}, "external_id"),
    "tools": ({"description": "Rain?"}, {"tags": []}, "name"),
    "sessions": ({"name": "Evening"}, {"state": {}}, "session_id"),
    "session-runs": ({"status": "failed"}, {"total_tokens": 0}, "run_id"),
    "messages": ({"text": "Bye"}, {"content": None}, "external_id"),
    "memories": ({"content": "Likes coffee."}, {"importance": 0.5}, "external_id"),
    "members": ({"name": "Bob"}, {"role": "viewer"}, "email"),
}
# What the server itself changes with each change.
MOVED = ("updated_at", "version", "hash", "embedding_state", "embedding_model")
REQUIRED = ("label", "name", "role", "content", "email", "session_id", "run_id")


@pytest.fixture(params=RESOURCES)
def resource(request, acme):
    path = request.param
    if path == "session-runs":
        path = f"sessions/{make_session(acme).session_id}/runs"
    return (path, BODIES[request.param], *RESOURCES[request.param])


def test_the_life_of_a_row(api, acme, resource):
    path, body, change, defaults, natural_key = resource
    created = api.post(path, body)
    assert created.status_code == 201, created.json()
    row = created.json()
    if path == "memories":
        assert (row.pop("status"), row.pop("embedded")) == ("created", True)
    assert {k: v for k, v in row.items() if k in body} == body
    assert row["organization_id"] == str(acme.pk)
    assert (row["is_deleted"], row["deleted_at"]) == (False, None)
    here = f"{path}/{row['id']}"

    assert api.get(here).json() == row
    assert api.get(f"{path}/{row[natural_key]}").json() == row
    assert row in api.get(path).json()["results"]

    changed = api.patch(here, change)
    assert changed.status_code == 200, changed.json()
    assert changed.json() == api.get(here).json()
    assert changed.json() == {
        **row,
        **change,
        **{k: changed.json()[k] for k in MOVED if k in row},
    }
    assert changed.json()["updated_at"] > row["updated_at"]

    # A response can be sent back as it is, and changes nothing.
    again = api.put(here, changed.json())
    assert again.status_code == 200, again.json()
    assert again.json() == changed.json()

    (left_out, default), *_ = defaults.items()
    least = {k: v for k, v in body.items() if k in REQUIRED and k != left_out}
    replaced = api.put(here, least)
    assert replaced.status_code == 200, replaced.json()
    assert replaced.json()[left_out] == default
    assert replaced.json()[natural_key] == row[natural_key]

    assert api.delete(here).status_code == 204
    assert api.get(here).status_code == 404
    assert api.patch(here, change).status_code == 404
    assert api.delete(here).status_code == 404
    assert row["id"] not in [r["id"] for r in api.get(path).json()["results"]]
    (lying,) = api.get(f"{path}?deleted=only").json()["results"]
    assert (lying["id"], lying["is_deleted"]) == (row["id"], True)
    assert api.get(f"{here}?deleted=include").json() == lying
    assert row["id"] in [r["id"] for r in api.get(f"{path}?deleted=include").json()["results"]]

    back = api.post(f"{here}/restore")
    assert back.status_code == 200, back.json()
    assert back.json() == {**replaced.json(), "is_deleted": False}
    assert api.get(f"{path}?deleted=only").json()["results"] == []


@pytest.mark.parametrize("name", [n for n in BODIES if "-" not in n or n == "api-keys"])
def test_a_route_answers_with_and_without_the_slash(api, name):
    plain = api.get(name)
    assert plain.status_code == 200
    assert api.get(f"{name}/").json() == plain.json()


def test_an_organization_changes_itself_and_no_more(api, acme):
    here = f"organizations/{acme.pk}"
    assert [o["id"] for o in api.get("organizations").json()["results"]] == [str(acme.pk)]
    assert api.get("organizations/acme").json()["name"] == "Acme"
    changed = api.patch(here, {"name": "Acme Ltd", "settings": {"retention_days": 30}})
    assert changed.json()["settings"] == {"retention_days": 30}
    assert api.put(here, {"name": "Acme"}).json()["settings"] == {"retention_days": 30}
    quotas = api.patch(here, {"settings": {"quotas": {"users": 10**6}}})
    assert quotas.json()["detail"] == "settings: Only the platform can set quotas."
    for refused in (
        api.post("organizations", {"name": "New", "slug": "new"}),
        api.delete(here),
        api.post(f"{here}/restore"),
    ):
        assert refused.status_code == 403
        assert refused.json()["detail"].startswith("Only the platform")


def test_a_key_is_shown_once_and_revoked_for_good(api, anonymous):
    created = api.post("api-keys", {"name": "ci", "scopes": ["memory:read"]})
    assert created.status_code == 201
    row = created.json()
    secret = row.pop("key")
    assert secret.startswith(row["prefix"])
    here = f"api-keys/{row['id']}"
    assert api.get(here).json() == row

    def me(**headers):
        return anonymous.get("me", headers=headers)

    for headers in ({"X-API-Key": secret}, {"Authorization": f"Bearer {secret}"}):
        answer = me(**headers).json()
        assert (answer["organization"]["slug"], answer["key"]["name"]) == ("acme", "ci")
        assert answer["scopes"] == ["memory:read"]
    assert api.get(here).json()["last_used_at"] is not None

    renamed = api.patch(here, {"name": "build"})
    assert renamed.json()["name"] == "build"
    widened = api.patch(here, {"scopes": ["memory:write"]})
    assert widened.json()["detail"] == "scopes: Only the name can be changed: issue another key."
    assert api.put(here, {"name": "x"}).status_code == 405

    revoked = api.post(f"{here}/revoke")
    assert revoked.json()["revoked_at"] is not None
    assert api.post(f"{here}/revoke").json()["revoked_at"] == revoked.json()["revoked_at"]
    assert me(**{"X-API-Key": secret}).status_code == 401
    assert api.delete(here).status_code == 204
    assert api.post(f"{here}/restore").status_code == 200
    assert me(**{"X-API-Key": secret}).status_code == 401


def test_the_audit_log_has_each_change(api, acme):
    user = api.post("users", {"external_id": "ann"}).json()
    api.patch("users/ann", {"name": "Ann"}, headers={"X-Request-Id": "req-1"})
    events = api.get(f"audit-events?resource_id={user['id']}").json()["results"]
    assert [e["action"] for e in events] == ["updated", "created"]
    assert events[0]["request_id"] == "req-1"
    assert (events[0]["ip"], events[0]["actor_name"]) == ("127.0.0.1", "key")
    assert api.get(f"audit-events/{events[0]['id']}").json() == events[0]
    assert api.post("audit-events", {}).status_code == 405
    assert api.delete(f"audit-events/{events[0]['id']}").status_code == 405


def test_a_refusal_leaves_nothing_behind(api):
    assert api.post("tools", {"name": "weather"}).status_code == 201
    before = api.get("audit-events").json()
    assert api.post("tools", {"name": "weather"}).status_code == 409
    assert api.get("audit-events").json() == before


def test_blocks_and_tools_are_attached_and_detached(api, cast):
    agent, other = cast["agent"].external_id, api.post("blocks", {"label": "facts"}).json()
    assert [b["id"] for b in api.get(f"agents/{agent}/blocks").json()["results"]] == [
        str(cast["block"].pk)
    ]
    assert api.post(f"agents/{agent}/blocks", {"block_id": other["id"]}).status_code == 201
    assert api.post(f"agents/{agent}/blocks", {"block_id": other["id"]}).status_code == 200
    assert len(api.get(f"agents/{agent}/blocks").json()["results"]) == 2
    same_label = api.post("blocks", {"label": "facts"}).json()["id"]
    clash = api.post(f"agents/{agent}/blocks", {"block_id": same_label})
    assert (clash.status_code, clash.json()["detail"]) == (
        409,
        "The agent has a block of this label already.",
    )
    assert api.patch("blocks/block-1", {"label": "facts"}).json()["detail"] == (
        "The agent has a block of this label already."
    )
    assert api.delete(f"agents/{agent}/blocks/block-1").status_code == 204
    assert api.delete(f"agents/{agent}/blocks/block-1").status_code == 404
    assert [b["label"] for b in api.get(f"agents/{agent}/blocks").json()["results"]] == ["facts"]
    assert api.get("blocks/block-1").status_code == 200

    tool = cast["tool"].name
    assert [t["name"] for t in api.get(f"agents/{agent}/tools").json()["results"]] == [tool]
    assert api.delete(f"agents/{agent}/tools/{tool}").status_code == 204
    assert api.post(f"agents/{agent}/tools", {"tool_id": tool}).status_code == 201


def test_dependent_rows_are_listed_deleted_and_restored_with_their_agent(api, cast):
    agent = cast["agent"].external_id
    lists = {name: f"agents/{agent}/{name}" for name in ("sessions", "memories", "messages")}
    shown = {name: api.get(path).json()["results"] for name, path in lists.items()}
    assert [s["session_id"] for s in shown["sessions"]] == [cast["session"].session_id]
    assert [m["id"] for m in shown["memories"]] == [str(cast["memory"].pk)]
    assert [m["run_id"] for m in shown["messages"]] == [cast["run"].run_id]

    assert api.delete(f"agents/{agent}").status_code == 204
    assert api.get(lists["sessions"]).status_code == 404
    assert api.get("memories/memory-1").status_code == 404
    stuck = api.post("memories/memory-1/restore")
    assert (stuck.status_code, stuck.json()["detail"]) == (
        409,
        "The agent of this memory is in the trash: restore that first.",
    )
    assert api.post(f"agents/{agent}/restore").status_code == 200
    for path in lists.values():
        assert len(api.get(path).json()["results"]) == 1


def test_runs_are_appended_and_the_last_is_found(api):
    api.post("sessions", {"session_id": "s:1"})
    assert api.get("sessions/s:1/runs/last").status_code == 404
    for number in range(3):
        created = api.post("sessions/s:1/runs", {"run_id": f"r{number}"})
        assert (created.status_code, created.json()["position"]) == (201, number)
        assert created.json()["session_id"] == "s:1"
    assert api.get("sessions/s:1/runs/last").json()["run_id"] == "r2"
    shown = [r["run_id"] for r in api.get("sessions/s:1/runs").json()["results"]]
    assert shown == ["r2", "r1", "r0"]
    page = api.get("sessions/s:1/runs?limit=2").json()
    assert [r["run_id"] for r in api.get(page["next"]).json()["results"]] == ["r0"]
    api.delete("sessions/s:1/runs/r2")
    assert api.get("sessions/s:1/runs/last").json()["run_id"] == "r1"
    taken = api.post("sessions/s:1/runs", {"run_id": "r2"})
    assert (taken.status_code, taken.json()["errors"][0]["field"]) == (409, "run_id")
    minted = api.post("sessions/s:1/runs", {}).json()
    assert (minted["position"], len(minted["run_id"])) == (3, 36)


def test_a_message_belongs_to_a_run_of_its_session(api, cast):
    session, run = cast["session"].session_id, cast["run"].run_id
    created = api.post(f"sessions/{session}/messages", {"role": "user", "run_id": run}).json()
    assert (created["session_id"], created["run_id"]) == (session, run)
    assert created["agent_id"] == str(cast["agent"].pk)
    alone = api.post("messages", {"role": "user", "run_id": str(cast["run"].pk)}).json()
    assert (alone["session_id"], alone["run_id"]) == (session, run)

    api.post("sessions", {"session_id": "elsewhere"})
    for body, problem in [
        ({"run_id": run}, f"run_id: There is no run {run!r} in this session."),
        ({"run_id": run, "session_id": "new"}, f"run_id: There is no run {run!r} in"),
        ({"run_id": run, "session_id": "elsewhere"}, f"run_id: There is no run {run!r} in"),
    ]:
        refused = api.post("messages", {"role": "user", **body})
        assert refused.json()["detail"].startswith(problem)
    astray = api.post("sessions/elsewhere/messages", {"role": "user", "session_id": session})
    assert astray.json()["detail"] == "session_id: This is not the session in the path."
    moved = api.patch(f"messages/{created['id']}", {"session_id": "elsewhere"}).json()
    assert (moved["session_id"], moved["run_id"]) == ("elsewhere", None)
    listed = api.get("sessions/elsewhere/messages").json()["results"]
    assert [m["id"] for m in listed] == [created["id"]]


def test_adding_a_memory_again_returns_the_existing_row(api, cast):
    body = {"content": "Likes tea", "user_id": cast["user"].external_id, "speaker": "Ann"}
    first = api.post("memories", body)
    again = api.post("memories", {**body, "content": " Likes tea "})
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == {**first.json(), "status": "duplicate"}
    assert first.json()["user_id"] == str(cast["user"].pk)
    assert first.json()["hash"] == content_hash("Ann", "Likes tea").hex()


def test_a_memory_has_a_history(api):
    created = api.post(
        "memories", {"content": "Likes tea", "created_at": "2025-03-01T09:00:00+02:00"}
    )
    here = f"memories/{created.json()['id']}"
    assert created.json()["created_at"] == "2025-03-01T07:00:00Z"
    api.patch(here, {"content": "Likes coffee"})
    versions = api.get(f"{here}/history").json()["results"]
    assert [(v["version"], v["change_type"], v["content"]) for v in versions] == [
        (2, "updated", "Likes coffee"),
        (1, "created", "Likes tea"),
    ]
    moved = api.patch(here, {"created_at": "2025-03-02T09:00:00Z"})
    assert moved.json()["detail"] == "created_at: It cannot be changed."


def test_an_embedding_may_come_with_a_memory_and_is_never_shown(api):
    vector = [0.1] * 384
    created = api.post("memories", {"content": "Likes tea", "embedding": vector}).json()
    assert created["embedding_state"] == "ready"
    assert not {"embedding", "document"} & created.keys()
    changed = api.patch(f"memories/{created['id']}", {"content": "Likes coffee"}).json()
    assert changed["embedding_state"] == "pending"
