"""PUT by key: creates, replaces, or takes the place of the row in the trash."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from urllib.parse import quote
from uuid import uuid4

import pytest
from django.db import connections

from accounts.api.views import Putting
from accounts.models import AuditEvent
from accounts.roles import ALL_PERMISSIONS
from accounts.tenancy import is_inside, tenant
from memories.models import Memory, MemoryHistory
from tests.api.conftest import client_with
from tests.makers import make_key, make_memory, make_user

# path, the natural key, a body, another
KEYED = {
    "users": ("external_id", {"name": "Ann"}, {"email": "ann@x.example"}),
    "agents": ("external_id", {"name": "Bot"}, {"topic": "tea"}),
    "blocks": ("external_id", {"label": "persona", "value": "Kind."}, {"label": "human"}),
    "tools": ("name", {"description": "Rain?"}, {"tags": ["web"]}),
    "sessions": ("session_id", {"name": "Morning"}, {"state": {"step": 1}}),
    "sessions/new/runs": ("run_id", {"content": "Hi."}, {"status": "failed"}),
    "messages": ("external_id", {"role": "user", "text": "Hi."}, {"role": "tool"}),
    "memories": ("external_id", {"content": "Likes tea."}, {"content": "Likes coffee."}),
}
OTHER = {"agents": "sessions", "blocks": "agents", "tools": "agents"}


@pytest.fixture(autouse=True)
def static_encoder(settings):
    settings.ENCODER = "static"


@pytest.fixture(params=KEYED)
def keyed(request):
    return (request.param, *KEYED[request.param])


def without_times(row):
    moving = ("id", "created_at", "updated_at", "position")
    return {k: v for k, v in row.items() if k not in moving}


def test_put_creates_then_replaces(api, keyed):
    path, key, body, other = keyed
    created = api.put(f"{path}/k 1", body)
    assert created.status_code == 201, created.content
    row = created.json()
    assert (row[key], {k: row[k] for k in body}) == ("k 1", body)
    assert api.get(created["Location"]).json() == row == api.get(f"{path}/k 1").json()
    for name in ("k 1", "%20k%201", row["id"]):
        replaced = api.put(f"{path}/{name}", {**other, key: "k 1"})
        assert (replaced.status_code, replaced.json()["id"]) == (200, row["id"])
    fresh = api.put(f"{path}/k 2", other).json()
    version = {"version": fresh.get("version")}
    moved = {"embedding_state": None, "embedding_model": None}
    assert without_times({**replaced.json(), **version, **moved}) == without_times(
        {**fresh, key: "k 1", **version, **moved}
    )


def test_an_unknown_uuid_is_the_callers_key(api, theirs, keyed):
    path, key, body, _ = keyed
    foreign = theirs.put(f"{path}/mine", body).json()["id"]
    for own in (str(uuid4()), foreign):
        created = api.put(
            f"{path}/{own}", {**body, **({"content": own} if "content" in body else {})}
        )
        assert (created.status_code, created.json()[key]) == (201, own)
        assert created.json()["id"] not in (own, foreign)
        assert api.put(f"{path}/{own}", body).json()["id"] == created.json()["id"]
    assert theirs.get(f"{path}/mine").json()["id"] == foreign


def test_put_replaces_a_row_in_the_trash(acme, api, keyed):
    path, key, body, other = keyed
    old = api.put(f"{path}/k", {**body, "metadata": {"old": True}}).json()
    api.delete(f"{path}/k")
    refused = api.post(path, {**other, key: "k"})
    assert (refused.status_code, refused.json()["code"]) == (409, "in_trash")
    address = f"/api/v1/{path}"
    if "new" not in path:
        assert f"POST {address}/{old['id']}/restore" in refused.json()["detail"]
        assert f"PUT {address}/k " in refused.json()["detail"]
    assert api.put(f"{path}/{old['id']}", other).status_code == 409

    created = api.put(f"{path}/k", other)
    assert created.status_code == 201, created.content
    new = created.json()
    assert (new["id"] != old["id"], new[key], new["metadata"]) == (True, "k", {})
    unrelated = api.put(f"{path}/unrelated", other).json()
    assert without_times(new) == without_times({**unrelated, key: "k"})
    assert api.get(f"{path}?deleted=only").json()["results"] == []
    assert api.get(f"{path}/{old['id']}?deleted=include").status_code == 404
    assert api.post(f"{path}/{old['id']}/restore").status_code == 404
    events = api.get(f"audit-events?resource_id={old['id']}").json()["results"]
    assert {e["action"] for e in events} >= {"created", "deleted"}
    with tenant(acme):
        purges = AuditEvent.objects.filter(action__in=["purged", "erased"])
        assert purges.filter(organization=acme).exists()


def test_versions_of_the_previous_memory_are_not_shown(acme, api):
    api.put("memories/k", {"content": "Likes tea."})
    api.put("memories/k", {"content": "Likes cake."})
    api.delete("memories/k")
    new = api.put("memories/k", {"content": "Likes tea."}).json()
    versions = api.get("memories/k/history").json()["results"]
    assert [(v["version"], v["content"]) for v in versions] == [(1, "Likes tea.")]
    assert (new["version"], new["embedding_state"]) == (1, "ready")
    with tenant(acme):
        assert MemoryHistory.objects.for_organization(acme).count() == 1


def test_dependent_rows_of_the_previous_user_are_purged(acme, api):
    user = make_user(acme, external_id="ann")
    make_memory(acme, user=user, content="Likes tea.")
    api.delete("users/ann")
    assert api.put("users/ann", {"name": "Another"}).status_code == 201
    assert api.get("memories?user_id=ann&deleted=include").json()["results"] == []
    with tenant(acme):
        assert not Memory.objects.for_organization(acme).exists()


def test_a_row_that_is_restored_meanwhile_is_replaced_and_not_purged(api, keyed, monkeypatch):
    path, _, body, other = keyed
    old = api.put(f"{path}/k", body).json()
    api.delete(f"{path}/k")
    place_for_new = Putting.place_for_new

    def then_restored(view):
        name, deleted = place_for_new(view)
        with nullcontext() if is_inside() else tenant(view.organization):
            view.records.restore(view.as_rows(deleted), **view.by)
        return name, deleted

    monkeypatch.setattr(Putting, "place_for_new", then_restored)
    replaced = api.put(f"{path}/k", other)
    assert (replaced.status_code, replaced.json()["id"]) == (200, old["id"])


def test_a_refused_put_purges_nothing(api, keyed):
    path, key, body, _ = keyed
    old = api.put(f"{path}/k", body).json()
    api.delete(f"{path}/k")
    assert api.put(f"{path}/k", {**body, "nonsense": 1}).status_code == 400
    if path == "memories":  # what only the service refuses
        api.post("users", {"external_id": "gone"})
        api.delete("users/gone")
        assert api.put(f"{path}/k", {**body, "user_id": "gone"}).status_code == 400
    if path == "blocks":
        assert api.put(f"{path}/k", {**body, "value": "long", "limit": 2}).status_code == 400
    assert [r["id"] for r in api.get(f"{path}?deleted=only").json()["results"] if r[key]] == [
        old["id"]
    ]


def test_the_key_in_the_body_must_be_that_of_the_path(api, keyed):
    path, key, body, _ = keyed
    for status in (201, 200):
        refused = api.put(f"{path}/k", {**body, key: "other"})
        assert (refused.status_code, refused.json()["errors"][0]["code"]) == (400, "mismatch")
        assert refused.json()["detail"] == f"{key}: The path says 'k': PATCH renames a row."
        assert api.put(f"{path}/k", {**body, key: " k "}).status_code == status
    assert api.put(f"{path}/k", {**body, key: None}).status_code == 200
    row = api.get(f"{path}/k").json()
    assert api.put(f"{path}/{row['id']}", {**body, key: "other"}).json()[key] == "other"


def test_an_invalid_key_is_refused(api, keyed):
    path, key, body, _ = keyed
    for bad in ("a\nb", "x" * 256, " "):
        refused = api.put(f"{path}/{quote(bad)}", body)
        assert refused.json()["errors"][0]["field"] == key, refused.content
    assert api.put(f"{path}/by-key", body).status_code == 405


def test_replacing_a_row_in_the_trash_requires_the_delete_scope(acme, api, keyed):
    path, _, body, other = keyed
    resource = {"blocks": "agent", "tools": "agent", "messages": "session", "memories": "memory"}
    name = resource.get(path, path.partition("/")[0].removesuffix("s"))
    scopes = [s for s in ALL_PERMISSIONS if s != f"{name}:delete"]
    writer = client_with(make_key(acme, scopes))
    assert writer.put(f"{path}/k", body).status_code == 201
    assert writer.put(f"{path}/k", other).status_code == 200
    api.delete(f"{path}/k")
    refused = writer.put(f"{path}/k", body)
    assert refused.status_code == 403
    assert refused.json()["detail"] == f"This key does not hold the scope {name}:delete."
    assert len(api.get(f"{path}?deleted=only").json()["results"]) == 1
    reader = client_with(make_key(acme, [f"{name}:read"]))
    assert reader.put(f"{path}/k", body).status_code == 403


def test_without_the_read_scope_only_the_id_is_returned(acme, keyed):
    path, _, body, _ = keyed
    writer = client_with(make_key(acme, [s for s in ALL_PERMISSIONS if ":read" not in s]))
    created = writer.put(f"{path}/k", body)
    assert (created.status_code, list(created.json())) == (201, ["id"])


def test_put_creates_no_members_and_organizations(api):
    assert api.put("members/bob@acme.example", {"email": "bob@acme.example"}).status_code == 404
    assert api.put("organizations/new", {"name": "New"}).status_code == 404


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("path", ["users", "memories", "sessions/s/runs"])
def test_concurrent_puts_create_one_row(acme, acme_key, path):
    _, body, _ = KEYED.get(path, KEYED["sessions/new/runs"])

    def put(_):
        try:
            return client_with(acme_key).put(f"{path}/k", body).status_code
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        statuses = sorted(pool.map(put, range(8)))
    assert statuses == [200] * 7 + [201]
