"""Search: latency and recall for organizations from 0.01 % to 50 % of a table.

Memories of the sample generator with vectors of the static encoder. A query is some words of a
stored memory with that memory's vector, slightly rotated; encoding is not measured. The vectors of
large organizations are in the HNSW index, moved there as the worker does.
"""

import random
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from django.conf import settings
from django.db import connection
from numpy.typing import NDArray
from rest_framework.test import APIClient

from accounts.actors import command_actor
from accounts.models import Organization, User
from accounts.roles import ALL_PERMISSIONS
from accounts.services.keys import issue_key
from accounts.services.organizations import organizations
from accounts.tenancy import platform, tenant
from agentmem_site.bulk import LoadOptions
from agentmem_site.bulk.readers import source_of_rows
from agentmem_site.samples import lines
from agentmem_site.services.loads import run_load
from memories.embeddings import encode_texts, get_encoder
from memories.models import embedded_text
from memories.search.filters import MemoryFilter
from memories.search.ranking import QueryVector, Ranked, Weights, rank
from memories.services.indexing import index_vectors
from tests.benchmarks.plot import Series, write_plot

ACTOR = command_actor("benchmark")
QUESTIONS = 200
USERS = 10
K = 10
SHARES = {"0.01 %": 0.0001, "1 %": 0.01, "10 %": 0.1, "50 %": 0.5}
EF_SEARCH = (10, 20, 40, 80, 100, 160, 320)
PLOT = Path(__file__).resolve().parents[2] / "docs" / "images" / "recall-latency.svg"
BY_BOTH = Weights()
BY_MEANING = Weights(dense=1, lexical=0)
WARM_UP = 5

Question = tuple[str, NDArray[np.float32]]


def run(rows: int) -> str:
    """Two Markdown tables; the plot goes to docs/images."""
    settings.FOUND_EVERY_S = 0
    random.seed(1)
    tables = [_small(), _shares(rows)]
    return "\n".join(tables)


def _small() -> str:
    """One organization of 6,000 memories, ten users of 600."""
    organization, vectors = _organization("small", 6000, first=1)
    with tenant(organization):
        user = User.objects.for_organization(organization).get(external_id="user-0")
    questions = _questions(6000, 1, vectors)
    line = _latencies(organization, questions, MemoryFilter())
    own = _latencies(organization, questions, MemoryFilter(user_id=user.pk))
    return (
        "| 6,000 memories, hybrid, 10 hits | p50 ms | p95 ms |\n|---|---|---|\n"
        f"| the whole organization | {line} |\n"
        f"| one user's 600 | {own} |\n"
        f"| one user's 600, `POST memories/search` | {_over_rest(organization, questions)} |\n"
    )


def _shares(rows: int) -> str:
    slices = {}
    first = 10_001
    for name, share in SHARES.items():
        count = max(int(rows * share), 1)
        slices[name] = (*_organization(f"share-{share}", count, first=first), count, first)
        first += count
    rest = max(rows - sum(count for *_, count, _ in slices.values()), 0)
    _organization("rest", rest, first=first)
    with connection.cursor() as cursor:
        cursor.execute("SELECT agentmem_analyze('memories_memory')")
    text = (
        f"\n| organization's share of {rows:,} memories | rows | hybrid p50 ms | p95 ms | "
        f"by meaning p50 ms | p95 ms | recall@{K} against exact | fewest hits of {K} |\n"
        "|---|---|---|---|---|---|---|---|\n"
    )
    for name, (organization, vectors, count, start) in slices.items():
        questions = _questions(count, start, vectors)
        recall, fewest = _recall(organization, questions)
        hybrid = _latencies(organization, questions, MemoryFilter())
        meaning = _latencies(organization, questions, MemoryFilter(), BY_MEANING)
        text += (
            f"| {name} | {count:,} | {hybrid} | {meaning} | {recall:.3f} | "
            f"{fewest} of {min(K, count)} |\n"
        )
    organization, vectors, count, start = slices["50 %"]
    _plot(organization, _questions(count, start, vectors), count)
    return text


def _organization(slug: str, count: int, *, first: int) -> tuple[Organization, Any]:
    """The organization with `count` memories, and their vectors (count, 384)."""
    with platform():
        made = organizations.create(
            actor=ACTOR, values={"slug": slug.replace(".", "-"), "name": slug}
        )
    if not count:
        return made, None
    parsed = _rows(count, first)
    encoder = get_encoder("static")
    vectors = encode_texts([embedded_text(p.get("speaker"), p["content"]) for p in parsed], encoder)
    for n, (row, vector) in enumerate(zip(parsed, vectors, strict=True)):
        row |= {"embedding": vector.tolist(), "embedding_model": encoder.name}
        row |= {"user_id": f"user-{n % USERS}"}
        row.pop("agent_id", None)
    run_load(
        "memories",
        source_of_rows(parsed).lines(),
        organization=made,
        actor=ACTOR,
        options=LoadOptions(),
        on_batch=lambda report: None,
    )
    while index_vectors(made, batches=50):
        pass
    return made, vectors


def _rows(count: int, first: int) -> list[Any]:
    text = b"".join(lines("memories", row_count=count, seed=1, start=first))
    return [msgspec.json.decode(line) for line in text.splitlines()]


