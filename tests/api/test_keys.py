"""The caller's own keys: what may be one, and how each row is reached."""

from urllib.parse import quote, urlsplit
from uuid import uuid4

import pytest

from accounts.models import User
from accounts.tenancy import tenant
from tests.api.routes import BODIES, ROUTES
from tests.makers import make_agent, make_session, make_user

# basename, path, the natural key, what else a body needs
KEYED = [
    ("users", "users", "external_id", {}),
    ("agents", "agents", "external_id", {}),
    ("blocks", "blocks", "external_id", {"label": "persona"}),
    ("tools", "tools", "name", {}),
    ("sessions", "sessions", "session_id", {}),
    ("session-runs", "sessions/s/runs", "run_id", {}),
    ("messages", "messages", "external_id", {"role": "user"}),
    ("memories", "memories", "external_id", {"content": "Likes tea."}),
]
REFERENCES = [
    ("memories", {"content": "Likes tea."}, "user_id"),
    ("memories", {"content": "Likes tea."}, "agent_id"),
    ("messages", {"role": "user"}, "session_id"),
    ("messages", {"role": "user"}, "user_id"),
    ("sessions", {"session_id": "s"}, "agent_id"),
    ("blocks", {"label": "human"}, "user_id"),
]


@pytest.fixture(autouse=True)
def static_encoder(settings):
    settings.ENCODER = "static"


@pytest.fixture(params=KEYED, ids=[basename for basename, *_ in KEYED])
def keyed(request):
    return request.param


def content(path, text):
    """Another memory each time."""
    return {"content": text} if path == "memories" else {}


@pytest.mark.parametrize(("path", "body", "field"), REFERENCES)
def test_an_unknown_uuid_is_the_callers_own_key(acme, api, path, body, field):
    own = str(uuid4())
    created = api.post(path, {**body, field: own})
    assert created.status_code == 201, created.content
    resource = f"{field[:-3]}s"
    row = api.get(f"{resource}/{own}").json()
    assert row.get("external_id", row.get("session_id")) == own
    assert created.json()[field] in (row["id"], own)
    again = {k: v for k, v in body.items() if k != "session_id"}
    for name in (own, row["id"]):
        response = api.post(path, {**again, field: name, **content(path, name)})
        assert response.json()[field] == created.json()[field]
    with tenant(acme):
        assert User.objects.for_organization(acme).count() == (field == "user_id")


def test_an_id_takes_precedence_over_an_equal_key(acme, api):
    ann = make_user(acme, external_id="ann")
    make_user(acme, external_id=str(ann.pk))
    assert api.get(f"users/{ann.pk}").json()["external_id"] == "ann"
    assert api.post("sessions", {"user_id": str(ann.pk)}).json()["user_id"] == str(ann.pk)


def test_an_integer_is_its_decimal_text(api, keyed):
    _, path, key, body = keyed
    created = api.post(path, {**body, key: 4711})
    assert (created.status_code, created.json()[key]) == (201, "4711"), created.content
    assert api.get(f"{path}/4711").json()["id"] == created.json()["id"]


@pytest.mark.parametrize(("path", "body", "field"), REFERENCES)
def test_an_integer_is_a_reference_too(api, path, body, field):
    created = api.post(path, {**body, field: 4711})
    assert created.status_code == 201, created.content
    if path != "blocks":
        (listed,) = api.get(path, {field: "4711"}).json()["results"]
        assert listed["id"] == created.json()["id"]


def test_an_integer_may_be_a_filter(api):
    api.post("memories", {"content": "Likes tea.", "user_id": 4711, "session_id": 12})
    body = {"query": "tea", "user_id": 4711, "session_id": 12}
    assert len(api.post("memories/search", body).json()["results"]) == 1
    deleted = api.post("memories/batch/delete", {"filter": {"user_id": 4711}, "preview": True})
    assert deleted.json()["matched"] == 1


def test_blanks_around_a_key_are_trimmed_everywhere(api, keyed):
    _, path, key, body = keyed
    created = api.post(path, {**body, key: "  a b\n"})
    assert created.json()[key] == "a b", created.content
    assert api.get(f"{path}/%20a%20b%20").json()["id"] == created.json()["id"]
    assert api.get(f"{path}/by-key", {key: " a b"}).json()["id"] == created.json()["id"]
    if path in ("users", "messages", "agents", "blocks", "memories", "tools"):
        (listed,) = api.get(path, {key: "\ta b "}).json()["results"]
        assert listed["id"] == created.json()["id"]


