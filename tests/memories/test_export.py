"""POST memories/export: exactly what was requested, in a form that can be loaded again."""

import json
from datetime import UTC, datetime

import pytest
from django.core.management import CommandError
from pgvector import HalfVector

from accounts.models import AuditEvent
from accounts.services.organizations import organizations
from accounts.tenancy import is_inside, platform, tenant
from memories.models import EMBEDDING_DIM, Memory
from memories.services import exporting
from tests.api.conftest import client_with
from tests.bulk.loading import load
from tests.makers import TESTER, make_agent, make_key, make_memory, make_user

VECTOR = [0.5, -0.25] + [0.0] * (EMBEDDING_DIM - 2)


@pytest.fixture
def api(acme):
    return client_with(make_key(acme, ["memory:read"]))


def export(api, **body):
    response = api.post("memories/export", body)
    assert (response.status_code, response["Content-Type"]) == (200, "application/x-ndjson")
    return [json.loads(line) for line in b"".join(response.streaming_content).splitlines()]


def event(organization):
    with tenant(organization):
        events = AuditEvent.objects.for_organization(organization).filter(action="exported")
        return events.order_by("-created_at").values_list("status", "changes").first()


def test_lines_are_what_the_loader_reads(acme, api, tmp_path):
    make_memory(
        acme,
        external_id="f 1",
        user=make_user(acme, external_id="ann"),
        agent=make_agent(acme, external_id=None),
        content="Likes \u2028 tea.\n",
        speaker="Ann",
        context="Well?",
        importance=0.1,
        metadata={"n": [1.50, None]},
        expires_at=datetime(2190, 1, 1, tzinfo=UTC),
        embedding=HalfVector(VECTOR),
        embedding_model="test",
    )
    make_memory(acme)
    lines = export(api, vectors=True)
    assert lines[0]["user_id"] == "ann"
    assert lines[0]["embedding"] == VECTOR
    assert lines[0]["importance"] == 0.1
    assert "id" not in lines[0]
    report = load(tmp_path, "memories", lines, preserve_timestamps=True)
    assert (report["read"], report["unchanged"]) == (2, 2)
    assert event(acme) == ("success", {"rows": {"memory": 2}, "vectors": True})


def test_vectors_are_exported_on_request(acme, api):
    make_memory(acme, embedding=HalfVector(VECTOR), embedding_model="test")
    assert not export(api)[0].keys() & {"embedding", "embedding_model"}


def test_filters_are_those_of_the_list(acme, api):
    user, agent = make_user(acme, external_id="ann"), make_agent(acme)
    make_memory(acme, content="a", user=user, agent=agent, session_id="s", importance=0.9)
    make_memory(acme, content="b", user=user, memory_type="episodic", importance=0.3)
    make_memory(acme, content="tea", level="strategic", created_at=datetime(2020, 1, 1, tzinfo=UTC))
    for body, expected in [
        ({}, ["tea", "a", "b"]),
        ({"user_id": "ann"}, ["a", "b"]),
        ({"user_id": str(user.pk), "importance_min": 0.5}, ["a"]),
        ({"agent_id": str(agent.pk)}, ["a"]),
        ({"session_id": "s"}, ["a"]),
        ({"memory_type": "episodic"}, ["b"]),
        ({"level": "strategic"}, ["tea"]),
        ({"created_before": "2021-01-01T00:00:00Z"}, ["tea"]),
        ({"q": "tea"}, ["tea"]),
        ({"session_id": "nowhere"}, []),
    ]:
        assert [line["content"] for line in export(api, **body)] == expected, body


def test_q_uses_the_language_of_the_organization(acme, api):
    with platform():
        values = {"settings": {"language": "german"}}
        german = organizations.update(acme, organization=acme, actor=TESTER, values=values)
    make_memory(german, content="Die Häuser waren schön.")
    assert [line["content"] for line in export(api, q="Haus")] == ["Die Häuser waren schön."]
    assert len(api.get("memories?q=Häuser").data["results"]) == 1


def test_memories_with_equal_times_are_exported_once_each(acme, api, monkeypatch):
    monkeypatch.setattr(exporting, "PAGE_ROWS", 3)
    at = datetime(2026, 1, 1, tzinfo=UTC)
    for number in range(10):
        make_memory(acme, content=f"m{number}", created_at=at)
    contents = [line["content"] for line in export(api)]
    assert sorted(contents) == sorted(f"m{n}" for n in range(10))
    assert event(acme) == ("success", {"rows": {"memory": 10}, "vectors": False})


def test_the_trash_and_other_organizations_are_not_exported(acme, globex, api):
    make_memory(globex, content="theirs")
    make_memory(acme, content="ours")
    deleted = make_memory(acme, content="gone")
    client_with(make_key(acme)).delete(f"memories/{deleted.pk}")
    assert [line["content"] for line in export(api)] == ["ours"]


def test_the_export_of_an_unknown_user_is_empty(acme, api):
    make_memory(acme, content="ours")
    assert export(api, user_id="nobody") == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"limit": 10}, "limit"),
        ({"cursor": "x"}, "cursor"),
        ({"deleted": "only"}, "deleted"),
        ({"vectors": "perhaps"}, "vectors"),
    ],
)
def test_a_body_is_refused_by_its_field(acme, api, body, field):
    refused = api.post("memories/export", body, headers={"Accept": "application/x-ndjson"})
    assert (refused.status_code, refused["Content-Type"]) == (400, "application/problem+json")
    assert refused.json()["errors"][0]["field"] == field


def test_no_connection_is_held_while_the_reader_reads(acme, api, monkeypatch):
    monkeypatch.setattr(exporting, "PAGE_ROWS", 1)
    for _ in range(3):
        make_memory(acme)
    response = api.post("memories/export", {})
    assert [is_inside() for _ in response.streaming_content] == [False] * 3


def test_an_export_that_fails_on_the_way_does_not_look_complete(acme, api, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "PAGE_ROWS", 2)
    for number in range(5):
        make_memory(acme, content=f"m{number}")
    response = api.post("memories/export", {})
    stream = iter(response.streaming_content)
    assert next(stream).count(b"\n") == 2

    def broken(rows, columns):
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(exporting, "read", broken)
        last = next(stream)
    assert json.loads(last) == {"error": "The export failed after 2 memories."}
    with pytest.raises(RuntimeError, match="broken"):
        next(stream)
    with pytest.raises(CommandError, match="line 1: error: Unknown field"):
        load(tmp_path, "memories", [last.rstrip()])
    assert event(acme) == ("failure", {"rows": {"memory": 2}, "vectors": False})


def test_a_client_that_disconnects_is_audited_as_a_failure(acme, monkeypatch):
    monkeypatch.setattr(exporting, "PAGE_ROWS", 1)
    for _ in range(3):
        make_memory(acme)
    rows = Memory.objects.for_organization(acme)
    lines = exporting.export_memories(rows, organization=acme, actor=TESTER, with_vectors=False)
    next(lines)
    lines.close()  # as the server does
    assert event(acme) == ("failure", {"rows": {"memory": 1}, "vectors": False})


def test_an_export_requires_the_read_scope(acme):
    refused = client_with(make_key(acme, ["memory:write"])).post("memories/export", {})
    assert refused.status_code == 403
