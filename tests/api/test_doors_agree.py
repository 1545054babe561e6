"""One table of values, through all doors: each stores the same or refuses."""

from typing import Any
from urllib.parse import quote

import pytest
from django.core.management import CommandError
from django.db.models import Model
from django.urls import reverse

from accounts.models import User
from accounts.tenancy import tenant
from memories.models import Agent, Block, Memory, MemoryHistory, Tool
from sessions.models import Message, Run, Session
from tests.bulk.loading import load
from tests.console.cases import CASES
from tests.console.conftest import signed_in

REFUSED = "refused"
DEFAULT = "its default"
# resource: model, key, the least that a row says
RESOURCES: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "users": (User, "external_id", {}),
    "agents": (Agent, "external_id", {}),
    "blocks": (Block, "external_id", {"label": "l"}),
    "tools": (Tool, "name", {}),
    "sessions": (Session, "session_id", {}),
    "runs": (Run, "run_id", {}),
    "messages": (Message, "external_id", {"role": "user"}),
    "memories": (Memory, "external_id", {"content": "Likes tea."}),
}
KEYS: list[tuple[Any, str]] = [
    ("plain", "plain"),
    ("  ann\t", "ann"),
    (4711, "4711"),
    (-1, "-1"),
    ("a/b", "a/b"),
    ("..", ".."),
    ("search", "search"),
    ("last", "last"),
    ("by-key", "by-key"),
    ("Zoë 漢字 👩‍👩‍👧", "Zoë 漢字 👩‍👩‍👧"),
    ("0198a2b4-0000-7000-8000-00000000abcd", "0198a2b4-0000-7000-8000-00000000abcd"),
    ("NULL", "NULL"),
    ("x" * 255, "x" * 255),
    ("x" * 256, REFUSED),
    ("", REFUSED),
    (" \n", REFUSED),
    ("a\nb", REFUSED),
    ("a\x7fb", REFUSED),
    ("a\u2028b", REFUSED),
    ("a\0b", REFUSED),
    (4711.0, REFUSED),
    (True, REFUSED),
    (["a"], REFUSED),
    ({}, REFUSED),
]
REFERENCES = [
    ("sessions", "user_id"),
    ("sessions", "agent_id"),
    ("messages", "user_id"),
    ("messages", "agent_id"),
    ("messages", "session_id"),
    ("memories", "user_id"),
    ("memories", "agent_id"),
    ("memories", "session_id"),
    ("blocks", "user_id"),
    ("sessions", "team_id"),
]
OTHERS: list[tuple[str, str, Any, Any]] = [
    ("users", "email", "ann@x.example", "ann@x.example"),
    ("users", "email", " ann@x.example ", "ann@x.example"),
    ("users", "email", "not an email", REFUSED),
    ("users", "email", "ann@", REFUSED),
    ("users", "email", ".ann@x.example", REFUSED),
    ("users", "email", "ann..b@x.example", REFUSED),
    ("users", "email", '"a b"@x.example', REFUSED),
    ("users", "email", "ann@zoë.example", "ann@zoë.example"),
    ("users", "email", "a" * 250 + "@x.example", REFUSED),
    ("users", "email", None, DEFAULT),
    ("users", "name", None, DEFAULT),
    ("users", "name", "x" * 256, REFUSED),
    ("users", "name", "a\0b", REFUSED),
    ("users", "status", None, DEFAULT),
    ("users", "status", "", REFUSED),
    ("users", "status", "Active", REFUSED),
    ("users", "timezone", None, DEFAULT),
    ("users", "timezone", "", REFUSED),
    ("users", "timezone", "x" * 65, REFUSED),
    ("users", "metadata", None, DEFAULT),
    ("users", "metadata", [], REFUSED),
    ("agents", "state", None, DEFAULT),
    ("agents", "state", "", REFUSED),
    ("agents", "tool_rules", {}, REFUSED),
    ("agents", "tool_rules", None, DEFAULT),
    ("blocks", "label", None, REFUSED),
    ("blocks", "label", "", REFUSED),
    ("blocks", "label", "x" * 51, REFUSED),
    ("blocks", "limit", None, DEFAULT),
    ("blocks", "limit", 0, REFUSED),
    ("blocks", "limit", 2**31, REFUSED),
    ("blocks", "value", "x" * 2001, REFUSED),
    ("blocks", "is_template", None, DEFAULT),
    ("blocks", "user_id", None, DEFAULT),
    ("tools", "tags", None, DEFAULT),
    ("tools", "tags", ["a", ""], ["a", ""]),
    ("tools", "tags", [" a "], [" a "]),
    ("tools", "tags", ["x" * 65], REFUSED),
    ("sessions", "name", None, DEFAULT),
    ("sessions", "user_id", None, DEFAULT),
    ("sessions", "state", None, DEFAULT),
    ("sessions", "summary", None, DEFAULT),
    ("sessions", "summary", [], REFUSED),
    ("runs", "status", None, DEFAULT),
    ("runs", "content", None, DEFAULT),
    ("runs", "input_tokens", None, DEFAULT),
    ("runs", "input_tokens", -1, REFUSED),
    ("runs", "messages", None, DEFAULT),
    ("messages", "text", None, DEFAULT),
    ("messages", "name", None, DEFAULT),
    ("messages", "content", None, DEFAULT),
    ("messages", "content", "Hi", "Hi"),
    ("messages", "role", "developer", "system"),
    ("messages", "role", "function", "tool"),
    ("messages", "role", "robot", REFUSED),
    ("messages", "role", None, REFUSED),
    ("messages", "session_id", None, DEFAULT),
    ("memories", "importance", None, DEFAULT),
    ("memories", "importance", 1.5, REFUSED),
    ("memories", "content", "", REFUSED),
    ("memories", "content", " \n", REFUSED),
    ("memories", "content", None, REFUSED),
    ("memories", "memory_type", None, DEFAULT),
    ("memories", "memory_type", "odd", REFUSED),
    ("memories", "expires_at", None, DEFAULT),
    ("memories", "speaker", None, DEFAULT),
    ("memories", "user_id", None, DEFAULT),
    ("memories", "session_id", None, DEFAULT),
    ("memories", "metadata", "text", REFUSED),
]
TABLE = [
    *((r, key, value, verdict) for r, (_, key, _) in RESOURCES.items() for value, verdict in KEYS),
    *((r, name, value, verdict) for r, name in REFERENCES for value, verdict in KEYS),
    *OTHERS,
]


