"""Which rows a caller reaches, and with which scopes, for every route."""

import re
from datetime import timedelta
from uuid import uuid4

import pytest
from django.utils import timezone

from accounts.api.fields import ReferenceField, ReferenceFilter
from accounts.api.views import RecordViewSet
from accounts.models import Organization
from accounts.roles import ALL_PERMISSIONS
from accounts.services.keys import issue_key
from accounts.tenancy import tenant
from sessions.api.serializers import RunReference
from tests.api.conftest import client_with
from tests.api.routes import BODIES, ROUTES
from tests.api.test_life import RESOURCES
from tests.makers import TESTER, make_key, make_member

# What each part of a path names: the cast's row and its natural key.
NAMED = {
    "agent_id": ("agent", "external_id"),
    "block_id": ("block", "external_id"),
    "tool_id": ("tool", "name"),
    "session_id": ("session", "session_id"),
    "run_id": ("run", "run_id"),
    "memory_id": ("memory", "external_id"),
}
DETAIL = {
    "organizations": ("organization", "slug"),
    "members": ("member", "email"),
    "api-keys": ("apikey", None),
    "audit-events": ("audit", None),
    "users": ("user", "external_id"),
    "agents": ("agent", "external_id"),
    "blocks": ("block", "external_id"),
    "tools": ("tool", "name"),
    "sessions": ("session", "session_id"),
    "messages": ("message", "external_id"),
    "memories": ("memory", "external_id"),
}
SCOPE = {
    "organizations": "organization",
    "members": "members:manage",
    "api-keys": "keys:manage",
    "audit-events": "audit:read",
    "users": "user",
    "agents": "agent",
    "agent-blocks": "agent",
    "agent-tools": "agent",
    "blocks": "agent",
    "tools": "agent",
    "agent-sessions": "session",
    "agent-messages": "session",
    "sessions": "session",
    "session-runs": "session",
    "session-messages": "session",
    "messages": "session",
    "agent-memories": "memory",
    "memories": "memory",
    "memory-batch": "memory",
    "memory-history": "memory",
    "memory-export": "memory:read",
    "agent-context": "memory:read",
    "memory-search": "memory:read",
    "memory-search-batch": "memory:read",
    "memory-diff": "memory",
    "memory-merge": "memory",
    "memory-stats": "memory",
    "memory-duplicates": "memory",
    "memory-batch-update": "memory",
    "memory-batch-delete": "memory:delete",
    "user-bulk": "user",
    "agent-bulk": "agent",
    "block-bulk": "agent",
    "tool-bulk": "agent",
    "session-bulk": "session",
    "message-bulk": "session",
    "memory-bulk": "memory",
}
VERB = {"get": "read", "post": "write", "put": "write", "patch": "write", "delete": "delete"}


ALSO = {
    "agent-context": {"agent:read", "session:read"},
    "memory-merge": {"memory:delete"},
    "memory-batch-update": {"memory:read"},
}


MAKE_SESSIONS = {("session-runs", "create"), ("session-messages", "create")}


def scopes_of(route):
    word = SCOPE[route.basename]
    verb = "delete" if route.action == "restore" else VERB[route.method]
    scope = word if ":" in word else f"{word}:{verb}"
    return {scope} | ALSO.get(route.basename, set())


def named_by(route, kwarg):
    names, key = (DETAIL, route.basename) if kwarg == "id" else (NAMED, kwarg)
    assert key in names, f"{route.id}: {key!r} is missing in DETAIL or NAMED of this file"
    return names[key]


def random_ids(route):
    return {kwarg: str(uuid4()) for kwarg in route.kwargs}


def answer(client, route, ids, body=None):
    body = BODIES.get(route.basename, {}) if body is None else body
    response = getattr(client, route.method)(
        route.path(**ids), *([] if route.method == "get" else [body])
    )
    text = re.sub(r'"request_id":"[^"]*"', "", response.content.decode())
    for name in ids.values():
        text = text.replace(str(name), "<id>")
    headers = {k: v for k, v in response.headers.items() if k != "X-Request-Id"}
    return response.status_code, headers, text


def test_every_route_is_described_here():
    differing = {r.basename for r in ROUTES} ^ SCOPE.keys()
    assert not differing, f"{differing}: SCOPE of this file and the router's basenames differ"
    assert len(ROUTES) > 80
    assert all(named_by(r, kwarg) for r in ROUTES for kwarg in r.kwargs)


def test_every_record_has_a_life():
    names = {r.basename for r in ROUTES if issubclass(r.view, RecordViewSet)}
    assert not names - BODIES.keys(), f"{names - BODIES.keys()}: no body in tests/api/routes.py"
    lives = names - RESOURCES.keys()
    assert not lives, f"{lives}: no change in RESOURCES of tests/api/test_life.py"


