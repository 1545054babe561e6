"""Keeping memories tidy: diffs, merges, bulk changes and deletions, statistics."""

import random
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection
from django.utils import timezone

from accounts.console.show import url_of
from accounts.errors import Conflict, Invalid, NotFound
from accounts.models import AuditEvent
from accounts.tenancy import tenant
from memories.models import EMBEDDING_DIM, Memory, MemoryHistory
from memories.search.filters import MemoryFilter
from memories.services import changing
from memories.services.memories import memories
from memories.services.merging import merge_memories
from memories.services.versions import diff_texts
from tests.api.conftest import client_with
from tests.makers import TESTER, make_agent, make_key, make_memory, make_organization, make_user

VECTOR = [1.0] + [0.0] * (EMBEDDING_DIM - 1)
LONG_AGO = datetime(2024, 5, 1, tzinfo=UTC)


@pytest.fixture
def api(acme_key):
    return client_with(acme_key)


@pytest.fixture
def theirs(globex_key):
    return client_with(globex_key)


def refused(answer: Any, status: int = 400) -> str:
    assert answer.status_code == status, answer.content
    return str(answer.data["detail"])


def history(organization, memory) -> list[tuple[str, int, str]]:
    with tenant(organization):
        rows = MemoryHistory.objects.for_organization(organization).filter(memory=memory)
        return [(h.change_type, h.version, h.reason) for h in rows.order_by("id")]


def live(organization) -> dict[str, Memory]:
    with tenant(organization):
        rows = Memory.objects.for_organization(organization).live()
        return {memory.content: memory for memory in rows}


def last_event(organization) -> AuditEvent:
    with tenant(organization):
        return AuditEvent.objects.for_organization(organization).order_by("-id")[0]


# -- diffs ---------------------------------------------------------------------------------------


def test_a_diff_compares_with_the_previous_version(api, acme):
    memory = make_memory(
        acme, content="Likes tea.", importance=0.25, metadata={"a": 1, "b": True, "c": 0}
    )
    api.patch(
        f"memories/{memory.pk}",
        {"content": "Likes black tea!", "importance": 0.5, "metadata": {"b": 1, "c": 0, "d": [2]}},
    )
    answer = api.get(f"memories/{memory.pk}/history/diff")
    assert answer.status_code == 200, answer.data
    assert (answer.data["from"]["version"], answer.data["to"]["version"]) == (1, 2)
    assert answer.data["to"]["change_type"] == "updated"
    assert answer.data["changed"] == ["content", "metadata", "importance"]
    assert answer.data["content"] == {
        "granularity": "words",
        "parts": [
            {"op": "equal", "text": "Likes "},
            {"op": "insert", "text": "black "},
            {"op": "equal", "text": "tea"},
            {"op": "delete", "text": "."},
            {"op": "insert", "text": "!"},
        ],
    }
    assert answer.data["metadata"] == {
        "added": {"d": [2]},
        "removed": {"a": 1},
        "changed": {"b": {"old": True, "new": 1}},
    }
    assert answer.data["importance"] == {"old": 0.25, "new": 0.5}


def test_any_two_versions_can_be_compared_in_either_order(api, acme):
    memory = make_memory(acme, content="one")
    for content in ("two", "three"):
        api.patch(f"memories/{memory.pk}", {"content": content})
    here = f"memories/{memory.pk}/history/diff"

    def parts(query: str) -> list[tuple[str, str]]:
        return [(p["op"], p["text"]) for p in api.get(here + query).data["content"]["parts"]]

    assert parts("") == [("delete", "two"), ("insert", "three")]
    assert parts("?to=2") == [("delete", "one"), ("insert", "two")]
    assert parts("?from=1") == [("delete", "one"), ("insert", "three")]
    assert parts("?from=3&to=1") == [("delete", "three"), ("insert", "one")]
    assert refused(api.get(here + "?from=4")) == (
        "There is no version 4 of this memory: its versions are 1 to 3."
    )
    assert api.get(here + "?to=9").data["errors"][0]["field"] == "to"
    assert refused(api.get(here + "?from=x")).startswith("from: A valid integer")


