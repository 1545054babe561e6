"""Near-duplicate memories, compared with an exact search for all pairs."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts.tenancy import tenant
from memories.models import Memory
from memories.search import likeness
from memories.services import duplicates
from memories.services.duplicates import near_duplicates
from tests.api.conftest import client_with
from tests.makers import make_agent, make_user
from tests.search.corpus import index_all, make_vectors, store

THRESHOLD = 0.9
LONG_AGO = datetime(2024, 5, 1, tzinfo=UTC)


@pytest.fixture
def api(acme_key):
    return client_with(acme_key)


def with_copies(count: int, *, seed: int, copies: int = 12) -> Any:
    """`count` vectors, some of them nearly equal."""
    vectors = make_vectors(count, seed=seed)
    chance = np.random.default_rng(seed)
    places = chance.permutation(count)[: 2 * copies]
    for one, other in zip(places[:copies], places[copies:], strict=True):
        noise = chance.standard_normal(vectors.shape[1]) * 0.01
        vectors[other] = vectors[one] + noise.astype(np.float32)
    return vectors


def alike(rows: Any, vectors: Any, *, across: bool = False) -> set[tuple[Any, Any]]:
    """All pairs, by numpy."""
    halves = vectors.astype(np.float16).astype(np.float32)
    halves /= np.linalg.norm(halves, axis=1, keepdims=True)
    near = np.argwhere(halves @ halves.T >= THRESHOLD)
    return {
        (rows[a].pk, rows[b].pk)
        for a, b in near
        if rows[a].pk < rows[b].pk
        and (across or (rows[a].user_id, rows[a].agent_id) == (rows[b].user_id, rows[b].agent_id))
    }


def pages(organization: Any, **options: Any) -> list[Any]:
    read = list[Any]()
    while not read or read[-1].next:
        with tenant(organization):
            start = read[-1].next if read else None
            options = {"threshold": THRESHOLD, **options}
            read.append(near_duplicates(organization=organization, start=start, **options))
    return read


def ids_of(read: list[Any]) -> list[tuple[Any, Any]]:
    return [(pair.first.pk, pair.second.pk) for page in read for pair in page.pairs]


def small_pages(monkeypatch: Any, *, whole_rows: int = 10_000) -> None:
    monkeypatch.setattr(duplicates, "ROWS_PER_PAGE", 20)
    monkeypatch.setattr(duplicates, "WHOLE_ROWS", whole_rows)


def test_every_pair_is_on_exactly_one_page(acme, monkeypatch):
    small_pages(monkeypatch)
    vectors = with_copies(110, seed=1)
    users = [make_user(acme), make_user(acme), None]
    rows = store(acme, vectors, users=users)
    read = pages(acme)
    assert [page.looked_at for page in read] == [20] * 5 + [10]
    pairs = ids_of(read)
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == alike(rows, vectors)
    assert set(ids_of(pages(acme, across=True))) == alike(rows, vectors, across=True)
    assert alike(rows, vectors) < alike(rows, vectors, across=True)
    for page in read:
        for pair in page.pairs:
            assert pair.first.pk < pair.second.pk
            assert THRESHOLD <= pair.similarity <= 1


@pytest.mark.parametrize("limit", [1, 3])
def test_the_next_page_continues_within_a_memory(acme, monkeypatch, limit):
    small_pages(monkeypatch)
    vectors = make_vectors(60, seed=2)
    vectors[10:16] = vectors[10]  # fifteen pairs, five of one memory
    rows = store(acme, vectors)
    read = pages(acme, limit=limit)
    pairs = ids_of(read)
    assert max(len(page.pairs) for page in read) == limit
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == alike(rows, vectors)
    assert len(pairs) == 15


def test_a_large_slice_is_searched_by_the_index(acme, monkeypatch):
    small_pages(monkeypatch, whole_rows=40)
    vectors = with_copies(300, seed=3)
    rows = store(acme, vectors)
    index_all(acme)
    read = pages(acme)
    pairs = ids_of(read)
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == alike(rows, vectors)
    assert {page.notice for page in read} == {""}


def test_memories_that_are_not_indexed_yet_are_compared_too(acme, monkeypatch):
    small_pages(monkeypatch, whole_rows=40)
    vectors = with_copies(120, seed=4)
    rows = store(acme, vectors)
    index_all(acme)
    with tenant(acme):
        mine = Memory.objects.for_organization(acme)
        mine.filter(pk__in=[row.pk for row in rows[::4]]).update(is_indexed=False)
    read = pages(acme)
    pairs = ids_of(read)
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == alike(rows, vectors)
    assert {page.notice for page in read} == {""}
    with tenant(acme):
        mine.update(is_indexed=False)
        page = near_duplicates(organization=acme, threshold=THRESHOLD)
    assert page.notice.startswith("The search index does not hold all of these memories yet")


def test_small_slices_of_a_large_organization_are_compared_exactly(acme, monkeypatch):
    """And a page ends before it exceeds its limit of vectors."""
    small_pages(monkeypatch, whole_rows=60)
    monkeypatch.setattr(duplicates, "_MAX_VECTORS", 100)
    vectors = with_copies(200, seed=5, copies=40)
    rows = store(acme, vectors, users=[make_user(acme) for _ in range(5)])
    monkeypatch.setattr(duplicates, "alike_by_index", None)  # it is not called
    read = pages(acme)
    assert max(page.looked_at for page in read) < 20
    assert sum(page.looked_at for page in read) == 200
    pairs = ids_of(read)
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == alike(rows, vectors)
    assert pairs


def test_the_index_is_used_and_its_settings_are_reset(acme, monkeypatch):
    small_pages(monkeypatch, whole_rows=40)
    store(acme, make_vectors(100, seed=6))
    index_all(acme)
    with tenant(acme), connection.cursor() as cursor, CaptureQueriesContext(connection) as queries:
        near_duplicates(organization=acme)
        cursor.execute("SELECT current_setting('enable_sort'), current_setting('enable_seqscan')")
        assert cursor.fetchone() == ("on", "on")
        (nearest,) = [q["sql"] for q in queries.captured_queries if "LATERAL" in q["sql"]]
        for name, value in likeness.INDEX_ONLY.items():
            cursor.execute("SELECT set_config(%s, %s, true)", [name, value])
        cursor.execute(f"EXPLAIN {nearest}")
        plan = "\n".join(line for (line,) in cursor.fetchall())
        assert "Index Scan using memories_memory_embedding" in plan, plan


def test_only_live_rows_of_the_same_encoder_are_compared(acme, globex):
    vectors = np.repeat(make_vectors(1, seed=7), 2, axis=0)
    kept = store(acme, vectors, contents=["One.", "Two."])
    store(acme, vectors[:1], contents=["Another encoder's."], embedding_model="other")
    store(acme, vectors[:1], contents=["Expired."], expires_at=LONG_AGO)
    store(acme, vectors[:1], contents=["In the trash."], is_deleted=True, deleted_at=timezone.now())
    store(globex, vectors, contents=["Theirs.", "Theirs too."])
    (page,) = pages(acme)
    assert ids_of([page]) == [tuple(sorted(row.pk for row in kept))]
    assert page.pairs[0].similarity == 1
    assert pages(acme, threshold=1)[0].pairs


def test_each_of_many_copies_is_paired_with_a_limited_number(acme, monkeypatch):
    monkeypatch.setattr(likeness, "PER_MEMORY", 5)
    monkeypatch.setattr(duplicates, "PER_MEMORY", 5)
    rows = store(acme, np.repeat(make_vectors(1, seed=8), 30, axis=0))
    pairs = ids_of(pages(acme, limit=200))
    assert len(pairs) == 25 * 5 + 4 + 3 + 2 + 1
    assert {pk for pair in pairs for pk in pair} == {row.pk for row in rows}


# -- through the API -----------------------------------------------------------------------------


def test_pairs_are_paginated(api, acme, globex):
    ann, bot = make_user(acme, external_id="ann"), make_agent(acme, external_id="bot")
    vectors = np.repeat(make_vectors(2, seed=9), 2, axis=0)
    store(acme, vectors, contents=["A.", "A!", "B.", "B!"], user=ann, agent=bot)
    store(acme, vectors[:1], contents=["A?"])
    answer = api.get("memories/duplicates?limit=1&user_id=ann")
    assert answer.status_code == 200, answer.data
    (pair,) = answer.data["results"]
    assert pair["similarity"] == 1
    assert {pair["first"]["content"], pair["second"]["content"]} == {"A.", "A!"}
    assert pair["first"]["id"] < pair["second"]["id"]
    assert "user_id=ann" in answer.data["next"]
    other = api.get(answer.data["next"])
    (pair,) = other.data["results"]
    assert {pair["first"]["content"], pair["second"]["content"]} == {"B.", "B!"}
    assert other.data["next"] is None
    assert len(api.get("memories/duplicates?agent_id=bot").data["results"]) == 2
    assert len(api.get("memories/duplicates").data["results"]) == 2
    assert len(api.get("memories/duplicates?across=true").data["results"]) == 4
    assert api.get("memories/duplicates?threshold=1&user_id=ann").data["looked_at"] == 4


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("threshold=0.4", "threshold: Ensure this value is greater than or equal to 0.5."),
        ("threshold=nan", "threshold: "),
        ("limit=0", "limit: Ensure this value is greater than or equal to 1."),
        ("limit=201", "limit: Ensure this value is less than or equal to 200."),
        ("cursor=x", "cursor: This cursor was not made by this server."),
        ("cursor=WzEsMiwzXQ", "cursor: This cursor was not made by this server."),
        ("limt=1", "limt: There is no such parameter."),
    ],
)
def test_a_bad_parameter_is_refused_by_name(api, query, message):
    answer = api.get(f"memories/duplicates?{query}")
    assert answer.status_code == 400
    assert answer.data["detail"].startswith(message), answer.data["detail"]


def test_an_organization_without_vectors_has_no_pairs(api):
    expected = {"results": [], "next": None, "looked_at": 0}
    assert api.get("memories/duplicates").data == expected