@pytest.mark.parametrize("bad", ["", " ", "a\nb", "a\0b", "\x1b[0m", "a\u2028b", "x" * 256])
def test_an_invalid_key_is_refused_in_a_body_and_not_found_in_a_path(api, keyed, bad):
    _, path, key, body = keyed
    api.post("sessions", {"session_id": "s"})
    refused = api.post(path, {**body, key: bad})
    assert refused.status_code == 400
    if "\0" not in bad:  # (which no JSON of ours holds)
        assert refused.json()["errors"][0]["field"] == key
    if bad.strip():
        assert api.get(f"{path}/{quote(bad)}").status_code == 404


ODD = ["a/b", "/", "..", "ü ß/漢字", "a?b#c&d=e%2F", "by-key", "bulk", "👩‍👩‍👧", "x" * 254 + "/"]


@pytest.mark.parametrize("odd", [*ODD, "stats", "search", "batch", "export", "duplicates", "last"])
def test_a_row_with_any_printable_key_can_be_created_and_read(api, keyed, odd):
    _, path, key, body = keyed
    created = api.post(path, {**body, key: odd})
    assert (created.status_code, created.json()[key]) == (201, odd), created.content
    assert api.get(created["Location"]).json()["id"] == created.json()["id"]
    assert api.get(f"{path}/by-key", {key: odd}).json()["id"] == created.json()["id"]
    by_path = api.get(f"{path}/{quote(odd, safe='')}")
    if "X-AgentMem-Notice" in created.headers:
        address = created["X-AgentMem-Notice"].rpartition(" ")[2]
        assert api.get(address).json()["id"] == created.json()["id"]
    elif path != "sessions/s/runs":
        assert by_path.json()["id"] == created.json()["id"]


def test_the_notice_is_sent_if_the_path_means_something_else(api, keyed):
    """Each word of a route is known to the view that shares its place."""
    basename, path, key, body = keyed
    view = next(r.view for r in ROUTES if r.name == f"{basename}-detail")
    here = next(r.template for r in ROUTES if r.name == f"{basename}-list")
    below = [r.template.split(f"{here}/", 1)[1] for r in ROUTES if f"{here}/" in r.template]
    words = {rest.partition("/")[0] for rest in below if not rest.startswith("{")}
    assert words == set(view.path_words)
    for word in words:
        created = api.post(path, {**body, key: word, **content(path, word)})
        assert "X-AgentMem-Notice" in created.headers
    plain = api.post(path, {**body, key: "plain"})
    assert "X-AgentMem-Notice" not in plain.headers


def test_members_and_organizations_are_found_by_key(api, alice):
    assert api.get("members/by-key", {"email": alice.email}).json()["id"] == str(alice.pk)
    assert api.get("organizations/by-key?slug=acme").json()["slug"] == "acme"
    assert api.get("api-keys/by-key").status_code == 404


def test_a_row_by_its_key_in_the_trash_and_wrong_questions(api):
    created = api.post("users", {"external_id": "a/b"}).json()
    api.delete(f"users/{created['id']}")
    assert api.get("users/by-key?external_id=a/b").status_code == 404
    lying = api.get("users/by-key?external_id=a/b&deleted=only")
    assert lying.json()["id"] == created["id"]
    for query in ("", "?external_id=", "?name=x", "?external_id=a&external_id=b"):
        assert api.get(f"users/by-key{query}").status_code == 400, query


def test_a_created_row_has_a_location(acme, api):
    make_agent(acme, external_id="bot")
    make_session(acme, session_id="s")
    block = api.post("blocks", BODIES["blocks"]).json()["id"]
    for path, body, shown in [
        ("users", {}, "users"),
        ("sessions/s/messages", {"role": "user"}, "messages"),
        ("sessions/new/messages", {"role": "user"}, "messages"),
        ("agents/bot/blocks", {"block_id": block}, "blocks"),
        ("members", {"email": "bob@acme.example", "role": "user"}, "members"),
        ("api-keys", {"name": "ci", "scopes": ["memory:read"]}, "api-keys"),
        ("memories", {"content": "Likes tea."}, "memories"),
    ]:
        created = api.post(path, body)
        assert created.status_code == 201, created.content
        assert urlsplit(created["Location"]).path == f"/api/v1/{shown}/{created.json()['id']}"
    run = api.post("sessions/s/runs", {})
    assert api.get(run["Location"]).json()["id"] == run.json()["id"]
    assert "Location" not in api.post("memories", {"content": "Likes tea."}).headers