def test_the_diff_of_a_single_version_is_empty(api, acme):
    memory = make_memory(acme, content="one")
    api.delete(f"memories/{memory.pk}")
    api.post(f"memories/{memory.pk}/restore")
    answer = api.get(f"memories/{memory.pk}/history/diff")
    assert (answer.data["from"], answer.data["changed"]) == (answer.data["to"], [])
    assert answer.data["to"]["change_type"] == "created"  # of that version
    assert answer.data["content"]["parts"] == [{"op": "equal", "text": "one"}]


def test_the_parts_of_a_diff_are_the_two_texts():
    chance = random.Random(7)
    texts = ["", " ", "a", "\n\n", "ein\tWort\u00a0mehr"]
    texts += ["".join(chance.choices("ab c\n.é", k=chance.randrange(60))) for _ in range(60)]
    for old in texts:
        for new in texts[::5]:
            parts = diff_texts(old, new).parts
            assert "".join(text for op, text in parts if op != "insert") == old
            assert "".join(text for op, text in parts if op != "delete") == new
            assert all(text for _, text in parts)
            assert parts == diff_texts(old, new).parts


def test_long_and_different_texts_are_compared_by_line_or_as_one_piece():
    chance = random.Random(7)
    words = [f"w{n}" for n in range(300)]
    lines = [" ".join(chance.choices(words, k=30)) for _ in range(1000)]
    changed = [f"new {line}" if n % 10 == 0 else line for n, line in enumerate(lines)]
    by_line = diff_texts("\n".join(lines), "\n".join(changed))
    assert by_line.granularity == "lines"
    assert ("equal", "\n".join(lines[1:10]) + "\n") in by_line.parts
    old, new = " ".join(lines), " ".join(changed)
    assert diff_texts(old, new).granularity == "whole"
    assert diff_texts(old, new).parts == [("delete", old), ("insert", new)]
    assert diff_texts(old, old + " more").granularity == "words"  # long, with few changes


def test_the_console_shows_what_changed(admin_page):
    text = admin_page("Likes <b> tea.", "Likes <b> coffee.")
    assert "<del>tea</del><ins>coffee</ins>." in text
    assert "Likes &lt;b&gt; " in text


@pytest.fixture
def admin_page(acme, alice, client):
    def page(old: str, new: str) -> str:
        memory = make_memory(acme, content=old)
        with tenant(acme):
            memories.update(memory, organization=acme, actor=TESTER, values={"content": new})
        client.force_login(alice)
        response = client.get(url_of(memory))
        assert response.status_code == 200
        return response.content.decode()

    return page


# -- merges --------------------------------------------------------------------------------------


def test_a_merge_combines_both_memories_in_one(api, acme):
    now = timezone.now()
    kept = make_memory(
        acme,
        content="Likes tea.",
        importance=0.25,
        metadata={"topic": "drinks", "seen": 1},
        embedding=VECTOR,
        embedding_model="test",
        access_count=2,
        last_accessed=now,
        expires_at=now + timedelta(days=1),
    )
    other = make_memory(
        acme,
        content="Tea is liked.",
        external_id="tea-2",
        importance=0.75,
        metadata={"seen": 2, "by": "ann"},
        access_count=3,
        last_accessed=now - timedelta(days=1),
        created_at=LONG_AGO,
    )
    answer = api.post(f"memories/{kept.pk}/merge", {"with": "tea-2", "reason": "said twice"})
    assert answer.status_code == 200, answer.data
    merged = answer.data
    assert (merged["id"], merged["content"], merged["version"]) == (str(kept.pk), "Likes tea.", 2)
    assert merged["metadata"] == {"topic": "drinks", "seen": 1, "by": "ann"}
    assert (merged["importance"], merged["access_count"]) == (0.75, 5)
    assert merged["created_at"] == "2024-05-01T00:00:00Z"
    assert (merged["last_accessed"] or "")[:10] == f"{now:%Y-%m-%d}"
    assert merged["expires_at"] is None  # one of them never expires
    assert merged["embedding_state"] == "ready"  # the embedded text has not changed

    assert live(acme).keys() == {"Likes tea."}
    assert history(acme, kept)[1:] == [("merged", 2, f"Took in {other.pk}: said twice")]
    assert history(acme, other)[1:] == [("merged", 1, f"Merged into {kept.pk}: said twice")]
    event = last_event(acme)
    assert (event.action, event.resource_id) == ("merged", kept.pk)
    assert event.changes == {
        "with": str(other.pk),
        "fields": dict.fromkeys(
            ["access_count", "created_at", "expires_at", "importance", "metadata"]
        ),
    }
    with tenant(acme):
        assert AuditEvent.objects.for_organization(acme).filter(action="deleted").count() == 0
    assert api.post("memories/tea-2/restore").status_code == 200  # it is in the trash