def _questions(count: int, first: int, vectors: NDArray[np.float32]) -> list[Question]:
    noise = np.random.default_rng(1)
    rows = [row["content"].split() for row in _rows(count, first)]
    questions = []
    for n in random.choices(range(count), k=QUESTIONS):
        vector = vectors[n] + 0.02 * noise.standard_normal(vectors.shape[1])
        words = random.sample(rows[n], min(6, len(rows[n])))
        questions.append((" ".join(words), vector / np.linalg.norm(vector)))
    return questions


def _find(
    organization: Organization,
    question: Question,
    memory_filter: MemoryFilter,
    weights: Weights,
    **options: Any,
) -> list[Ranked]:
    words, vector = question
    return rank(
        organization=organization,
        query=words if weights.lexical else "",
        language="english",
        memory_filter=memory_filter,
        vectors=[QueryVector("static", str(vector.astype(np.float16).tolist()))],
        weights=weights,
        limit=K,
        **options,
    )


def _latencies(
    organization: Organization,
    questions: Sequence[Question],
    memory_filter: MemoryFilter,
    weights: Weights = BY_BOTH,
) -> str:
    def one(question: Question) -> None:
        _find(organization, question, memory_filter, weights)

    with tenant(organization):
        return _timed(one, questions)


def _timed(work: Callable[[Question], Any], questions: Sequence[Question]) -> str:
    """`p50 | p95`, in milliseconds."""
    for question in questions[:WARM_UP]:
        work(question)
    durations = []
    for question in questions:
        started = time.perf_counter()
        work(question)
        durations.append(1000 * (time.perf_counter() - started))
    return f"{np.percentile(durations, 50):.1f} | {np.percentile(durations, 95):.1f}"


def _recall(organization: Organization, questions: Sequence[Question]) -> tuple[float, int]:
    """(mean recall against an exact search, fewest hits) of a search with default settings."""
    shares, fewest = [], K
    with tenant(organization):
        for question in questions:
            arguments = (organization, question, MemoryFilter(), BY_MEANING)
            exact = {r.id for r in _find(*arguments, exact_rows=10**9)}
            found = {r.id for r in _find(*arguments)}
            shares.append(len(exact & found) / len(exact))
            fewest = min(fewest, len(found))
    return float(np.mean(shares)), fewest


def _over_rest(organization: Organization, questions: Sequence[Question]) -> str:
    """Through the whole application except the network; vectors are supplied instead of encoded."""
    with tenant(organization):
        _, secret = issue_key(
            organization=organization, actor=ACTOR, name="bench", scopes=ALL_PERMISSIONS
        )
    client = APIClient(HTTP_HOST="localhost")
    client.credentials(HTTP_X_API_KEY=secret)

    def one(question: Question) -> None:
        words, vector = question
        body = {
            "query": words,
            "user_id": "user-0",
            "limit": K,
            "embedding": b64encode(vector.astype("<f4").tobytes()).decode(),
            "embedding_model": "static",
        }
        answer: Any = client.post("/api/v1/memories/search", body, format="json")
        assert answer.status_code == 200, answer.content

    return _timed(one, questions)


def _plot(organization: Organization, questions: Sequence[Question], count: int) -> None:
    """Recall against latency: the index alone at several ef_search, and the exact scan."""
    statement = (
        "SELECT id FROM memories_memory WHERE organization_id = %s AND embedding_model = 'static' "
        "AND is_indexed AND NOT is_deleted ORDER BY embedding <=> %s::halfvec LIMIT %s"
    )
    texts = [str(vector.astype(np.float16).tolist()) for _, vector in questions]

    def ask(text: str) -> set[Any]:
        with connection.cursor() as cursor:
            cursor.execute(statement, [organization.pk, text, K])
            return {row_id for (row_id,) in cursor.fetchall()}

    def timed(switches: Sequence[str]) -> tuple[list[set[Any]], float]:
        with tenant(organization):
            with connection.cursor() as cursor:
                for switch in switches:
                    cursor.execute(f"SET LOCAL {switch}")
            found, took = [], []
            for text in texts[:WARM_UP] + texts:
                started = time.perf_counter()
                found.append(ask(text))
                took.append(1000 * (time.perf_counter() - started))
        return found[WARM_UP:], float(np.percentile(took[WARM_UP:], 50))

    serial = "max_parallel_workers_per_gather = 0"
    exact, exact_ms = timed([serial, "enable_indexscan = off"])
    points = []
    for ef_search in EF_SEARCH:
        found, ms = timed(
            [
                serial,
                "enable_seqscan = off",
                "enable_bitmapscan = off",
                "enable_sort = off",
                f"hnsw.ef_search = {ef_search}",
                "hnsw.iterative_scan = relaxed_order",
            ]
        )
        recall = np.mean([len(a & b) / K for a, b in zip(found, exact, strict=True)])
        points.append((ms, float(recall), f"ef {ef_search}"))
    write_plot(
        PLOT,
        title=f"Recall@{K} against latency, {count:,} memories of one organization",
        x="p50 ms per query (log)",
        y=f"recall@{K}",
        series=[
            Series("HNSW (halfvec, m 16)", points),
            Series("exact", [(exact_ms, 1.0, "exact")]),
        ],
    )
