"""`POST /api/v1/memories/search`, as an agent calls it."""

import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone

from accounts.services.organizations import organizations
from accounts.tenancy import is_inside, tenant
from memories.embeddings import EncoderError
from memories.models import Memory
from memories.services import embedding, searching
from memories.services.hits import write_hits
from memories.services.memories import memories
from tests.makers import TESTER, make_agent, make_memory, make_organization, make_user


def contents(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.data
    return [hit["memory"]["content"] for hit in answer.data["results"]]


def find(api: Any, query: str, **body: Any) -> list[str]:
    return contents(api.post("memories/search", {"query": query, **body}))


# -- hits ---------- -----------------------------------------------------------------------------


def test_the_best_memory_comes_first_with_its_parts(api, remember):
    remember("Alice takes her coffee black, without sugar.", speaker="Alice", importance=0.25)
    remember("The train to Bern leaves at nine.")
    answer = api.post("memories/search", {"query": "How does Alice take her coffee?"})
    assert answer.data["mode"] == "hybrid"
    assert answer.data["took_ms"] > 0
    hit, other = answer.data["results"]
    assert hit["memory"]["content"] == "Alice takes her coffee black, without sugar."
    assert hit["memory"]["speaker"] == "Alice"
    assert hit["parts"] == {"dense": 0.5, "lexical": 0.5, "recency": 0, "importance": 0}
    assert hit["score"] == 1
    assert 0.3 < hit["similarity"] <= 1
    assert hit["matched_terms"] == ["Alice", "take", "coffee"]
    assert other["matched_terms"] == []
    assert other["score"] < 0.5


def test_parts_add_up_to_the_score(api, remember):
    for n in range(5):
        remember(f"Coffee number {n} is {'black ' * n}.", importance=n / 10)
    weights = {"dense": 0.4, "lexical": 0.3, "recency": 0.2, "importance": 0.1}
    answer = api.post("memories/search", {"query": "black coffee", "weights": weights})
    assert len(answer.data["results"]) == 5
    for hit in answer.data["results"]:
        assert hit["score"] == pytest.approx(sum(hit["parts"].values()))
        assert hit["parts"]["recency"] == pytest.approx(0.2, rel=0.01)
        assert hit["parts"]["importance"] == pytest.approx(0.1 * hit["memory"]["importance"])


def test_recency_halves_after_each_half_life(api, remember):
    now = timezone.now()
    remember("Fresh coffee.", created_at=now)
    remember("Old coffee.", created_at=now - timedelta(days=7))
    weights = {"dense": 0, "lexical": 0, "recency": 1}
    answer = api.post(
        "memories/search", {"query": "coffee", "weights": weights, "half_life_days": 7}
    )
    fresh, old = answer.data["results"]
    assert fresh["memory"]["content"] == "Fresh coffee."
    assert old["parts"]["recency"] == pytest.approx(fresh["parts"]["recency"] / 2, rel=1e-3)


def test_a_memory_many_half_lives_old_is_found(api, remember):
    remember("Ancient coffee.", created_at=datetime(1971, 1, 1, tzinfo=UTC))
    remember("Fresh coffee.")
    for half_life_days in (0.001, 1, 15):
        weights = {"recency": 1}
        hits = find(api, "coffee", weights=weights, half_life_days=half_life_days)
        assert hits == ["Fresh coffee.", "Ancient coffee."]


# -- modes ---------------------------------------------------------------------------------------


def test_keyword_searches_only_words_and_semantic_only_meaning(api, remember):
    remember("My dog barks at night.")
    remember("A puppy is a young animal.")
    assert find(api, "dog", mode="keyword") == ["My dog barks at night."]
    answer = api.post("memories/search", {"query": "dogs", "mode": "semantic"})
    assert answer.data["mode"] == "semantic"
    assert len(answer.data["results"]) == 2
    assert all(hit["matched_terms"] == [] for hit in answer.data["results"])


def test_a_memory_without_a_vector_is_found_by_its_words(api, remember):
    remember("Yes, at seven.", context="Shall we meet in Zermatt?")
    assert find(api, "Zermatt", mode="keyword") == ["Yes, at seven."]


def test_words_are_stemmed_quoted_safely_and_combined_with_or(api, remember):
    remember("She was running late.")
    remember("He's O'Neill \\ the 'quoted' | one & only:*")
    assert find(api, "runs or jumps", mode="keyword") == ["She was running late."]
    for query in ("O'Neill", "quoted' | x", "\\", "& | ! <-> :*", "'", "a\u0301 \U0001f600"):
        answer = api.post("memories/search", {"query": query, "mode": "keyword"})
        assert answer.status_code == 200, query
    assert len(find(api, "O'Neill \\ quoted", mode="keyword")) == 1


@pytest.mark.parametrize(
    ("query", "matched"),
    [
        ("state-of-the-art", ["state-of-the-art", "state", "art"]),
        ("art of the state-of-the-art", ["art", "state-of-the-art", "state"]),
        ("Beans beaning BEAN", ["BEAN"]),
    ],
)
def test_each_matched_term_is_listed_once_in_the_order_of_the_query(api, remember, query, matched):
    remember("A state-of-the-art machine for beans.")
    answer = api.post("memories/search", {"query": query, "mode": "keyword"})
    (hit,) = answer.data["results"]
    assert hit["matched_terms"] == matched


def test_the_first_words_of_a_long_query_count(api, remember):
    remember("A zebra crossed the road.")
    many = " ".join(f"a{n}" for n in range(500))
    assert find(api, f"Zebra? {many}", mode="keyword") == ["A zebra crossed the road."]


def test_a_query_of_stop_words_is_searched_by_meaning(api, remember):
    remember("To be is to do.")
    assert find(api, "to be or not to be") == ["To be is to do."]
    assert find(api, "to be or not to be", mode="keyword") == []


def test_keywords_use_the_language_of_the_organization(acme, api):
    make_memory(acme, content="Alte Häuser.")
    assert find(api, "Haus", mode="keyword") == []
    with tenant(acme):
        organizations.update(
            acme, organization=acme, actor=TESTER, values={"settings": {"language": "german"}}
        )
    acme.refresh_from_db()
    make_memory(acme, content="Neue Häuser.")
    assert find(api, "Haus", mode="keyword") == ["Neue Häuser."]
    answer = api.patch(f"organizations/{acme.pk}", {"settings": {"language": "klingon"}})
    assert answer.status_code == 400
    assert "settings.language is one of arabic, armenian" in answer.data["errors"][0]["message"]


def test_pending_memories_are_found_by_words_and_fill_up_the_limit(api, acme, remember):
    remember("Tea is hot.")
    make_memory(acme, content="Coffee is strong.")
    make_memory(acme, content="Nothing at all.")
    answer = api.post("memories/search", {"query": "coffee"})
    assert len(answer.data["results"]) == 3
    coffee = next(h for h in answer.data["results"] if "Coffee" in h["memory"]["content"])
    assert (coffee["similarity"], coffee["parts"]["lexical"]) == (None, 0.5)


# -- filters -------------------------------------------------------------------------------------


def test_each_filter(api, acme, remember):
    user, agent = make_user(acme, external_id="ann"), make_agent(acme, external_id="bot")
    then = datetime(2024, 5, 1, tzinfo=UTC)
    remember(
        "Tea one.",
        user=user,
        agent=agent,
        session_id="s1",
        memory_type="core",
        scope="agent",
        level="tactical",
        importance=0.9,
        created_at=then,
        metadata={"topic": "drinks"},
    )
    remember("Tea two.", importance=0.1)
    for conditions in (
        {"user_id": "ann"},
        {"user_id": str(user.pk)},
        {"agent_id": "bot"},
        {"session_id": "s1"},
        {"types": ["core", "resource"]},
        {"scopes": ["agent"]},
        {"levels": ["tactical"]},
        {"until": "2024-06-01T00:00:00Z"},
        {"importance_min": 0.9},
        {"filters": {"topic": "drinks"}},
    ):
        assert find(api, "tea", **conditions) == ["Tea one."], conditions
        assert find(api, "tea", mode="keyword", **conditions) == ["Tea one."], conditions
    for conditions in ({"since": "2024-06-01T00:00:00Z"}, {"importance_max": 0.1}):
        assert find(api, "tea", **conditions) == ["Tea two."], conditions
    assert find(api, "tea", user_id="ann", types=["episodic"]) == []


META = {
    "topic": "travel",
    "n": 5,
    "price": 9.5,
    "ok": True,
    "none": None,
    "tags": ["red", "blue", 7],
    "trip": {"to": "Bern", "days": 3},
    'odd "key"\\': "x",
    "date": "2026-01-31",
}


@pytest.mark.parametrize(
    ("filters", "matches"),
    [
        ({"topic": "travel"}, True),
        ({"topic": "Travel"}, False),
        ({"topic": {"eq": "travel"}}, True),
        ({"topic": {"ne": "travel"}}, False),
        ({"topic": {"ne": 5}}, True),
        ({"absent": {"ne": 5}}, True),
        ({"topic": {"in": ["a", "travel"]}}, True),
        ({"topic": {"in": []}}, False),
        ({"n": 5}, True),
        ({"n": 5.0}, True),
        ({"n": "5"}, False),
        ({"n": {"gt": 4, "lt": 6}}, True),
        ({"n": {"gt": 5}}, False),
        ({"n": {"gte": 5}}, True),
        ({"n": {"lte": 4.99}}, False),
        ({"n": {"gt": -1e-7}}, True),
        ({"topic": {"gt": 4}}, False),
        ({"not": {"topic": {"gt": 4}}}, True),
        ({"date": {"gte": "2026-01-01", "lt": "2026-02-01"}}, True),
        ({"price": {"lt": 10}}, True),
        ({"ok": True}, True),
        ({"ok": False}, False),
        ({"none": None}, True),
        ({"absent": None}, True),
        ({"n": None}, False),
        ({"tags": "red"}, True),
        ({"tags": {"contains": "red"}}, True),
        ({"tags": {"contains": 7}}, True),
        ({"tags": {"contains": "re"}}, False),
        ({"topic": {"contains": "rav"}}, True),
        ({"topic": {"contains": ".*"}}, False),
        ({"tags": {"ne": "red"}}, False),
        ({"trip.to": "Bern"}, True),
        ({"trip.days": {"gte": 4}}, False),
        ({"trip": {"exists": True}}, True),
        ({"trip.by": {"exists": True}}, False),
        ({"absent": {"exists": False}}, True),
        ({'odd "key"\\': "x"}, True),
        ({"and": [{"n": 5}, {"ok": True}]}, True),
        ({"and": [{"n": 5}, {"ok": False}]}, False),
        ({"or": [{"n": 6}, {"ok": True}]}, True),
        ({"or": [{"n": 6}, {"ok": False}]}, False),
        ({"not": {"n": 6}}, True),
        ({"n": 5, "not": {"or": [{"ok": True}, {"n": 6}]}}, False),
        ({"not": {"not": {"absent": 1}}}, False),
    ],
    ids=str,
)
def test_filters_on_metadata(api, acme, remember, filters, matches):
    row = remember("A thing.", metadata=META)
    assert find(api, "thing", filters=filters) == (["A thing."] if matches else [])
    # A list takes the same filters.
    memory_filter = searching.MemoryFilter(metadata=searching_path(filters))
    with tenant(acme):
        rows = memory_filter.apply_to(Memory.objects.for_organization(acme))
        assert list(rows.values_list("pk", flat=True)) == ([row.pk] if matches else [])


def test_the_sql_of_a_filter_is_about_as_long_as_the_filter():
    conditions: Any = {"n": {"in": ["x" * 1000] * 64}}
    for _ in range(7):
        conditions = {"not": conditions}
    assert len(searching_path(conditions)) < 70_000


def searching_path(filters: Any) -> str:
    from memories.search.metadata import compile_metadata

    return compile_metadata(filters)


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"n": {"above": 3}}, "Unknown operator 'above'; known: eq, ne, in, gt"),
        ({"n": {}}, "'n' has no operator"),
        ({"n": {"eq": [1]}}, "A filter compares with a text, a number, true, false or null."),
        ({"n": {"in": 3}}, "\"in\" on 'n' takes a list."),
        ({"n": {"gt": None}}, "\"gt\" on 'n' takes a number or a text."),
        ({"n": {"exists": 1}}, "\"exists\" on 'n' is true or false."),
        ({"and": {"n": 1}}, '"and" takes a list of filters.'),
        ({"or": []}, '"or" takes at least one filter.'),
        ({"not": []}, 'A filter is an object such as {"topic": {"eq": "travel"}}.'),
        ({f"k{n}": n for n in range(65)}, "A filter has at most 64 conditions."),
        ({"n": "x" * 1001}, "A text in a filter has at most 1000 characters."),
    ],
    ids=str,
)
def test_a_wrong_filter_is_named(api, filters, message):
    answer = api.post("memories/search", {"query": "x", "filters": filters})
    assert answer.status_code == 400
    (problem,) = answer.data["errors"]
    assert problem["field"] == "filters"
    assert message in problem["message"]