def test_merged_text_is_embedded_again_and_may_be_that_of_the_other(api, acme):
    with_vector = {"embedding": VECTOR, "embedding_model": "test"}
    kept = make_memory(acme, content="Likes tea.", **with_vector)
    other = make_memory(acme, content="Likes black tea.", **with_vector)
    answer = api.post(
        f"memories/{kept.pk}/merge",
        {
            "with": str(other.pk),
            "content": "Likes black tea.",
            "importance": 0.125,
            "metadata": {"merged": True},
        },
    )
    assert answer.status_code == 200, answer.data
    assert answer.data["content"] == "Likes black tea."
    assert (answer.data["embedding_state"], answer.data["embedding_model"]) == ("pending", "")
    assert (answer.data["importance"], answer.data["metadata"]) == (0.125, {"merged": True})
    assert answer.data["hash"] == other.hash.hex()
    assert history(acme, kept)[-1][2] == f"Took in {other.pk}."


def test_an_invalid_merge_is_refused(api, theirs, acme, globex):
    kept, other = make_memory(acme, external_id="k"), make_memory(acme, content="Two.")
    foreign, deleted = make_memory(globex), make_memory(acme)
    third = make_memory(acme, content="Three.")
    unnamed = make_memory(acme, content="One.")
    api.delete(f"memories/{deleted.pk}")
    for with_id, message in (
        ("k", "A memory cannot be merged with itself: name another one."),
        (str(kept.pk), "A memory cannot be merged with itself: name another one."),
        (str(foreign.pk), f"with: There is no memory '{foreign.pk}'."),
        (str(deleted.pk), f"with: The memory '{deleted.pk}' is in the trash: restore it first."),
        ("nobody", "with: There is no memory 'nobody'."),
    ):
        assert refused(api.post("memories/k/merge", {"with": with_id})) == message
    assert refused(api.post("memories/k/merge", {})) == "with: This field is required."
    assert refused(
        api.post("memories/k/merge", {"with": str(other.pk), "content": " "})
    ).startswith("content: This field may not be blank")
    assert refused(
        api.post("memories/k/merge", {"with": str(other.pk), "reason": "x" * 201})
    ).startswith("reason: Ensure this field has no more than 200")
    same = {"with": str(other.pk), "content": third.content}
    assert refused(api.post(f"memories/{unnamed.pk}/merge", same), 409) == (
        "A memory of this content exists already."
    )
    assert api.post(f"memories/{deleted.pk}/merge", {"with": "k"}).status_code == 404
    assert theirs.post("memories/k/merge", {"with": str(foreign.pk)}).status_code == 404
    assert theirs.post(f"memories/{foreign.pk}/merge", {"with": "k"}).status_code == 400
    assert {m.version for m in live(acme).values()} == {1}
    assert len(live(acme)) == 4