@pytest.fixture(autouse=True)
def static_encoder(settings):
    settings.ENCODER = "static"


# -- the doors: whether the row was stored; None where the door cannot say such a thing ------------


def by_post(world, resource, field, row):
    path = "sessions/s/runs" if resource == "runs" else resource
    answer = world.api.post(path, row)
    assert answer.status_code in (200, 201, 400), answer.content
    return answer.status_code != 400


def by_put(world, resource, field, row):
    path, key = "sessions/s/runs" if resource == "runs" else resource, RESOURCES[resource][1]
    name = row[key] if field == key else "k"
    is_text = isinstance(name, str) and "\0" not in name
    if not is_text or not name or "/" in name or name in ("..", "by-key", "search", "last"):
        return None
    answer = world.api.put(f"{path}/{quote(name)}", row)
    assert answer.status_code in (200, 201, 400), answer.content
    return answer.status_code != 400


def by_batch(world, resource, field, row):
    if resource != "memories":
        return None
    answer = world.api.post("memories/batch", {"memories": [row]})
    assert answer.status_code == 200
    return answer.json()["created"] == 1


def as_line(resource, row):
    if resource == "runs":
        return "sessions", {"session_id": "s", "runs": [row]}
    return resource, row


def by_bulk(world, resource, field, row):
    name, line = as_line(resource, row)
    answer = world.api.post(f"{name}/bulk", [line])
    if (
        "\0" in repr(line).encode().decode("unicode_escape", "replace")
        and answer.status_code == 400
    ):
        return False
    assert answer.status_code in (200, 207), answer.content
    return answer.status_code == 200