def test_a_filter_nests_eight_levels_deep(api):
    filters: Any = {"n": 1}
    for _ in range(7):
        filters = {"not": filters}
    assert api.post("memories/search", {"query": "x", "filters": filters}).status_code == 200
    answer = api.post("memories/search", {"query": "x", "filters": {"not": filters}})
    assert answer.data["errors"][0]["message"] == "Filters nest at most 8 levels deep."


# -- time ----------------------------------------------------------------------------------------


def test_deleted_and_expired_memories_are_not_found(api, acme, remember):
    deleted = remember("Tea gone.")
    remember("Tea expired.", expires_at=timezone.now() - timedelta(seconds=1))
    remember("Tea here.", expires_at=timezone.now() + timedelta(days=1))
    with tenant(acme):
        rows = Memory.objects.for_organization(acme).filter(pk=deleted.pk)
        memories.delete(rows, organization=acme, actor=TESTER)
    assert find(api, "tea") == ["Tea here."]


def test_as_of_finds_what_existed_then(api, acme, remember):
    then = timezone.now() - timedelta(days=10)
    deleted = remember("Tea gone.", created_at=then)
    remember("Tea expired.", created_at=then, expires_at=then + timedelta(days=2))
    remember("Tea later.", created_at=then + timedelta(days=5))
    with tenant(acme):
        rows = Memory.objects.for_organization(acme).filter(pk=deleted.pk)
        memories.delete(rows, organization=acme, actor=TESTER)

    def at(days: int) -> set[str]:
        return set(find(api, "tea", as_of=(then + timedelta(days=days)).isoformat()))

    assert at(1) == {"Tea gone.", "Tea expired."}
    assert at(3) == {"Tea gone."}
    assert at(6) == {"Tea gone.", "Tea later."}
    assert set(find(api, "tea")) == {"Tea later."}