def test_a_foreign_id_answers_as_a_random_one_on_every_route(acme, api, theirs, cast):
    cast = {**cast, "audit": api.get("audit-events").json()["results"][0]}
    own = own_ids(theirs)
    tried = 0
    for route in ROUTES:
        for kwarg in route.kwargs:
            kind, natural_key = named_by(route, kwarg)
            assert kind in cast, f"{kind!r} is missing in `cast` of tests/api/conftest.py"
            row = cast[kind]
            foreign = [row["id"] if kind == "audit" else str(row.pk)]
            if natural_key:
                foreign.append(getattr(row, natural_key))
            # The other parts of the path are theirs, so that this one alone decides.
            others = {k: own[named_by(route, k)[0]] for k in route.kwargs if k != kwarg}
            for name in foreign:
                shape = str(uuid4()) if len(name) == 36 else f"nobody-{uuid4()}"
                if (route.basename, route.action) in MAKE_SESSIONS:
                    continue  # below
                if route.action == "update" and getattr(route.view, "creates_by_put", False):
                    continue  # test_put.py: a foreign id is a key of one's own
                expected = answer(theirs, route, {**others, kwarg: shape})
                is_new_agent = route.basename == "agent-context"  # unknown agents have a context
                assert expected[0] == (200 if is_new_agent else 404), (route.id, expected)
                assert answer(theirs, route, {**others, kwarg: name}) == expected, route.id
                if is_new_agent:
                    continue
                # 404 comes before any error of the body.
                if route.method in ("post", "put", "patch"):
                    response = answer(theirs, route, {**others, kwarg: name}, {"nonsense": 1})
                    assert response == expected, route.id
                tried += 1
    assert tried > 100
    assert api.get("users").json()["results"][0]["name"] == cast["user"].name  # untouched


def test_a_name_of_another_organization_can_be_created_here(api, theirs, cast):
    """The name of a user, agent or session creates a row of the caller."""
    user, agent, session = (cast[kind] for kind in ("user", "agent", "session"))
    named = {"user_id": user.external_id, "agent_id": str(agent.pk)}
    message = {"role": "user", "session_id": session.session_id, **named}
    for path, body in [
        (f"sessions/{session.session_id}/messages", message),
        (f"sessions/{session.session_id}/runs", {}),
        ("messages", message),
        ("sessions", {"session_id": "mine", **named}),
        ("blocks", {"label": "human", "user_id": named["user_id"]}),
    ]:
        created = theirs.post(path, body)
        assert created.status_code == 201, (path, created.content)
        assert not {str(row.pk) for row in cast.values()} & set(map(str, created.json().values()))
    for path in ("runs", "messages"):
        own = theirs.post(
            f"sessions/{session.pk}/{path}", {"role": "user"} if path[0] == "m" else {}
        )
        assert own.json()["session_id"] == str(session.pk)
    assert len(theirs.get("sessions").json()["results"]) == 3
    assert len(api.get(f"sessions/{session.session_id}/messages").json()["results"]) == 1


def own_ids(client):
    """Rows of globex itself, for the other parts of a path."""
    created = {
        "agent": client.post("agents", {"external_id": "own"}).json()["id"],
        "session": client.post("sessions", {"session_id": "own"}).json()["id"],
        "memory": client.post("memories", {"content": "own"}).json()["id"],
    }
    run = client.post("sessions/own/runs", {"run_id": "own"})
    block = client.post("blocks", {"label": "own"})
    tool = client.post("tools", {"name": "own"})
    return {
        **created,
        "run": run.json()["id"],
        "block": block.json()["id"],
        "tool": tool.json()["id"],
    }


def reference_fields():
    """(route, field, serializer field) of every id in a body or a query string."""
    for route in ROUTES:
        if route.action == "list":
            fields = route.view.list_query().fields
        elif route.action in ("stats", "duplicates"):
            fields = route.view().query_class()().fields
        elif route.action in ("create", "update", "partial_update", "merge"):
            shape = getattr(route.view, "body_class", None) or route.view.serializer_class
            fields = shape().fields
        else:
            continue
        for name, field in fields.items():
            if isinstance(field, ReferenceField | ReferenceFilter) and not field.read_only:
                yield route, name, field