@pytest.mark.django_db(transaction=True)
def test_concurrent_merges_of_one_pair_lose_nothing():
    acme = make_organization("acme")
    for _ in range(5):
        one = make_memory(acme, metadata={"one": 1}, access_count=1)
        two = make_memory(acme, metadata={"two": 2}, access_count=1)
        start = Barrier(4)

        def merge(pair: Any, start: Barrier = start) -> str:
            try:
                start.wait()
                with tenant(acme):
                    merge_memories(*pair, organization=acme, actor=TESTER)
                return "merged"
            except (NotFound, Conflict) as error:
                return type(error).__name__
            finally:
                connection.close()

        with ThreadPoolExecutor(4) as threads:
            ends = list(threads.map(merge, [(one, two), (two, one)] * 2))
        assert ends.count("merged") == 1, ends
        with tenant(acme):
            rows = Memory.objects.for_organization(acme).filter(pk__in=[one.pk, two.pk])
            (kept,) = rows.live()
        assert (kept.metadata, kept.access_count) == ({"one": 1, "two": 2}, 2)
        assert kept.version == 2


# -- changing many -------------------------------------------------------------------------------


@pytest.fixture
def shelf(acme):
    """Six memories of ann, of bob and of no user, odd and even."""
    ann, bob = make_user(acme, external_id="ann"), make_user(acme, external_id="bob")
    agent = make_agent(acme, external_id="bot")
    return [
        make_memory(
            acme,
            content=f"Fact {n}.",
            external_id=f"f{n}",
            user=[ann, bob, None][n % 3],
            agent=agent if n < 3 else None,
            session_id=f"s{n}",
            importance=n / 10,
            memory_type=["semantic", "core"][n % 2],
            metadata={"n": n, "topic": ["tea", "coffee"][n % 2]},
        )
        for n in range(6)
    ]


def test_an_update_changes_only_what_its_filter_matches(api, acme, shelf):
    before = live(acme)
    body = {
        "filter": {"types": ["core"]},
        "set": {"importance": 0.3, "level": "tactical", "metadata": {"topic": None, "seen": [1]}},
    }
    preview = api.post("memories/batch/update", {**body, "preview": True})
    assert preview.status_code == 200, preview.data
    assert (preview.data["preview"], preview.data["matched"], preview.data["updated"]) == (
        True,
        3,
        3,
    )
    assert [m["content"] for m in preview.data["sample"]] == ["Fact 5.", "Fact 3.", "Fact 1."]
    assert preview.data["sample"][0]["importance"] == 0.5  # as it is now
    assert {m.version for m in live(acme).values()} == {1}

    done = api.post("memories/batch/update", body)
    assert done.data == {"preview": False, "matched": 3, "updated": 3, "sample": []}
    after = live(acme)
    for n in (0, 2, 4):
        memory, was = after[f"Fact {n}."], before[f"Fact {n}."]
        assert (memory.version, memory.updated_at) == (1, was.updated_at)
    for n in (1, 3, 5):
        memory = after[f"Fact {n}."]
        assert (memory.importance, memory.level, memory.version) == (
            pytest.approx(0.3),
            "tactical",
            2,
        )
        assert memory.metadata == {"n": n, "seen": [1]}
        assert memory.updated_at > before[f"Fact {n}."].updated_at
        assert memory.last_updated_by_id is not None
        assert history(acme, memory)[1:] == [("updated", 2, "")]
        diff = api.get(f"memories/f{n}/history/diff").data
        assert diff["metadata"]["removed"] == {"topic": "coffee"}
        assert diff["from"]["changed_by_id"] != diff["to"]["changed_by_id"]
    event = last_event(acme)
    assert (event.action, event.resource_type, event.resource_id) == ("updated", "memory", None)
    assert event.changes == {
        "rows": {"memory": 3},
        "fields": {"importance": None, "level": None, "metadata": None},
        "filter": ["memory_types"],
    }
    again = api.post("memories/batch/update", body)
    assert (again.data["matched"], again.data["updated"]) == (3, 0)
    assert last_event(acme).pk == event.pk
    assert {m.version for m in live(acme).values()} == {1, 2}


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({"user_id": "ann"}, {0, 3}),
        ({"agent_id": "bot"}, {0, 1, 2}),
        ({"session_id": "s4"}, {4}),
        ({"types": ["semantic", "episodic"]}, {0, 2, 4}),
        ({"scopes": ["user"], "levels": ["operational"], "user_id": "bob"}, {1, 4}),
        ({"importance_min": 0.3}, {3, 4, 5}),
        ({"importance_max": 0.1}, {0, 1}),
        ({"filters": {"n": {"gte": 4}, "topic": "tea"}}, {4}),
        ({"filters": {"nothing": 1}}, set()),
        ({"since": "2100-01-01T00:00:00Z"}, set()),
        ({"until": "2000-01-01T00:00:00Z"}, set()),
    ],
    ids=str,
)
def test_the_filter_is_that_of_a_search(api, acme, shelf, conditions, expected):
    answer = api.post(
        "memories/batch/update", {"filter": conditions, "set": {"metadata": {"hit": True}}}
    )
    assert answer.status_code == 200, answer.data
    hit = {m.metadata["n"] for m in live(acme).values() if "hit" in m.metadata}
    assert hit == expected
    assert answer.data["updated"] == len(expected)


