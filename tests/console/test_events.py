"""The pages that show audit events, with every shape of `changes` that was ever written."""

import json

import pytest
from django.utils.html import escape

from accounts.models import AuditEvent
from accounts.services.audit import record_event
from accounts.tenancy import tenant
from memories.models import Memory
from tests.api.conftest import client_with
from tests.console.test_pages import url
from tests.makers import TESTER, make_memory

pytestmark = pytest.mark.unguarded

# Former, current and invalid shapes, each with a text that the pages show.
SHAPES = [
    ({"fields": ["importance", "memory_type"]}, "importance, memory type"),
    ({"fields": {"importance": [0.5, 0.9], "content": None}}, "content, importance: 0.5 → 0.9"),
    ({"fields": {"role": ["viewer", None]}}, "role: viewer → null"),
    ({"fields": {"a": 1, "b": [1, 2, 3], "c": {"d": []}}}, 'a: 1, b: [1, 2, 3], c: {"d": []}'),
    ({"fields": [1, {"a": 2}]}, 'fields: [1, {"a": 2}]'),
    ({"fields": "content"}, "fields: content"),
    ({"fields": 7}, "fields: 7"),
    ({"fields": None}, ""),
    ({"rows": {"memory": 2, "run": 1}}, "2 memories, 1 run"),
    ({"rows": {"gone_model": 2}}, "2 gone_model"),
    ({"rows": {"memory": "two"}}, 'rows: {"memory": "two"}'),
    ({"rows": 12, "vectors": True}, "rows: 12, vectors: true"),
    ({"rows": [1]}, "rows: [1]"),
    ({"with": "x", "filter": ["memory_types"], "ids": ["y"]}, 'with: x, filter: ["memory_types"]'),
    ({"users": 2, "runs": {"inserted": 1}}, 'runs: {"inserted": 1}, users: 2'),
    ({"<b>": {"fields": ["<i>"]}}, '<b>: {"fields": ["<i>"]}'),
    ([], ""),
    (["fields", {"a": 1}], '["fields", {"a": 1}]'),
    ("a word", "a word"),
    (3.5, "3.5"),
    (True, "true"),
    ({}, ""),
]


@pytest.mark.parametrize(("changes", "text"), SHAPES, ids=lambda x: json.dumps(x)[:40])
def test_every_page_shows_any_shape(changes, text, console, acme, acme_key):
    memory = make_memory(acme)
    with tenant(acme):
        event = AuditEvent.objects.create(
            organization=acme,
            actor_kind="odd",
            actor_name="somebody",
            action="did",
            resource_type="memory",
            resource_id=memory.pk,
            status="odd",
            changes=changes,
        )
    listed = console.get(url(AuditEvent, "changelist", q="somebody"))
    assert listed.status_code == 200
    assert escape(text) in listed.content.decode()
    history = console.get(url(Memory, "history", memory.pk))
    assert history.status_code == 200
    assert escape(text) in history.content.decode()
    page = console.get(url(AuditEvent, "change", event.pk))
    assert page.status_code == 200
    api = client_with(acme_key)
    assert api.get(f"audit-events/{event.pk}").data["changes"] == changes
    assert api.get("audit-events").status_code == 200


def test_pages_show_events_of_bulk_changes_and_merges(console, acme, acme_key):
    kept, other = make_memory(acme), make_memory(acme)
    api = client_with(acme_key)
    changed = api.post("memories/batch/update", {"all": True, "set": {"importance": 0.25}})
    assert changed.status_code == 200
    assert api.post(f"memories/{kept.pk}/merge", {"with": str(other.pk)}).status_code == 200
    exported = api.post("memories/export", {})
    assert b"".join(exported.streaming_content)

    log = console.get(url(AuditEvent, "changelist")).content.decode()
    assert "2 memories, importance" in log
    assert "rows: " not in log
    history = console.get(url(Memory, "history", kept.pk)).content.decode()
    assert f"with: {other.pk}" in history
    with tenant(acme):
        events = list(AuditEvent.objects.for_organization(acme))
    for event in events:
        assert isinstance(event.changes.get("fields", {}), dict), event.changes
        assert isinstance(event.changes.get("rows", {}), dict), event.changes
        assert console.get(url(AuditEvent, "change", event.pk)).status_code == 200


@pytest.mark.parametrize(
    "changes",
    [
        {"fields": ["importance"]},
        {"fields": {"importance": 0.5}},
        {"fields": {"importance": [0.5, 0.9, 1]}},
        {"fields": {"metadata": [{}, {}]}},
        {"rows": 2},
        {"rows": {"memory": True}},
        {"ids": "x"},
        {"with": None},
        {"filter": {"a": 1}},
        {"scores": [1, 2]},
        {"runs": {"inserted": {"a": 1}}},
    ],
    ids=json.dumps,
)
def test_an_event_of_an_unknown_shape_is_not_written(changes, acme):
    with tenant(acme), pytest.raises(TypeError, match="of an audit event cannot be"):
        record_event(
            organization=acme,
            actor=TESTER,
            action="updated",
            resource_type="memory",
            changes=changes,
        )
