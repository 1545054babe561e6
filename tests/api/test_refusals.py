"""Refused requests and their messages."""

import json
from io import BytesIO

import pytest

from accounts.strict_json import MAX_DEPTH
from tests.api.conftest import client_with
from tests.api.routes import BODIES, ROUTES
from tests.makers import make_key

JSON = "application/json"
PROBLEM_KEYS = {"type", "title", "status", "detail", "code", "request_id", "errors"}


def problem(response, status):
    assert response.status_code == status, response.content
    assert response["Content-Type"] == "application/problem+json"
    body = response.json()
    assert body.keys() == PROBLEM_KEYS
    assert (body["status"], body["request_id"]) == (status, response["X-Request-Id"])
    return body


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("memories", {}, "content: This field is required."),
        ("memories", {"content": " \n"}, "content: This field may not be blank."),
        ("memories", {"content": None}, "content: This field may not be null."),
        (
            "memories",
            {"content": "x" * 262145},
            "content: The text has 262145 bytes; the limit is 26",
        ),
        (
            "memories",
            {"content": "ä" * 131073},
            "content: The text has 262146 bytes; the limit is 26",
        ),
        ("memories", {"contnt": "x"}, "contnt: There is no such field. Known: "),
        ("memories", {"content": "x", "importance": 1.5}, "importance: Ensure this value is less"),
        ("memories", {"content": "x", "importance": "nan"}, "importance: "),
        ("memories", {"content": "x", "score": "3.5e38"}, "score: A finite number"),
        ("memories", {"content": "x", "memory_type": "odd"}, 'memory_type: "odd" is not a valid'),
        ("memories", {"content": "x", "metadata": []}, "metadata: This must be a JSON object."),
        (
            "memories",
            {"content": "x", "user_id": 5.5},
            "user_id: A text or a whole number is needed, got the number 5.5.",
        ),
        ("memories", {"content": "x", "user_id": ""}, "user_id: A key must not be empty."),
        ("memories", {"content": "x", "external_id": "\t"}, "external_id: A key must not be empt"),
        (
            "memories",
            {"content": "x", "external_id": "ä" * 256},
            "external_id: 256 characters are given; a key has at most 255.",
        ),
        (
            "users",
            {"external_id": "a\x7fb"},
            "external_id: A key cannot hold control characters: character 2 is U+007F.",
        ),
        ("memories", {"content": "x", "created_at": "2026-01-01T00:00:00"}, "created_at: Give the"),
        (
            "memories",
            {"content": "x", "created_at": "1969-12-31T23:59:59Z"},
            "created_at: The time",
        ),
        (
            "memories",
            {"content": "x", "created_at": "2200-01-01T00:00:00Z"},
            "created_at: The time",
        ),
        ("memories", {"content": "x", "created_at": "2026-02-30T00:00:00Z"}, "created_at: "),
        (
            "memories",
            {"content": "x", "embedding": [1.0]},
            "embedding: 1 numbers are given; an emb",
        ),
        ("memories", {"content": "x", "embedding": [0] * 384}, "embedding: An embedding of only"),
        (
            "memories",
            {"content": "x", "embedding": [1e-30] * 384},
            "embedding: An embedding of only",
        ),
        ("memories", {"content": "x", "embedding": [1e6] * 384}, "embedding: A number is outside"),
        (
            "memories",
            {"content": "x", "embedding": [True] * 384},
            "embedding: An embedding is an a",
        ),
        (
            "blocks",
            {"label": "p", "value": "kind", "limit": 3},
            "The value has 4 characters; the bl",
        ),
        ("blocks", {"label": "x" * 51}, "label: Ensure this field has no more than 50 characters."),
        ("blocks", {"label": "p", "limit": 0}, "limit: Ensure this value is greater than or equal"),
        (
            "blocks",
            {"label": "p", "limit": 2**31},
            "limit: Ensure this value is less than or equal",
        ),
        ("users", {"email": "nobody"}, "email: Enter a valid email address."),
        ("users", {"status": "gone"}, 'status: "gone" is not a valid choice.'),
        ("sessions", {"session_id": ""}, "session_id: A key must not be empty."),
        (
            "sessions",
            {"session_id": True},
            "session_id: A text or a whole number is needed, got true.",
        ),
        ("sessions", {"state": []}, "state: This must be a JSON object."),
        ("messages", {"role": "robot"}, 'role: "robot" is not a valid choice.'),
        ("tools", {"name": "t", "tags": "web"}, 'tags: An array is needed, got the text "web".'),
        ("tools", {"name": "t", "tags": [["a"]]}, "tags.0: Not a valid string."),
        ("members", {"email": "b@x.example", "password": "short"}, "This password is too short."),
        ("api-keys", {"name": "k", "scopes": []}, "scopes: This list may not be empty."),
        ("api-keys", {"name": "k", "scopes": ["all"]}, 'scopes.0: "all" is not a valid choice.'),
        ("agents", ["a"], "An object is needed, got an array."),
    ],
)
def test_a_bad_body_is_refused_by_field(api, path, body, message):
    before = len(api.get(path).json()["results"])
    detail = problem(api.post(path, body), 400)["detail"]
    assert detail.startswith(message), detail
    assert len(api.get(path).json()["results"]) == before