def test_changing_a_whole_organization_requires_all(api, acme, globex, shelf):
    make_memory(globex, content="Theirs.")
    for path, rest in (("update", {"set": {"importance": 1}}), ("delete", {})):
        for empty in ({}, {"filter": {}}, {"filter": {"filters": {}}}, {"all": False}):
            message = refused(api.post(f"memories/batch/{path}", {**empty, **rest}))
            assert message.startswith("filter: A filter without conditions matches all memories")
        both = {"filter": {"user_id": "ann"}, "all": True, **rest}
        assert refused(api.post(f"memories/batch/{path}", both)) == (
            "all: Send a filter or `all`, not both."
        )
    assert len(live(acme)) == 6
    whole = api.post("memories/batch/update", {"all": True, "set": {"importance": 1}})
    assert whole.data["updated"] == 6
    assert api.post("memories/batch/delete", {"all": True}).data["deleted"] == 6
    assert (len(live(acme)), live(globex)["Theirs."].importance) == (0, 0.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"content": "x"}, "set.content: There is no such field. Known: importance, memory_type"),
        ({}, "There is nothing to set."),
        ({"importance": 2}, "set.importance: Ensure this value is less"),
        ({"importance": None}, "set.importance: This field may not be null."),
        ({"scope": "odd"}, 'set.scope: "odd" is not a valid choice.'),
        ({"metadata": []}, "set.metadata: This must be a JSON object."),
        ({"expires_at": "2026-01-01T00:00:00"}, "set.expires_at: Give the time zone"),
    ],
)
def test_fields_that_cannot_be_set_in_bulk_are_refused(api, acme, shelf, values, message):
    body = {"filter": {"user_id": "ann"}, "set": values}
    assert refused(api.post("memories/batch/update", body)).startswith(message)
    assert {m.version for m in live(acme).values()} == {1}


def test_an_update_does_not_change_the_trash(api, acme, shelf):
    api.delete("memories/f0")
    body = {"filter": {"user_id": "ann"}}
    for rest in ({"preview": True}, {}):
        answer = api.post("memories/batch/update", {**body, **rest, "set": {"importance": 1}})
        assert (answer.data["matched"], answer.data["updated"]) == (1, 1)
        assert [m["content"] for m in answer.data["sample"]] == (["Fact 3."] if rest else [])
    assert api.get("memories/f0?deleted=include").data["version"] == 1
    preview = api.post("memories/batch/delete", {**body, "preview": True})
    assert (preview.data["matched"], len(preview.data["sample"])) == (1, 1)
    preview = api.post("memories/batch/delete", {"ids": ["f0"], "preview": True})
    assert (preview.data["matched"], preview.data["unknown"]) == (0, ["f0"])