def test_a_foreign_id_in_a_body_or_filter_answers_as_a_random_one(theirs, cast):
    own = own_ids(theirs)
    own_rows = {
        "users": theirs.post("users", {"external_id": "own"}).json()["id"],
        "messages": theirs.post("messages", {"role": "user"}).json()["id"],
        "api-keys": theirs.get("api-keys").json()["results"][0]["id"],
        **{f"{kind}s": own[kind] for kind in ("agent", "session", "block", "tool")},
        "memories": own["memory"],
    }

    def row_to_change(name):
        if name not in own_rows:
            *_, natural_key = RESOURCES[name]
            body = {**BODIES[name], natural_key: "own"}
            own_rows[name] = theirs.post(name, body).json()["id"]
        return own_rows[name]

    tried = set()
    # (Queries first: writes create rows with those names.)
    fields = sorted(reference_fields(), key=lambda f: isinstance(f[2], ReferenceField))
    for route, name, field in fields:
        row = cast[field.model._meta.model_name]
        ids = {
            k: row_to_change(route.basename) if k == "id" else own[named_by(route, k)[0]]
            for k in route.kwargs
        }
        is_asked = isinstance(field, ReferenceFilter)
        makes_new = getattr(field.model, "auto_create_key", None) == field.key and not is_asked
        if makes_new:  # a foreign id is a key of one's own
            if (route.basename, name) == ("session-messages", "session_id"):
                continue  # it must be the one in the path
            body = {**BODIES.get(route.basename, {}), name: str(row.pk)}
            created = getattr(theirs, route.method)(route.path(**ids), body)
            assert created.status_code in (200, 201, 409), (route.id, name, created.content)
            own_row = theirs.get(f"{field.model._meta.model_name}s/{row.pk}").json()
            assert own_row[field.key] == str(row.pk) != own_row["id"]
            tried.add((route.id, name))
            continue
        named_by_key = [getattr(row, field.key)] if field.key else []
        status = 200 if is_asked else 400  # it matches nothing
        for foreign in [str(row.pk), *named_by_key]:
            unknown = str(uuid4()) if len(foreign) == 36 else f"nobody-{uuid4()}"
            texts = []
            for value in (foreign, unknown):
                if route.method == "get":
                    response = theirs.get(f"{route.path(**ids)}?{name}={value}")
                else:
                    body = {**BODIES.get(route.basename, {}), name: value}
                    response = getattr(theirs, route.method)(route.path(**ids), body)
                assert response.status_code == status, (route.id, name, response.content)
                if status == 400:
                    assert response.json()["errors"][0]["field"] == name
                elif route.method == "get" and "results" in response.json():
                    assert response.json()["results"] == []
                body = b"".join(response) if response.streaming else response.content
                text = re.sub(r'"request_id":"[^"]*"|"took_ms":[^,}]*', "", body.decode())
                texts.append(text.replace(value, "<id>"))
            assert texts[0] == texts[1], (route.id, name)
        tried.add((route.id, name))
    assert len(tried) > 40
    assert any(isinstance(f, RunReference) for _, _, f in reference_fields())


def test_no_list_shows_a_foreign_row(theirs, api, cast):
    canaries = {str(row.pk) for row in cast.values()} | {"acme"}
    for route in ROUTES:
        if route.action == "list" and not route.kwargs:
            for query in ("", "?deleted=include"):
                response = theirs.get(route.path() + query)
                if response.status_code == 400:
                    assert not route.view.has_trash
                    continue
                text = response.content.decode()
                assert not [canary for canary in canaries if canary in text], route.id


def test_nobody_gets_in_without_a_key(anonymous):
    keys = [{}, {"X-API-Key": "agm_x"}, {"X-API-Key": "agm_\0"}, {"X-API-Key": "agm_é"}]
    keys += [{"Authorization": "Bearer agm_unknown"}, {"Authorization": "Basic YTpi"}]
    keys += [{"X-API-Key": f"agm_{'x' * 5000}"}, {"Authorization": "Bearer"}]
    for route in ROUTES:
        for headers in keys if route.name == "users-list" else keys[:2]:
            path = route.path(**random_ids(route))
            response = getattr(anonymous, route.method)(path, {}, headers=headers)
            assert response.status_code == 401, (route.id, headers)
            assert response["WWW-Authenticate"] == 'Bearer realm="AgentMem"'
            assert response.json()["code"] == "unauthenticated"
    assert anonymous.get("me").json()["detail"].startswith("Send an API key")


@pytest.mark.parametrize("basename", SCOPE)
def test_a_route_requires_exactly_its_scopes(acme, basename):
    for route in ROUTES:
        if route.basename != basename:
            continue
        scopes = scopes_of(route)
        with_them = client_with(make_key(acme, sorted(scopes)))
        ids = random_ids(route)
        for scope in scopes:
            without = client_with(make_key(acme, [s for s in ALL_PERMISSIONS if s != scope]))
            refused = getattr(without, route.method)(route.path(**ids))
            assert refused.status_code == 403, route.id
            assert refused.json()["detail"] == f"This key does not hold the scope {scope}."
        opened = getattr(with_them, route.method)(route.path(**ids), **json_body(route))
        if route.action == "create" and route.basename in ("organizations", "members", "api-keys"):
            continue  # the service asks for more than the door: other tests
        if route.basename == "memory-batch-delete":
            continue  # so does a filter
        assert opened.status_code not in (401, 403), (route.id, opened.content)