def test_a_value_longer_than_the_blocks_limit_is_refused_on_change_of_either(api):
    created = api.post("blocks", {"label": "p", "value": "kind", "limit": 5}).json()
    for change, field in (({"value": "kinder"}, "value"), ({"limit": 3}, "limit")):
        refused = problem(api.patch(f"blocks/{created['id']}", change), 400)
        value, limit = change.get("value", "kind"), change.get("limit", 5)
        assert refused["detail"] == (
            f"The value has {len(value)} characters; the block's limit is {limit}."
        )
        assert refused["errors"][0]["field"] == field
    both = api.patch(f"blocks/{created['id']}", {"value": "kinder", "limit": 6}).json()
    assert (both["value"], both["limit"], both["version"]) == ("kinder", 6, 2)


def test_a_key_that_is_taken_is_a_conflict(api):
    for path in ("users", "agents", "blocks", "tools", "sessions", "messages", "memories"):
        assert api.post(path, BODIES[path]).status_code == 201
        other = {"content": "Likes coffee."} if path == "memories" else {}
        refused = problem(api.post(path, {**BODIES[path], **other}), 409)
        assert refused["code"] == "duplicate"
        assert refused["errors"][0]["field"] in ("external_id", "name", "session_id")
    run = BODIES["session-runs"]
    assert api.post("sessions/cafe:1.b/runs", run).status_code == 201
    assert problem(api.post("sessions/cafe:1.b/runs", run), 409)["errors"][0]["field"] == "run_id"
    member = BODIES["members"]
    assert api.post("members", member).status_code == 201
    assert problem(api.post("members", member), 409)["errors"][0]["field"] == "email"