def test_an_expiry_can_be_set_and_removed(api, acme, shelf):
    body: dict[str, Any] = {"filter": {"user_id": "ann"}}
    until = {"expires_at": "2030-01-01T00:00:00Z"}
    assert api.post("memories/batch/update", {**body, "set": until}).data["updated"] == 2
    assert api.post("memories/batch/update", {**body, "set": until}).data["updated"] == 0
    never = {"expires_at": None}
    assert api.post("memories/batch/update", {**body, "set": never}).data["updated"] == 2
    assert live(acme)["Fact 0."].expires_at is None


def test_changed_memories_wait_for_the_index_and_keep_their_vectors(api, acme):
    make_memory(acme, embedding=VECTOR, embedding_model="test", is_indexed=True)
    body = {"all": True, "set": {"importance": 0.25}}
    assert api.post("memories/batch/update", body).data["updated"] == 1
    (memory,) = live(acme).values()
    assert (memory.is_indexed, memory.embedding_state) == (False, "ready")


def test_a_value_that_rounds_to_the_stored_one_is_no_change(api, acme, shelf):
    body = {"filter": {"session_id": "s1"}, "set": {"importance": 0.1, "metadata": {"n": 1.0}}}
    assert api.post("memories/batch/update", body).data["updated"] == 0


def test_a_call_changes_at_most_the_limit(api, acme, shelf, monkeypatch):
    monkeypatch.setattr(changing, "MAX_ROWS", 5)
    for preview in (True, False):
        for path, rest in (("update", {"set": {"importance": 1}}), ("delete", {})):
            body = {"all": True, "preview": preview, **rest}
            assert refused(api.post(f"memories/batch/{path}", body)).startswith(
                "More than 5 memories match, the most that one call changes: narrow the filter"
            )
    assert {m.version for m in live(acme).values()} == {1}
    assert len(live(acme)) == 6


def test_a_filter_matches_no_rows_of_others(api, theirs, acme, globex, shelf):
    ann = shelf[0].user_id
    for path, rest in (("update", {"set": {"importance": 1}}), ("delete", {})):
        for name in (str(ann), "ann", str(uuid4())):
            answer = theirs.post(f"memories/batch/{path}", {"filter": {"user_id": name}, **rest})
            assert (answer.status_code, answer.data["matched"]) == (200, 0)
        own = theirs.post(f"memories/batch/{path}", {"all": True, **rest})
        assert own.data["matched"] == 0
    assert {m.version for m in live(acme).values()} == {1}


def test_the_service_refuses_what_the_serializer_refuses(acme):
    with tenant(acme), pytest.raises(Invalid, match="'content' cannot be set on many memories"):
        changing.update_memories(
            organization=acme,
            actor=TESTER,
            memory_filter=MemoryFilter(session_id="s"),
            values={"content": "x"},
        )


# -- deleting many -------------------------------------------------------------------------------


def test_memories_deleted_by_a_filter_are_restored_as_one_set(api, acme, shelf):
    body = {"filter": {"user_id": "ann"}}
    preview = api.post("memories/batch/delete", {**body, "preview": True})
    assert (preview.data["matched"], preview.data["deleted"]) == (2, 2)
    assert [m["content"] for m in preview.data["sample"]] == ["Fact 3.", "Fact 0."]
    assert len(live(acme)) == 6
    done = api.post("memories/batch/delete", body)
    expected = {"preview": False, "matched": 2, "deleted": 2, "unknown": [], "sample": []}
    assert done.data == expected
    assert len(live(acme)) == 4
    assert history(acme, shelf[0])[1:] == [("deleted", 1, "")]
    assert last_event(acme).changes["rows"] == {"memory": 2}
    trash = api.get("memories?deleted=only").data["results"]
    assert len({m["deleted_at"] for m in trash}) == 1
    assert api.post("memories/batch/delete", body).data["deleted"] == 0


