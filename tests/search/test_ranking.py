"""The ranking function: complete, nearly exact, and within its organization, by any plan."""

from typing import Any
from unittest.mock import patch

import numpy as np
from django.db import connection
from django.test import TestCase

from accounts.tenancy import tenant
from memories.models import Memory
from memories.search.metadata import compile_metadata
from memories.search.ranking import Weights
from memories.services import indexing
from memories.services.indexing import index_vectors
from tests.makers import make_organization, make_user
from tests.search.corpus import index_all, make_vectors, nearest, ranked, store, vector_of

LARGE, MIDDLE, SMALL = 4000, 400, 4
BY_INDEX = 100  # exact_rows: larger slices use the indexes
QUERIES = make_vectors(25, seed=99)


def recall(hits: Any, wanted: Any) -> float:
    return len({r.id for r in hits} & set(wanted)) / len(wanted)


class TestSlices(TestCase):
    """One table, three organizations of 91 %, 9 % and 0.1 % of it, all in the HNSW index."""

    @classmethod
    def setUpTestData(cls) -> None:
        cls.stored = {}
        for slug, count in (("large", LARGE), ("middle", MIDDLE), ("small", SMALL)):
            organization = make_organization(slug)
            users = [make_user(organization) for _ in range(20)]
            vectors = make_vectors(count, seed=count)
            rows = store(organization, vectors, users=users)
            index_all(organization)
            cls.stored[slug] = (organization, users, rows, vectors)
        with connection.cursor() as cursor:
            cursor.execute("SELECT agentmem_analyze('memories_memory')")

    def test_the_index_has_the_recall_of_an_exact_search(self):
        for slug in self.stored:
            organization, _, rows, vectors = self.stored[slug]
            recalls = [
                recall(
                    ranked(organization, vector_of(q), exact_rows=0),
                    nearest(rows, vectors, q, 10),
                )
                for q in QUERIES
            ]
            assert np.mean(recalls) >= 0.99, slug

    def test_as_many_rows_are_returned_as_limit_and_walls_allow(self):
        for slug, exact_rows in [(s, e) for s in self.stored for e in (0, BY_INDEX, 10_000)]:
            organization, _, rows, _ = self.stored[slug]
            for limit in (1, 10, 150):
                hits = ranked(
                    organization, vector_of(QUERIES[0]), limit=limit, exact_rows=exact_rows
                )
                assert len(hits) == min(limit, len(rows)), (slug, exact_rows, limit)
                assert len({r.id for r in hits}) == len(hits)

    def test_filters_do_not_lower_recall(self):
        organization, users, rows, vectors = self.stored["large"]
        path = compile_metadata({"parity": "odd"})
        filters: list[tuple[dict[str, Any], Any]] = [
            ({"user_id": users[3].pk}, lambda n: n % 20 == 3),
            ({"metadata": path}, lambda n: n % 2 == 1),
            ({"metadata": compile_metadata({"n": {"gte": 3990}})}, lambda n: n >= 3990),
            ({"user_id": users[3].pk, "metadata": path}, lambda n: n % 20 == 3),
        ]
        for conditions, passes in filters:
            own = [n for n in range(LARGE) if passes(n)]
            own_rows, own_vectors = [rows[n] for n in own], vectors[own]
            for exact_rows in (0, 10_000):
                recalls = []
                for q in QUERIES:
                    hits = ranked(organization, vector_of(q), exact_rows=exact_rows, **conditions)
                    assert len(hits) == min(10, len(own))
                    recalls.append(recall(hits, nearest(own_rows, own_vectors, q, 10)))
                assert np.mean(recalls) >= 0.99, (conditions, exact_rows)

    def test_the_twentieth_search_on_a_connection_finds_what_the_first_found(self):
        # After five runs PostgreSQL would choose a generic plan: the same for the small
        # organization as for the large one.
        for slug in ("large", "small", "middle"):
            organization, users, rows, vectors = self.stored[slug]
            q = QUERIES[1]
            for _ in range(20):
                hits = ranked(organization, vector_of(q), exact_rows=BY_INDEX)
                assert recall(hits, nearest(rows, vectors, q, 10)) >= 0.9
                own = ranked(organization, vector_of(q), exact_rows=BY_INDEX, user_id=users[1].pk)
                assert len(own) == min(10, len(rows[1::20]))

    def test_vectors_that_are_not_indexed_yet_are_found(self):
        organization, _, rows, vectors = self.stored["large"]
        q = QUERIES[2]
        best = nearest(rows, vectors, q, 10)
        with tenant(organization), connection.cursor() as cursor:
            cursor.execute(
                "UPDATE memories_memory SET is_indexed = false WHERE organization_id = %s "
                "AND id = ANY (%s)",
                [organization.pk, best[:5]],
            )
        hits = ranked(organization, vector_of(q), exact_rows=BY_INDEX)
        assert recall(hits, best) >= 0.9
        assert {r.id for r in hits} >= set(best[:5])

    def test_a_large_slice_is_searched_by_words_too(self):
        organization, *_ = self.stored["large"]
        weather = [f"The weather was fine on day {n}." for n in range(600)]
        contents = [*weather, "The weather near Quebec was fine, fine, fine."]
        rows = store(organization, make_vectors(601, seed=7), contents=contents, metadata={})
        weights = Weights(dense=0.5, lexical=0.5)
        q = vector_of(QUERIES[3])
        for vectors in ([], [q]):
            hits = ranked(
                organization,
                *vectors,
                query="What was the weather in Quebec?",
                exact_rows=BY_INDEX,
                weights=weights,
            )
            assert len(hits) == 10
            assert rows[600].pk in {r.id for r in hits}
            best = max(hits, key=lambda r: r.lexical)
            assert (best.id, best.lexical) == (rows[600].pk, 0.5)
            assert best.matched == ["weather", "Quebec"]

    def test_the_newest_memories_of_a_large_slice_may_be_without_words(self):
        organization = make_organization("wordless")
        old = store(organization, make_vectors(1, seed=8), contents=["Coffee."])
        store(organization, make_vectors(500, seed=9), contents=["☕"] * 500)
        for vectors in ([], [vector_of(QUERIES[4])]):
            hits = ranked(
                organization,
                *vectors,
                query="coffee",
                exact_rows=BY_INDEX,
                weights=Weights(dense=0, lexical=1),
            )
            assert (hits[0].id, hits[0].lexical) == (old[0].pk, 1)

    def test_only_the_index_of_a_large_organization_is_filled(self):
        organization, _, rows, _ = self.stored["middle"]
        own = Memory.objects.for_organization(organization)
        with tenant(organization):
            own.update(is_indexed=False)
        assert index_vectors(organization, batches=9) == 0
        with patch.object(indexing, "EXACT_ROWS", 100), patch.object(indexing, "BATCH", 150):
            assert index_vectors(organization, batches=2) == 300
            with tenant(organization):
                assert own.filter(is_indexed=True).count() == 300
            assert index_vectors(organization, batches=9) == len(rows) - 300
            assert index_vectors(organization) == 0


def test_no_generic_plan_is_used(db):
    # The results do not depend on it, but the time does: a generic plan reads a small organization
    # like a large one.
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT proname, proconfig FROM pg_proc "
            "WHERE proname IN ('agentmem_search', 'agentmem_nearest')"
        )
        settings_of = dict(cursor.fetchall())
    assert settings_of.keys() == {"agentmem_search", "agentmem_nearest"}
    for settings in settings_of.values():
        assert "plan_cache_mode=force_custom_plan" in settings
