"""An expired memory that no sweep has removed yet: not found, not listed, not counted, and never a
conflict."""

import threading
from datetime import timedelta

import pytest
from django.db import connections
from django.utils import timezone

from accounts.models import AuditEvent
from accounts.tenancy import tenant
from memories.models import Memory, MemoryHistory
from memories.services.adding import add_memory
from memories.services.memories import memories
from tests.api.conftest import client_with
from tests.bulk.loading import load
from tests.makers import TESTER, make_agent, make_memory, make_user

PAST = "2020-01-01T00:00:00Z"


@pytest.fixture(autouse=True)
def static_encoder(settings):
    settings.ENCODER = "static"


@pytest.fixture
def api(acme_key):
    return client_with(acme_key)


def expire(organization, **chosen):
    """As if time had passed."""
    with tenant(organization):
        rows = Memory.objects.for_organization(organization).live().filter(**chosen)
        before = timezone.now() - timedelta(days=400)
        moments = {"created_at": before, "updated_at": before}
        assert rows.update(**moments, expires_at=before + timedelta(days=1))


def rows(organization):
    with tenant(organization):
        return list(Memory.objects.for_organization(organization).live().order_by("created_at"))


def history(organization, memory_id):
    with tenant(organization):
        versions = MemoryHistory.objects.for_organization(organization).filter(memory_id=memory_id)
        return list(versions.order_by("id").values_list("version", "change_type", "reason"))


def search(api, query, **rest):
    answer = api.post("memories/search", {"query": query, **rest}).json()
    return [hit["memory"]["content"] for hit in answer["results"]]


def listed(api, query=""):
    return [row["content"] for row in api.get(f"memories{query}").json()["results"]]


SAID = [
    {"content": "Likes tea", "user_id": "ann"},
    {"content": "Likes tea", "speaker": "Ann", "agent_id": "barista"},
    {"content": "Likes tea"},
    {"content": "Likes tea", "external_id": "m-1"},
]


def bulk(api, folder, item):
    load(folder, "memories", [item])


def one(api, folder, item):
    answer = api.post("memories", item)
    assert (answer.status_code, answer.json()["status"]) == (201, "created")


def batch(api, folder, item):
    answer = api.post("memories/batch", {"memories": [item]}).json()
    assert (answer["created"], answer["duplicates"]) == (1, 0)


@pytest.mark.parametrize("item", SAID, ids=str)
@pytest.mark.parametrize("door", [one, batch, bulk])
@pytest.mark.parametrize("expires_at", [None, "2100-01-01T00:00:00Z"])
def test_adding_the_same_text_again_revives_the_memory(api, acme, tmp_path, door, item, expires_at):
    door(api, tmp_path, {**item, "metadata": {"old": 1}, "importance": 0.9})
    expire(acme)
    assert search(api, "tea") == []
    door(api, tmp_path, {**item, "expires_at": expires_at})
    assert search(api, "tea") == ["Likes tea"]
    (row,) = rows(acme)
    assert row.created_at > timezone.now() - timedelta(minutes=5)
    assert (row.expires_at and row.expires_at.year) == (2100 if expires_at else None)
    assert (row.version, row.metadata, row.importance) == (2, {}, 0.5)
    assert history(acme, row.pk) == [
        (1, "created", ""),
        (2, "updated", "Said again after it had expired."),
    ]


@pytest.mark.parametrize("item", SAID, ids=str)
def test_a_live_memory_is_a_duplicate(api, acme, item):
    one(api, None, {**item, "expires_at": "2100-01-01T00:00:00Z"})
    answer = api.post("memories", item)
    assert (answer.status_code, answer.json()["status"]) == (200, "duplicate")
    assert answer.json()["expires_at"].startswith("2100")


