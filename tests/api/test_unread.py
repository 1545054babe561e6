"""A key that may write and not read: no response shows what is stored."""

import re

import pytest

from accounts.roles import ALL_PERMISSIONS
from accounts.services.users import users
from accounts.tenancy import tenant
from tests.api.conftest import client_with
from tests.api.routes import BODIES, ROUTES
from tests.api.test_walls import named_by, scopes_of
from tests.makers import TESTER, make_key, make_memory, make_user

# Shapes of their own: below, and tests/memories/test_curation.py.
_ELSEWHERE = ("memory-batch", "memory-batch-update", "memory-batch-delete", "memory-merge")
WRITES = [
    route
    for route in ROUTES
    if route.method in ("post", "put", "patch")
    and not any(scope.endswith((":read", ":manage")) for scope in scopes_of(route))
    and not route.basename.endswith("-bulk")
    and route.basename not in _ELSEWHERE
    and (route.basename, route.action) not in (("memories", "create"), ("organizations", "create"))
    and (route.basename, route.action) != ("organizations", "restore")  # the platform's
]


@pytest.fixture
def blind(acme):
    return client_with(
        make_key(acme, [scope for scope in ALL_PERMISSIONS if not scope.endswith(":read")])
    )


@pytest.mark.parametrize("route", WRITES, ids=lambda route: route.id)
def test_a_write_answers_with_the_id_alone(blind, cast, route):
    ids = {kwarg: cast[named_by(route, kwarg)[0]].pk for kwarg in route.kwargs}
    body = {"post": BODIES.get(route.basename, {}), "put": BODIES.get(route.basename), "patch": {}}
    if route.action == "create" and route.basename in ("agent-blocks", "agent-tools"):
        kind = route.basename[6:-1]
        body["post"] = {f"{kind}_id": str(cast[kind].pk)}
    answer = getattr(blind, route.method)(route.path(**ids), body[route.method])
    assert answer.status_code == (201 if route.action == "create" else 200), answer.content
    assert answer.json().keys() == {"id"}


def test_every_writing_route_is_covered():
    assert len(WRITES) > 25
    assert {"restore", "create", "update", "partial_update"} == {route.action for route in WRITES}


def test_existing_content_is_answered_like_new_content(blind, acme):
    make_memory(acme, content="Likes tea.")
    stored = {"id": None, "status": "stored"}
    for content in ("Likes tea.", "Likes coffee."):
        answer = blind.post("memories", {"content": content})
        assert (answer.status_code, answer.json()) == (201, stored)
    answer = blind.post(
        "memories/batch",
        {"memories": [{"content": "Likes tea."}, {"content": "New."}, {"content": ""}]},
    ).json()
    assert answer["results"][:2] == [{"index": 0, **stored}, {"index": 1, **stored}]
    assert answer["results"][2]["status"] == "rejected"
    assert (answer["stored"], answer["rejected"]) == (2, 1)
    assert answer.keys() == {"results", "stored", "rejected"}


@pytest.mark.parametrize("query", ["", "?dry_run=true"])
def test_a_load_does_not_reveal_existing_rows(blind, acme, query):
    make_user(acme, external_id="ann", name="Ann")
    texts = []
    for name in ("ann", "bob"):
        line = b'{"external_id": "%s", "name": "Ann"}' % name.encode()
        answer = blind.post(f"users/bulk{query}", line, content_type="application/x-ndjson")
        assert answer.status_code == 200
        texts.append(re.sub(r'"(seconds|rows_per_second)":[\d.]+', "", answer.content.decode()))
    assert texts[0] == texts[1]
    assert "inserted" not in texts[0]


def test_restoring_requires_the_delete_scope(acme):
    user = make_user(acme, external_id="ann")
    with tenant(acme):
        rows = type(user).objects.for_organization(acme).filter(pk=user.pk)
        users.delete(rows, organization=acme, actor=TESTER)
    writer = client_with(make_key(acme, ["user:read", "user:write"]))
    lines = {"data": b'{"external_id": "ann"}', "content_type": "application/x-ndjson"}
    for refused in (
        writer.post(f"users/{user.pk}/restore"),
        writer.post("users/bulk?restore=true", **lines),
    ):
        assert refused.status_code == 403
        assert refused.json()["detail"] == "This key does not hold the scope user:delete."
    deleter = client_with(make_key(acme, ["user:delete"]))
    assert deleter.post(f"users/{user.pk}/restore").json() == {"id": str(user.pk)}


def test_the_preview_of_an_erasure_requires_reading_users(acme):
    user = make_user(acme)
    blind = client_with(make_key(acme, ["user:delete"]))
    refused = blind.delete(f"users/{user.pk}?erase=preview")
    assert refused.json()["detail"] == "This key does not hold the scope user:read."
    erased = {"erased": True, "rows": {"user": 1}}  # what the key itself has taken away
    assert blind.delete(f"users/{user.pk}?erase=true").json() == erased


def test_the_schema_says_what_each_operation_needs(client):
    paths = client.get("/api/schema").json()["paths"]
    text = paths["/api/v1/memories/{id}/"]["patch"]["description"]
    assert "Needs `memory:write`. Without `memory:read` the response holds the id alone." in text
    merge = paths["/api/v1/memories/{memory_id}/merge/"]["post"]["description"]
    assert "Needs `memory:write` and `memory:delete`." in merge
    restore = paths["/api/v1/memories/{id}/restore/"]["post"]["description"]
    assert "Needs `memory:delete`." in restore