def json_body(route):
    return {} if route.method in ("get", "delete") else {"data": BODIES.get(route.basename, {})}


def test_a_viewer_reads_and_does_not_write(acme, cast):
    viewer = client_with(make_key(acme, [s for s in ALL_PERMISSIONS if s.endswith(":read")]))
    for name in ("users", "agents", "blocks", "tools", "sessions", "messages", "memories"):
        assert viewer.get(name).status_code == 200
        assert viewer.post(name, BODIES[name]).status_code == 403


def test_a_view_that_names_no_resource_is_closed(api, monkeypatch):
    route = next(r for r in ROUTES if r.name == "users-list")
    monkeypatch.setattr(route.view, "resource", "")
    assert api.get("users").status_code == 403


def test_a_key_grants_no_scope_that_it_lacks(acme):
    client = client_with(make_key(acme, ["keys:manage", "memory:read"]))
    refused = client.post("api-keys", {"name": "more", "scopes": ["memory:read", "memory:write"]})
    assert refused.status_code == 403
    assert refused.json()["detail"] == "You cannot grant scopes that you do not have: memory:write."


def test_managing_members_grants_no_higher_role(acme, alice):
    client = client_with(make_key(acme, ["members:manage"]))
    for change in ({"password": "another horse battery"}, {"email": "me@acme.example"}):
        refused = client.patch(f"members/{alice.pk}", change)
        assert refused.status_code == 403
        assert refused.json()["detail"].startswith("The role admin has permissions that you lack: ")
    raised = client.post("members", {"email": "new@acme.example", "role": "owner"})
    refusal = "Assigning or revoking the role owner needs the permission roles:manage."
    assert raised.json()["detail"] == refusal


def test_managing_members_grants_no_other_permission(acme, api):
    """With members:manage alone: no dismissed owner comes back, nobody is renamed, no viewer with a
    password of one's choice reads what the key may not."""
    owner, dismissed = (make_member(acme, name, role="owner") for name in ("olga", "oscar"))
    assert api.delete(f"members/{dismissed.pk}").status_code == 204
    client = client_with(make_key(acme, ["members:manage"]))
    viewer = {"email": "new@acme.example", "password": "another horse battery"}
    for refused in (
        client.post(f"members/{dismissed.pk}/restore"),
        client.patch(f"members/{owner.pk}", {"name": "Mine"}),
        client.delete(f"members/{owner.pk}"),
        client.post("members", viewer),
    ):
        assert refused.status_code == 403, refused.content
    reads = [s for s in ALL_PERMISSIONS if s.endswith(":read") and s != "audit:read"]
    assert client_with(make_key(acme, ["members:manage", *reads])).post("members", viewer).data
    last = api.delete(f"members/{owner.pk}")
    assert (last.status_code, last.json()["code"]) == (409, "last_owner")


def test_adding_a_member_does_not_reveal_other_memberships(api, theirs, mallory):
    created = api.post("members", {"email": mallory.email, "role": "user"})
    assert created.status_code == 201
    assert theirs.get(f"members/{mallory.email}").json()["role"] == "admin"


def test_a_members_key_allows_what_the_role_allows_now(acme, api, alice):
    issued = api.post(
        "api-keys", {"name": "k", "scopes": ["user:write", "user:read"], "member_id": alice.email}
    ).json()
    client = client_with(issued["key"])
    assert client.post("users", {}).status_code == 201
    assert api.patch(f"members/{alice.pk}", {"role": "viewer"}).status_code == 200
    assert client.post("users", {}).status_code == 403
    assert client.get("me").json()["scopes"] == ["user:read"]
    assert api.patch(f"members/{alice.pk}", {"is_active": False}).status_code == 200
    assert client.get("users").status_code == 401


def test_an_expired_key_and_a_key_of_a_deleted_organization_open_nothing(acme, anonymous):
    with tenant(acme):
        _, expired = issue_key(
            organization=acme,
            actor=TESTER,
            name="old",
            scopes=["memory:read"],
            expires_at=timezone.now() - timedelta(seconds=1),
        )
    assert client_with(expired).get("me").status_code == 401
    good = make_key(acme)
    assert client_with(good).get("me").status_code == 200
    Organization.objects.filter(pk=acme.pk).update(is_deleted=True, deleted_at=timezone.now())
    assert client_with(good).get("me").status_code == 401