# -- vectors -------------------------------------------------------------------------------------


def test_vectors_of_another_encoder_are_compared_by_that_encoder(api, remember, settings):
    remember("My dog barks.")
    settings.ENCODER = "minilm-int8"
    remember("Our cat purrs.")
    for encoder in ("static", "minilm-int8"):
        settings.ENCODER = encoder
        for query, best in (
            ("a barking dog", "My dog barks."),
            ("a purring cat", "Our cat purrs."),
        ):
            answer = api.post("memories/search", {"query": query, "mode": "semantic"})
            first, second = answer.data["results"]
            assert first["memory"]["content"] == best
            assert first["similarity"] > 0.5 > second["similarity"] + 0.01


def test_supplied_vectors_do_not_hide_those_of_another_encoder(api, remember, settings):
    remember("My dog barks at the neighbours.")
    remember("The train to Bern leaves at nine.")
    for name in ("aaa", "nobody's", "zzz"):
        remember(f"Brought, of {name}.", embedding_model=name)
    settings.ENCODER = "minilm-int8"
    question = {"query": "a hound makes noise", "mode": "semantic"}
    alone = api.post("memories/search", question).data["results"]
    assert alone[0]["memory"]["content"] == "My dog barks at the neighbours."
    assert [hit["similarity"] is None for hit in alone] == [False, False, True, True, True]
    # In a batch too, in any order.
    searches = [{"query": "train", "mode": "keyword"}, question]
    batch = api.post("memories/search/batch", {"searches": searches}).data["results"]
    assert [hit["similarity"] for hit in batch[1]["results"]] == [h["similarity"] for h in alone]