def test_memories_are_deleted_by_id_and_unknown_ids_are_reported(api, acme, globex, shelf):
    foreign = make_memory(globex, external_id="theirs")
    lookalike = make_memory(acme, content="A uuid for a key.", external_id=str(shelf[5].pk))
    api.delete("memories/f4")
    names = ["f0", str(shelf[1].pk).upper(), str(shelf[5].pk), "f4", "theirs", str(foreign.pk)]
    preview = api.post("memories/batch/delete", {"ids": [*names, "f0"], "preview": True})
    assert (preview.data["matched"], len(preview.data["sample"])) == (3, 3)
    done = api.post("memories/batch/delete", {"ids": [*names, "f0"]})
    assert done.data["deleted"] == 3
    assert done.data["unknown"] == ["f4", "theirs", str(foreign.pk)]
    assert live(acme).keys() == {"Fact 2.", "Fact 3.", lookalike.content}
    assert len(live(globex)) == 1


def test_ids_exclude_a_filter_and_are_limited(api, shelf):
    for other in ({"filter": {"user_id": "ann"}}, {"all": True}):
        assert refused(api.post("memories/batch/delete", {"ids": ["f0"], **other})) == (
            "ids: Send only one of ids, a filter and `all`."
        )
    assert refused(api.post("memories/batch/delete", {"ids": []})) == (
        "ids: This list may not be empty."
    )
    assert refused(api.post("memories/batch/delete", {"ids": ["x"] * 1001})).startswith(
        "ids: Ensure this field has no more than 1000"
    )


def test_deleting_many_requires_the_delete_scope(acme, shelf):
    writer = client_with(make_key(acme, ["memory:read", "memory:write"]))
    body = {"filter": {"user_id": "ann"}}
    assert refused(writer.post("memories/batch/delete", body), 403) == (
        "This key does not hold the scope memory:delete."
    )
    update = writer.post("memories/batch/update", {**body, "set": {"importance": 1}})
    assert update.status_code == 200


@pytest.mark.parametrize(
    ("verb", "scope"), [("update", "memory:write"), ("delete", "memory:delete")]
)
def test_a_filter_requires_the_read_scope(acme, shelf, verb, scope):
    to_set = {"set": {"importance": 1}} if verb == "update" else {}
    blind = client_with(make_key(acme, [scope]))
    reader = client_with(make_key(acme, [scope, "memory:read"]))
    for which in ({"filter": {"user_id": "ann"}}, {"all": True}):
        for preview in ({"preview": True}, {}):
            body = {**which, **to_set, **preview}
            assert refused(blind.post(f"memories/batch/{verb}", body), 403) == (
                "This key does not hold the scope memory:read."
            )
            done = reader.post(f"memories/batch/{verb}", body)
            assert done.data["matched"] > 0
            assert bool(done.data["sample"]) == bool(preview)


def test_deleting_by_id_needs_no_read_scope_but_its_preview_does(acme, shelf):
    blind = client_with(make_key(acme, ["memory:delete"]))
    memory = make_memory(acme, external_id="gone")
    body = {"ids": [str(memory.pk)]}
    preview = blind.post("memories/batch/delete", {**body, "preview": True})
    assert refused(preview, 403) == "This key does not hold the scope memory:read."
    assert blind.post("memories/batch/delete", body).data["deleted"] == 1