def test_another_text_under_its_external_id_revives_it_too(api, acme):
    make_user(acme, external_id="bob")
    one(api, None, {"external_id": "m", "content": "Likes tea", "user_id": "ann"})
    assert api.post("memories", {"external_id": "m", "content": "Coffee"}).status_code == 409
    expire(acme)
    one(api, None, {"external_id": "m", "content": "Likes coffee", "user_id": "bob"})
    (row,) = rows(acme)
    assert (row.content, row.embedding_state) == ("Likes coffee", "ready")
    assert search(api, "coffee", user_id="bob") == ["Likes coffee"]
    assert search(api, "tea") == ["Likes coffee"]  # by meaning: the old words no longer match
    assert search(api, "tea", mode="keyword") == []


def test_a_batch_reports_each_item_and_writes_one_audit_event(api, acme):
    for content in ("a fact", "another fact", "a third fact"):
        one(api, None, {"content": content})
    expire(acme, content__in=["a fact", "another fact"])
    items = ["another fact", "a third fact", "new", "a fact", "a fact", "new"]
    answer = api.post("memories/batch", {"memories": [{"content": c} for c in items]}).json()
    assert [one["status"] for one in answer["results"]] == [
        "created",
        "duplicate",
        "created",
        "created",
        "duplicate",
        "duplicate",
    ]
    ids = {row.content: str(row.pk) for row in rows(acme)}
    assert [one["id"] for one in answer["results"]] == [ids[content] for content in items]
    with tenant(acme):
        events = AuditEvent.objects.for_organization(acme).order_by("-id")
        changes = [(e.action, e.changes["rows"]) for e in events[:2]]
    assert sorted(changes) == [("created", {"memory": 1}), ("updated", {"memory": 2})]


def test_a_load_counts_revived_memories_as_updated(api, acme, tmp_path):
    lines = [{"external_id": f"m-{n}", "content": f"Fact {n}"} for n in range(4)]
    lines += [{"content": f"Thought {n}"} for n in range(4)]
    load(tmp_path, "memories", lines)
    expire(acme, content__in=["Fact 1", "Thought 1", "Thought 2"])
    report = load(tmp_path, "memories", [*lines, {"content": "New"}])
    counts = {name: report[name] for name in ("inserted", "updated", "unchanged", "deleted")}
    assert counts == {"inserted": 1, "updated": 3, "unchanged": 5, "deleted": 0}
    assert len(listed(api)) == 9
    # A line whose own expiry has passed stays expired, and unchanged.
    load(tmp_path, "memories", [{"content": "Old", "expires_at": PAST}])
    report = load(tmp_path, "memories", [{"content": "Old", "expires_at": PAST}])
    assert (report["unchanged"], report["updated"]) == (1, 0)


def test_lists_search_stats_and_export_agree(api, acme):
    agent = make_agent(acme, external_id="barista")
    for content in ("Likes tea", "Likes coffee"):
        make_memory(acme, content=content, agent=agent)
    expire(acme, content="Likes tea")
    assert listed(api) == search(api, "likes") == ["Likes coffee"]
    assert [r["content"] for r in api.get("agents/barista/memories").json()["results"]] == listed(
        api
    )
    assert listed(api, "?expired=only") == ["Likes tea"]
    assert sorted(listed(api, "?expired=include")) == ["Likes coffee", "Likes tea"]
    assert listed(api, "?expired=only&q=coffee") == []
    assert api.get("memories?expired=yes").json()["errors"][0]["field"] == "expired"
    assert api.get("memories/stats").json()["memories"] == 1
    lines = b"".join(api.post("memories/export", {}).streaming_content)
    assert b"coffee" in lines and b"tea" not in lines
    lines = b"".join(api.post("memories/export", {"expired": "only"}).streaming_content)
    assert b"tea" in lines and b"coffee" not in lines


def test_an_expired_memory_in_the_trash_is_shown(api, acme):
    memory = make_memory(acme, content="Likes tea")
    expire(acme)
    # It is reachable by its id until the sweep removes it.
    assert api.get(f"memories/{memory.pk}").status_code == 200
    api.delete(f"memories/{memory.pk}")
    assert listed(api, "?deleted=only") == ["Likes tea"]
    # It is restored as it was: expired. A new expiry makes it live.
    assert api.post(f"memories/{memory.pk}/restore").status_code == 200
    assert listed(api) == []
    api.patch(f"memories/{memory.pk}", {"expires_at": None})
    assert listed(api) == ["Likes tea"]