def test_a_vector_of_an_unknown_model_is_compared_only_with_its_own(api, acme, remember):
    remember("My dog barks.")
    vector = [0.5] * 4 + [0.0] * 380
    own = make_memory(acme, content="Mine.", embedding=vector, embedding_model="mine-1")
    body = {"embedding": vector, "embedding_model": "mine-1", "mode": "semantic"}
    answer = api.post("memories/search", body)
    first, second = answer.data["results"]
    assert first["memory"]["id"] == str(own.pk)
    assert first["similarity"] == pytest.approx(1, abs=1e-3)
    assert second["similarity"] is None
    # A search by the server's encoder does not fail on the unknown name.
    assert find(api, "dog")[0] == "My dog barks."


def test_without_the_encoder_a_hybrid_search_uses_keywords_and_says_so(api, remember, monkeypatch):
    remember("My dog barks.")

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise EncoderError("model.onnx is missing.")

    monkeypatch.setattr(searching, "embed_queries", broken)
    answer = api.post("memories/search", {"query": "dog"})
    assert contents(answer) == ["My dog barks."]
    assert answer.data["mode"] == "keyword"
    assert answer.data["notice"].startswith("Searched by keyword only: the encoder cannot be used")
    answer = api.post("memories/search", {"query": "dog", "mode": "semantic"})
    assert answer.status_code == 503
    assert answer.data["code"] == "encoder_unavailable"
    assert answer.data["detail"] == "The encoder cannot be used. The server's log says why."