def test_letting_memories_expire_sooner_requires_the_delete_scope(acme, shelf):
    soon, later = "2026-01-01T00:00:00Z", "2100-01-01T00:00:00Z"
    writer = client_with(make_key(acme, ["memory:read", "memory:write"]))
    deleter = client_with(make_key(acme, ["memory:read", "memory:write", "memory:delete"]))
    memory = make_memory(acme, content="Keeps.")
    one = f"memories/{memory.pk}"

    def change(client, moment):
        return client.patch(one, {"expires_at": moment})

    def change_many(client, moment, **more):
        which = {"all": True, "set": {"expires_at": moment}, **more}
        return client.post("memories/batch/update", which)

    def replace(client, moment):
        return client.put(one, {"content": "Keeps.", "expires_at": moment})

    message = "Expiring a memory earlier deletes it, which needs memory:delete."
    for door in (change, change_many, replace):
        assert refused(door(writer, soon), 403) == message
    assert refused(change_many(writer, soon, preview=True), 403) == message
    assert change(deleter, later).status_code == 200
    for moment in ("2101-01-01T00:00:00Z", None):  # later, and never
        assert change(writer, moment).status_code == 200
    assert change_many(deleter, later).status_code == 200
    assert change_many(writer, "2101-01-01T00:00:00Z").status_code == 200
    assert refused(change(writer, later), 403) == message


def test_merging_requires_the_delete_scope(acme):
    kept, other = make_memory(acme), make_memory(acme)
    writer = client_with(make_key(acme, ["memory:read", "memory:write"]))
    merge = f"memories/{kept.pk}/merge"
    assert refused(writer.post(merge, {"with": str(other.pk)}), 403) == (
        "This key does not hold the scope memory:delete."
    )
    blind = client_with(make_key(acme, ["memory:write", "memory:delete"]))
    assert blind.post(merge, {"with": str(other.pk)}).json() == {"id": str(kept.pk)}


def test_blanks_around_keys_are_trimmed(api, acme):
    make_memory(acme, external_id="k", content="Kept.", session_id="s")
    for conditions in ({"ids": [" k "]}, {"filter": {"session_id": " s "}}):
        done = api.post("memories/batch/delete", {**conditions, "preview": True})
        assert [row["content"] for row in done.data["sample"]] == ["Kept."]
    for query in ("external_id=%20k%20", "session_id=%20s%20"):
        page = api.get(f"memories?{query}")
        assert [row["content"] for row in page.data["results"]] == ["Kept."]


# -- statistics ----------------------------------------------------------------------------------


def test_statistics_count_live_memories_by_each_property(api, acme, globex, shelf):
    make_memory(globex)
    make_memory(acme, content="é", embedding=VECTOR, embedding_model="test", created_at=LONG_AGO)
    api.delete("memories/f5")
    stats = api.get("memories/stats")
    assert stats.status_code == 200, stats.data
    newest = stats.data.pop("newest")
    assert newest == live(acme)["Fact 4."].created_at
    assert stats.data == {
        "memories": 6,
        "users": 2,
        "agents": 1,
        "content_bytes": 5 * 7 + 2,
        "oldest": LONG_AGO,
        "memory_type": {"semantic": 4, "core": 2},
        "scope": {"user": 6},
        "level": {"operational": 6},
        "embedding_state": {"pending": 5, "ready": 1},
        "embedding_model": {"test": 1},
    }
    of_ann = api.get("memories/stats?user_id=ann").data
    assert (of_ann["memories"], of_ann["users"], of_ann["agents"]) == (2, 1, 1)
    of_bot = api.get("memories/stats?agent_id=bot&user_id=bob").data
    assert (of_bot["memories"], of_bot["memory_type"]) == (1, {"core": 1})
    assert api.get("memories/stats?user_id=eve").data["memories"] == 0


def test_statistics_without_memories(theirs):
    stats = theirs.get("memories/stats").data
    assert (stats["memories"], stats["users"], stats["oldest"], stats["scope"]) == (0, 0, None, {})


@pytest.mark.parametrize("number", [1, 12])
def test_statistics_and_changes_run_a_fixed_number_of_statements(
    api, acme, number, django_assert_num_queries
):
    for _ in range(number):
        make_memory(acme)
    api.get("me")
    # Key, organization, begin, context, time limit, the count; end of the context, commit.
    with django_assert_num_queries(8):
        api.get("memories/stats")
    with django_assert_num_queries(12):
        api.post("memories/batch/update", {"all": True, "set": {"importance": 0.25}})
