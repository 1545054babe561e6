"""How much of the evidence a search finds: LoCoMo, through `POST memories/search` itself.

Per question the share of its evidence turns among the first k hits, the search filtered by its
conversation; means over questions, adversarial ones left out. Data: AGENTMEM_LOCOMO, else
../shared/data/locomo_dev.json where it stands beside the checkout.
"""

import math
import os
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from django.conf import settings
from rest_framework.test import APIClient

from accounts.actors import command_actor
from accounts.models import Organization
from accounts.roles import ALL_PERMISSIONS
from accounts.services.keys import issue_key
from accounts.services.organizations import organizations
from accounts.tenancy import platform, tenant
from agentmem_site.bulk import LoadOptions
from agentmem_site.bulk.readers import open_source
from agentmem_site.services.loads import run_load
from tests.benchmarks.locomo.convert import conversation_id, convert, questions

DATA = Path(
    os.environ.get("AGENTMEM_LOCOMO")
    or Path(__file__).resolve().parents[4] / "shared" / "data" / "locomo_dev.json"
)
ACTOR = command_actor("benchmark")
CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop"}
ADVERSARIAL = 5
CUTS = (5, 10, 20)
MODES = ("hybrid", "semantic", "keyword")

Figures = dict[str, float]  # recall@k, MRR, nDCG@10 of one question


def run() -> str:
    """A Markdown table, or a line that says that the data is not there."""
    if not DATA.exists():
        return "LoCoMo is not beside this checkout.\n"
    settings.FOUND_EVERY_S = 0
    conversations = msgspec.json.decode(DATA.read_bytes())
    organization, client = _organization()
    with TemporaryDirectory() as folder:
        turns = convert(conversations, Path(folder))["memories"]
        _load(Path(folder) / "memories.jsonl", organization)
    names = [*(f"recall@{k}" for k in CUTS), "MRR", "nDCG@10"]
    text = (
        f"{turns:,} turns of {len(conversations)} dialogues, encoder {settings.ENCODER}.\n\n"
        f"| | questions | {' | '.join(names)} |\n|---|---|{'---|' * len(names)}\n"
    )
    for mode in MODES:
        by_category = _asked(conversations, client, mode)
        rows = {f"**{mode}**": [f for figures in by_category.values() for f in figures]}
        if mode == "hybrid":
            rows |= {CATEGORIES[c]: figures for c, figures in sorted(by_category.items())}
        for label, figures in rows.items():
            means = " | ".join(f"{fmean(f[name] for f in figures):.3f}" for name in names)
            text += f"| {label} | {len(figures)} | {means} |\n"
    return text


def _organization() -> tuple[Organization, APIClient]:
    with platform():
        made = organizations.create(actor=ACTOR, values={"slug": "locomo", "name": "LoCoMo"})
    with tenant(made):
        _, secret = issue_key(organization=made, actor=ACTOR, name="bench", scopes=ALL_PERMISSIONS)
    client = APIClient(HTTP_HOST="localhost")
    client.credentials(HTTP_X_API_KEY=secret)
    return made, client


def _load(path: Path, organization: Organization) -> None:
    with open_source(str(path)) as source:
        run_load(
            "memories",
            source.lines(),
            organization=organization,
            actor=ACTOR,
            options=LoadOptions(preserve_timestamps=True),
            on_batch=lambda report: None,
        )


def _asked(conversations: Any, client: APIClient, mode: str) -> dict[int, list[Figures]]:
    figures: dict[int, list[Figures]] = {}
    for place, conversation in enumerate(conversations, 1):
        name = conversation_id(conversation, place)
        for question in questions(conversation):
            if question.category == ADVERSARIAL or not question.evidence:
                continue
            body = {"query": question.question, "user_id": name, "limit": max(CUTS), "mode": mode}
            answer: Any = client.post("/api/v1/memories/search", body, format="json")
            assert answer.status_code == 200, answer.content
            found = [hit["memory"]["metadata"]["dia_id"] for hit in answer.data["results"]]
            figures.setdefault(question.category, []).append(_figures(found, question.evidence))
    return figures


def _figures(found: list[str], evidence: list[str]) -> Figures:
    wanted = set(evidence)
    ranks = [place for place, turn in enumerate(found, 1) if turn in wanted]
    return {
        **{f"recall@{k}": sum(r <= k for r in ranks) / len(wanted) for k in CUTS},
        "MRR": 1 / ranks[0] if ranks else 0.0,
        "nDCG@10": _gain(r for r in ranks if r <= 10) / _gain(range(1, min(10, len(wanted)) + 1)),
    }


def _gain(ranks: Iterable[int]) -> float:
    return sum(1 / math.log2(place + 1) for place in ranks)