def test_after_an_encoder_timeout_other_searches_do_not_wait(api, remember, monkeypatch):
    remember("My dog barks.")
    tried = []

    def silent(*args: Any, **kwargs: Any) -> Any:
        tried.append(args)
        raise EncoderError("No answer within 30 s.", is_temporary=True)

    monkeypatch.setattr(embedding, "_away", {})
    monkeypatch.setattr(embedding, "encode_texts", silent)
    for n in range(3):
        answer = api.post("memories/search", {"query": f"dog {n}"})
        assert (contents(answer), answer.data["mode"]) == (["My dog barks."], "keyword")
    assert len(tried) == 1
    refused = api.post("memories/search", {"query": "dog 4", "mode": "semantic"})
    assert (refused.status_code, refused["Retry-After"]) == (503, "5")
    monkeypatch.setattr(embedding, "AWAY_S", -1)
    embedding._away.clear()
    assert api.post("memories/search", {"query": "dog 5"}).data["mode"] == "keyword"
    assert api.post("memories/search", {"query": "dog 6"}).data["mode"] == "keyword"
    assert len(tried) == 3


def test_no_connection_is_held_during_encoding(api, acme, remember, monkeypatch):
    remember("My dog barks.")
    seen = []
    encode = embedding.encode_texts

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(is_inside())
        return encode(*args, **kwargs)

    monkeypatch.setattr(embedding, "encode_texts", watched)
    find(api, "a question that nobody asked before")
    assert seen == [False]
    with tenant(acme), pytest.raises(RuntimeError, match="Encode outside tenant"):
        embedding.embed([(None, "x")], organization=acme)


def test_queries_of_many_threads_are_cached(acme, monkeypatch):
    monkeypatch.setattr(embedding, "_MAX_CACHED_QUERIES", 5)
    embedding.embed_queries(["once"], organization=acme)  # the encoder is loaded
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def ask(seed: int) -> None:
        for n in range(500):
            queries = [f"question {(seed * 7 + n * k) % 12}" for k in (1, 5)]
            assert len(embedding.embed_queries(queries, organization=acme)) == 2

    try:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(ask, range(8)))
    finally:
        sys.setswitchinterval(usual)


# -- several at once -----------------------------------------------------------------------------