def by_command(world, resource, field, row):
    name, line = as_line(resource, row)
    try:
        load(world.folder, name, [line], embed="later" if name == "memories" else None)
    except CommandError as refused:
        assert "line 1: " in str(refused)
        return False
    return True


def by_form(world, resource, field, row):
    model, key, _ = RESOURCES[resource]
    value = row[field]
    is_reference = field.endswith("_id") and field not in (key, "session_id", "team_id")
    is_reference |= (resource, field) == ("messages", "session_id")
    if not isinstance(value, str) or is_reference or field in ("content", "metadata", "email"):
        return None
    if (resource, field, value) in (
        ("messages", "role", "developer"),  # a choice of the form's own
        ("messages", "role", "function"),
    ) or (field != key and not value.strip()):
        return None
    form = {**CASES[model].form, **({key: "k"} if key not in CASES[model].form else {})}
    if resource == "runs":
        world.api.put("sessions/s", {})
        with tenant(world.organization):
            form["session"] = Session.objects.for_organization(world.organization).get().pk
    page = world.console.post(
        reverse(f"admin:{model._meta.label_lower.replace('.', '_')}_add"), {**form, field: value}
    )
    if field == key and not value.strip() and model._meta.get_field(key).null:
        return None  # an empty box is no key
    return page.status_code == 302


DOORS = {
    "POST": by_post,
    "PUT": by_put,
    "batch": by_batch,
    "bulk": by_bulk,
    "command": by_command,
    "form": by_form,
}


class World:
    def __init__(self, organization, api, console, folder):
        self.organization, self.api, self.console, self.folder = organization, api, console, folder


@pytest.fixture
def world(acme, api, alice, tmp_path):
    return World(acme, api, signed_in(alice), tmp_path)


def stored(world, resource, field):
    """What the row has; of a reference, the key of the other row."""
    model = RESOURCES[resource][0]
    with tenant(world.organization):
        (row,) = model.objects.for_organization(world.organization)
        reference = field.removesuffix("_id")
        other = getattr(row, reference, None)
        if field != reference and isinstance(other, Model):
            return getattr(other, other.auto_create_key)
        return getattr(row, field)


def default(resource, field):
    model = RESOURCES[resource][0]
    fields = {f.attname: f for f in model._meta.concrete_fields}
    return fields[field].get_default()


@pytest.mark.unguarded  # (the console's forms)
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    "resource", [*RESOURCES, *(f"{r}.{name}" for r, name in REFERENCES), "others"]
)
def test_all_doors_agree(world, door, resource):
    tried = 0
    for name, field, value, verdict in TABLE:
        is_reference = (name, field) in REFERENCES and value is not None
        group = f"{name}.{field}" if is_reference else name
        if (name, field, value, verdict) in OTHERS:
            group = "others"
        if group != resource:
            continue
        _, key, least = RESOURCES[name]
        row = {**({} if field == key else {key: "k"}), **least, field: value}
        is_stored = DOORS[door](world, name, field, row)
        case = (name, field, value)
        if is_stored is None:
            continue
        tried += 1
        assert is_stored == (verdict != REFUSED), case
        if is_stored:
            expected = default(name, field) if verdict == DEFAULT else verdict
            assert stored(world, name, field) == expected, case
        clear(world)
    assert tried or door in ("batch", "form", "PUT")


def clear(world):
    with tenant(world.organization):
        for model in (Message, Run, Session, MemoryHistory, Memory, Block, Tool, Agent, User):
            rows = model.objects.for_organization(world.organization)
            rows._raw_delete(rows.db)