def test_a_filter_leaves_it_out_unless_expired_includes_it(api, acme):
    make_memory(acme, content="Likes tea", external_id="t")
    make_memory(acme, content="Likes coffee")
    expire(acme, content="Likes tea")
    body = {"all": True, "set": {"importance": 0.9}, "preview": True}
    assert api.post("memories/batch/update", body).json()["matched"] == 1
    assert api.post("memories/batch/update", {**body, "expired": "include"}).json()["matched"] == 2
    body = {"all": True, "set": {"expires_at": None}, "expired": "only"}
    assert api.post("memories/batch/update", body).json()["updated"] == 1
    assert len(listed(api)) == 2
    expire(acme, content="Likes tea")
    everything = {"filter": {"importance_min": 0}}
    assert api.post("memories/batch/delete", everything).json()["deleted"] == 1
    with_both = {"ids": ["t"], "expired": "only"}
    refusal = api.post("memories/batch/delete", with_both).json()["errors"][0]
    assert refusal["message"].startswith("It needs a filter")
    assert api.post("memories/batch/delete", {"ids": ["t"]}).json()["deleted"] == 1


def test_it_does_not_conflict_with_a_change(api, acme):
    make_memory(acme, content="Likes tea")
    expire(acme)
    other = make_memory(acme, content="Likes coffee")
    assert api.patch(f"memories/{other.pk}", {"content": "Likes tea"}).status_code == 200
    assert listed(api) == ["Likes tea"]
    (deleted,) = api.get("memories?deleted=only").json()["results"]
    assert [change for _, change, _ in history(acme, deleted["id"])] == ["created", "deleted"]


def test_it_does_not_conflict_with_a_restore_or_a_merge(api, acme):
    trashed = make_memory(acme, content="Likes tea")
    api.delete(f"memories/{trashed.pk}")
    make_memory(acme, content="Likes tea")
    expire(acme, content="Likes tea")
    assert api.post(f"memories/{trashed.pk}/restore").status_code == 200
    assert [row.pk for row in rows(acme)] == [trashed.pk]
    make_memory(acme, content="Likes milk")
    expire(acme, content="Likes milk")
    other = make_memory(acme, content="Likes coffee")
    body = {"with": str(other.pk), "content": "Likes milk"}
    assert api.post(f"memories/{trashed.pk}/merge", body).status_code == 200
    assert listed(api) == ["Likes milk"]


def test_a_live_duplicate_conflicts(api, acme):
    trashed = make_memory(acme, content="Likes tea")
    api.delete(f"memories/{trashed.pk}")
    make_memory(acme, content="Likes tea", user=make_user(acme))
    expire(acme)
    make_memory(acme, content="Likes tea")
    assert api.post(f"memories/{trashed.pk}/restore").status_code == 409
    assert len(rows(acme)) == 2


@pytest.mark.django_db(transaction=True)
def test_of_concurrent_additions_one_revives_it(acme):
    make_memory(acme, content="Likes tea")
    expire(acme)
    results = []
    start = threading.Barrier(6)

    def say():
        try:
            start.wait(timeout=10)
            values = {"content": "Likes tea"}
            added = add_memory(organization=acme, actor=TESTER, values=values, embed="later")
            results.append(added.status)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=say) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(results) == ["created", *["duplicate"] * 5]
    (row,) = rows(acme)
    assert row.version == 2


def test_a_load_restores_it_from_the_trash_with_its_new_expiry(api, acme, tmp_path):
    memory = make_memory(acme, content="Likes tea", external_id="t")
    expire(acme)
    with tenant(acme):
        memories.delete(Memory.objects.filter(pk=memory.pk), organization=acme, actor=TESTER)
    line = {"external_id": "t", "content": "Likes tea"}
    assert load(tmp_path, "memories", [line])["deleted"] == 1
    assert load(tmp_path, "memories", [line], restore=True)["updated"] == 1
    assert listed(api) == ["Likes tea"]