def test_results_of_a_batch_are_in_the_order_of_its_searches(api, remember):
    remember("My dog barks.")
    remember("Our cat purrs.")
    body = {
        "searches": [
            {"query": "cat", "limit": 1},
            {"query": "dog", "mode": "keyword"},
            {"query": "dog", "limit": 1, "mode": "semantic"},
        ]
    }
    answer = api.post("memories/search/batch", body)
    assert answer.status_code == 200, answer.data
    hits = [[h["memory"]["content"] for h in one["results"]] for one in answer.data["results"]]
    assert hits == [["Our cat purrs."], ["My dog barks."], ["My dog barks."]]
    assert [one["mode"] for one in answer.data["results"]] == ["hybrid", "keyword", "semantic"]


def test_a_batch_has_1_to_32_searches_and_a_wrong_one_is_named(api):
    assert api.post("memories/search/batch", {"searches": []}).status_code == 400
    many = api.post("memories/search/batch", {"searches": [{"query": "x"}] * 33})
    assert many.data["errors"][0]["field"] == "searches"
    wrong = api.post(
        "memories/search/batch", {"searches": [{"query": "x"}, {"query": "x", "limit": 0}]}
    )
    assert wrong.data["errors"][0]["field"] == "searches.1.limit"


# -- counts and refusals ----------------- --------------------------------------------------------


def test_hits_are_counted_in_the_background(api, acme, remember):
    row, before = remember("My dog barks."), timezone.now()
    other = remember("Unrelated.", user=make_user(acme, external_id="x"))
    find(api, "dog", mode="keyword")
    find(api, "dog", mode="keyword")
    assert write_hits() == 1
    assert write_hits() == 0
    with tenant(acme):
        row.refresh_from_db()
        other.refresh_from_db()
    assert row.access_count == 2
    assert row.last_accessed > before
    assert row.updated_at < before
    assert (other.access_count, other.last_accessed) == (0, None)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"query": ""}, "query"),
        ({"query": "  "}, "query"),
        ({"query": "x", "limit": 0}, "limit"),
        ({"query": "x", "limit": 201}, "limit"),
        ({"query": "x", "mode": "fuzzy"}, "mode"),
        ({"query": "x", "kinds": ["core"]}, "kinds"),
        ({"query": "x", "types": ["dream"]}, "types"),
        ({"query": "x", "user_id": ""}, "user_id"),
        ({"query": "x", "since": "2024-01-01T00:00:00"}, "since"),
        ({"query": "x", "weights": {"dense": -1}}, "weights.dense"),
        ({"query": "x", "embedding": [1.0]}, "embedding"),
        ({"query": "x", "embedding": [1.0] * 384}, "embedding_model"),
    ],
    ids=str,
)
def test_a_wrong_search_is_refused_by_its_field(api, body, field):
    answer = api.post("memories/search", body)
    assert answer.status_code == 400
    assert [problem["field"].partition(".0")[0] for problem in answer.data["errors"]] == [field]


@pytest.mark.parametrize("mode", ["hybrid", "keyword", "semantic"])
def test_a_query_that_is_too_long_is_cut_and_the_answer_says_so(api, remember, mode):
    remember("My secret dog.")
    body = {"query": "dog " * 2999 + "dogs", "mode": mode}
    notice = "The query has 12,000 characters: its first 8,000 were searched for."
    answer = api.post("memories/search", body).json()
    assert answer["notice"] == notice
    assert [hit["memory"]["content"] for hit in answer["results"]] == ["My secret dog."]
    whole = {"query": "dog " * 2000, "mode": mode}
    several = api.post("memories/search/batch", {"searches": [body, whole]}).json()["results"]
    assert [one.get("notice") for one in several] == [notice, None]
    assert several[0]["results"] == several[1]["results"]


def test_a_search_sees_only_its_organization(api, theirs, acme, globex, remember):
    remember("My secret dog.")
    remember("Their dog.", organization=globex)
    assert find(api, "dog") == ["My secret dog."]
    assert find(theirs, "dog") == ["Their dog."]
    assert find(theirs, "dog", as_of=timezone.now().isoformat()) == ["Their dog."]
    user = make_user(acme, external_id="ann")
    foreign = theirs.post("memories/search", {"query": "dog", "user_id": str(user.pk)})
    unknown = theirs.post(
        "memories/search", {"query": "dog", "user_id": str(make_organization("x").pk)}
    )
    assert foreign.json()["results"] == unknown.json()["results"] == []