BAD_JSON = [
    (b"{", "The body is not JSON: Expecting property name enclosed in double quotes"),
    (b'{"name": "a\\u0000b"}', "A string contains a NUL"),
    (b'{"metadata": {"a\\u0000": 1}}', "A string contains a NUL"),
    (b'{"name": "\\ud800"}', "A string contains a NUL character or a lone surrogate."),
    (b'{"metadata": {"x": ["\\udfff"]}}', "A string contains a NUL"),
    (b'{"metadata": {"x": NaN}}', "NaN is not JSON."),
    (b'{"metadata": {"x": -Infinity}}', "-Infinity is not JSON."),
    (b'{"metadata": {"x": 1e400}}', "A number has more than 38 digits."),
    (b'{"metadata": {"x": 1e38}}', "A number has more than 38 digits."),
    (b'{"metadata": {"x": 1' + b"0" * 38 + b"}}", "A number has more than 38 digits."),
    (b'{"metadata": {"x": ' + b"9" * 5000 + b"}}", "A number has more than 38 digits."),
    (b'{"name": "a", "name": "b"}', "The key 'name' is given twice."),
    (b'{"name": "\xff"}', "The body is not UTF-8 (byte 10)."),
    (b'{"metadata": ' + b'{"a":' * 64 + b"1" + b"}" * 65, "The JSON is nested deeper than 64"),
    (b"[" * 100_000, "The JSON is nested deeper than 64 levels."),
    (b'{"metadata": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "The JSON is nested deeper than"),
]


@pytest.mark.parametrize(("body", "message"), BAD_JSON)
def test_json_that_cannot_be_stored_is_refused(api, body, message):
    response = api.generic("POST", "users", body, "application/json")
    refused = problem(response, 400)
    assert refused["code"] == "malformed_json"
    assert refused["detail"].startswith(message)


def test_json_that_can_be_stored_is_stored(api):
    deep: object = 1
    for _ in range(MAX_DEPTH - 2):
        deep = {"a": deep}
    metadata = {
        "whole": 10**37,
        "real": 2.5e-7,
        "small": 1e-300,
        "text": "Zoë 🎈 \u2028",
        "none": None,
        "deep": deep["a"],
    }
    created = api.post("users", {"external_id": "u", "metadata": metadata})
    assert created.status_code == 201, created.json()
    again = api.put("users/u", api.get("users/u").json())
    assert again.json()["metadata"] == metadata


def test_every_route_accepts_only_strict_json(api, cast):
    ids = {
        "agent_id": "agent",
        "session_id": "session",
        "run_id": "run",
        "memory_id": "memory",
    }
    for route in ROUTES:
        if route.method not in ("post", "put", "patch") or route.action in ("restore", "revoke"):
            continue
        if (route.basename, route.action) == ("organizations", "create"):
            continue
        if route.basename.endswith("-bulk"):
            continue  # line by line: test_bulk.py
        kind = {"api-keys": "apikey", "memories": "memory"}.get(
            route.basename, route.basename.rstrip("s")
        )
        named = {k: cast[kind if k == "id" else ids[k]].pk for k in route.kwargs}
        path = route.path(**named)
        for body, _ in BAD_JSON[:6]:
            problem(api.generic(route.method.upper(), path, body, "application/json"), 400)
        for body in (b"null", b"5", b'"text"', b"[]", b"[{}]"):
            problem(api.generic(route.method.upper(), path, body, "application/json"), 400)
        problem(api.generic(route.method.upper(), path, b"a=b", "text/plain"), 415)


@pytest.mark.parametrize(
    "value", [2**63, -1, 1.5, None, "x" * 300, "\x01", [None], {"a": 1}], ids=lambda v: str(v)[:9]
)
def test_no_value_in_any_field_causes_a_500(api, cast, value):
    session = cast["session"].session_id
    for name, body in BODIES.items():
        path = {
            "session-runs": f"sessions/{session}/runs",
            "session-messages": f"sessions/{session}/messages",
        }.get(name, name)
        route = next(r for r in ROUTES if r.basename == name and r.action == "create")
        for field in route.view.serializer_class().fields:
            response = api.post(path, {**body, field: value})
            assert response.status_code < 500, (path, field, response.content)
    for name in ("blocks", "memories", "audit-events"):
        route = next(r for r in ROUTES if r.basename == name and r.action == "list")
        for field in route.view.list_query().fields:
            response = api.get(name, {field: json.dumps(value)})
            assert response.status_code < 500, (name, field, response.content)


@pytest.mark.parametrize("name", ["%00", "a%00b", "%ff", "%ed%a0%80", "..", "%0a", "é", "x" * 5000])
def test_an_odd_id_is_an_unknown_id(api, name):
    for path in ("users", "tools", "sessions", "memories", "members", "api-keys", "audit-events"):
        problem(api.get(f"{path}/{name}"), 404)
    problem(api.get(f"sessions/{name}/runs/{name}"), 404)


def test_the_body_has_a_limit(api, settings):
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 100
    refused = problem(api.post("users", {"name": "x" * 100}), 413)
    assert (refused["code"], refused["detail"]) == (
        "body_too_large",
        "The body is larger than 100 bytes.",
    )


def test_a_chunked_body_is_read(api, settings):
    def sent(body):
        extra = {"wsgi.input": BytesIO(body), "HTTP_TRANSFER_ENCODING": "chunked"}
        return api.generic("POST", "users", b"", JSON, CONTENT_LENGTH="", **extra)

    assert sent(b'{"name": "Ann"}').json()["name"] == "Ann"
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 10
    assert problem(sent(b'{"name": "Ann"}'), 413)


def test_other_invalid_requests(api, acme):
    assert problem(api.put("users", {}), 405)["code"] == "method_not_allowed"
    assert problem(api.options("users"), 405)["title"] == "Method Not Allowed"
    assert problem(api.post("users", {}, format=None, content_type="text/csv"), 415)
    assert problem(api.get("users", headers={"Accept": "image/png"}), 406)
    assert problem(api.get("/api/v1/nothing"), 404)["code"] == "no_such_route"
    assert problem(api.get("/api/nothing/"), 404)["code"] == "no_such_route"
    assert problem(api.get("/api/v1/users", headers={"Host": "evil.example"}), 400)
    assert client_with(make_key(acme, ["user:read"])).get("users").status_code == 200


def test_a_row_in_the_trash_cannot_be_referenced(api, cast):
    api.delete(f"users/{cast['user'].pk}")
    for name in (str(cast["user"].pk), cast["user"].external_id):
        refused = problem(api.post("sessions", {"user_id": name}), 400)
        message = f"user_id: The user {name!r} is in the trash: restore it first."
        assert refused["detail"] == message
