"""POST <resource>/bulk: bodies are loaded as they arrive, and each bad line is reported."""

import gzip
import io
import json

import pyarrow.parquet
import pytest
import zstandard

from accounts.models import AuditEvent, User
from accounts.tenancy import tenant
from memories.models import Agent, Memory
from sessions.models import Session
from tests.api.conftest import client_with
from tests.makers import make_key, make_user

NDJSON = "application/x-ndjson"
ARRAY = "application/json"
PROBLEM = "application/problem+json"
ANN, BOB = {"external_id": "u1", "name": "Ann"}, {"external_id": "u2", "name": "Bob"}


def lines(*rows):
    return b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in rows)


def send(client, path, body, kind=NDJSON, **headers):
    return client.post(path, body, content_type=kind, headers=headers)


def problem(response, status):
    assert response.status_code == status, response.content
    assert response["Content-Type"] == PROBLEM
    return response.json()


def stored(organization, model=User, key="external_id"):
    with tenant(organization):
        rows = model.objects.for_organization(organization)
        return sorted(rows.values_list(key, flat=True))


def test_lines_are_loaded_and_the_same_body_again_changes_nothing(api, acme):
    first = send(api, "users/bulk", lines(ANN, BOB))
    assert first.status_code == 200
    report = first.json()
    assert (report["resource"], report["read"], report["inserted"]) == ("users", 2, 2)
    assert report["rejects"] == []
    again = send(api, "users/bulk", lines(ANN, BOB)).json()
    assert (again["inserted"], again["updated"], again["unchanged"]) == (0, 0, 2)
    changed = send(api, "users/bulk/", lines({**ANN, "name": "Anna"}, BOB)).json()
    assert (changed["inserted"], changed["updated"], changed["unchanged"]) == (0, 1, 1)
    with tenant(acme):
        assert User.objects.for_organization(acme).get(external_id="u1").name == "Anna"
        events = AuditEvent.objects.for_organization(acme).filter(action="loaded")
        noted = events.earliest("created_at")
        assert (noted.actor_kind, noted.resource_type) == ("api_key", "users")
        assert noted.changes["inserted"] == 2


EACH = {
    "users": {"external_id": "u"},
    "agents": {"external_id": "a", "name": "Barista"},
    "blocks": {"external_id": "b", "label": "persona", "value": "Kind."},
    "tools": {"name": "weather"},
    "sessions": {"session_id": "s", "runs": [{"run_id": "r"}]},
    "messages": {"external_id": "m", "role": "user", "text": "Hello!"},
    "memories": {"content": "Likes tea.", "user_id": "u", "agent_id": "a"},
}


@pytest.mark.parametrize("name", EACH)
def test_each_resource_is_loaded_from_lines_and_from_an_array(api, name):
    report = send(api, f"{name}/bulk", lines(EACH[name])).json()
    assert (report["resource"], report["inserted"]) == (name, 1)
    report = send(api, f"{name}/bulk", json.dumps([EACH[name]]), ARRAY).json()
    assert (report["inserted"], report["updated"], report["unchanged"]) == (0, 0, 1)


PACKED = {"gzip": gzip.compress, "x-gzip": gzip.compress, "zstd": zstandard.compress}


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("kind", [NDJSON, ARRAY])
def test_a_compressed_body_is_decompressed(api, packing, kind):
    body = lines(ANN, BOB) if kind == NDJSON else json.dumps([ANN, BOB]).encode()
    headers = {"Content-Encoding": packing}
    report = send(api, "users/bulk", PACKED[packing](body), kind, **headers).json()
    assert report["inserted"] == 2


@pytest.mark.parametrize("kind", ["application/jsonl", "Application/X-JSONLines; charset=utf-8"])
def test_lines_have_several_content_types(api, kind):
    assert send(api, "users/bulk", lines(ANN), kind).json()["inserted"] == 1


def test_rejected_lines_are_reported_and_the_others_stored(api, acme):
    body = lines(ANN, {"nmae": "x"}, b"", b"{", BOB, {"external_id": True})
    answer = send(api, "users/bulk", body)
    assert answer.status_code == 207
    report = answer.json()
    assert (report["read"], report["inserted"], report["rejected"]) == (5, 2, 3)
    rejects = [(r["line"], r["byte_offset"], r["field"], r["code"]) for r in report["rejects"]]
    second, fourth = len(lines(ANN)), len(lines(ANN, {"nmae": "x"}, b""))
    sixth = len(lines(ANN, {"nmae": "x"}, b"", b"{", BOB))
    assert rejects == [
        (2, second, "nmae", "unknown_field"),
        (4, fourth, "", "malformed_json"),
        (6, sixth, "external_id", "not_text"),
    ]
    assert stored(acme) == ["u1", "u2"]


def test_in_an_array_the_line_is_the_element(api, acme):
    body = json.dumps([ANN, 5, BOB, {"external_id": ""}])
    answer = send(api, "users/bulk", body, ARRAY)
    assert answer.status_code == 207
    rejects = [(r["line"], r["byte_offset"]) for r in answer.json()["rejects"]]
    assert rejects == [(2, body.index("5,")), (4, body.index('{"external_id": ""}'))]
    assert stored(acme) == ["u1", "u2"]


def test_a_bad_line_ends_the_load_with_on_error_stop(api, acme):
    path = "users/bulk?on_error=stop&batch_size=2"
    body = lines(ANN, BOB, {"external_id": "u3"}, {"nmae": "x"}, {"external_id": "u5"})
    refused = problem(send(api, path, body), 422)
    assert refused["code"] == "unknown_field"
    assert refused["line"] == 4
    assert refused["byte_offset"] == len(lines(ANN, BOB, {"external_id": "u3"}))
    assert refused["errors"][0]["field"] == "nmae"
    assert "Lines up to 2 are committed." in refused["detail"]
    assert refused["report"]["inserted"] == 2
    assert stored(acme) == ["u1", "u2"]


def test_more_than_max_rejects_end_the_load(api, acme):
    body = lines(ANN, b"{", b"{", b"{", BOB)
    assert send(api, "users/bulk?max_rejects=3", body).status_code == 207
    refused = problem(send(api, "users/bulk?max_rejects=2", body), 422)
    assert refused["report"]["rejected"] <= 3


def test_a_dry_run_stores_nothing(api, acme):
    report = send(api, "users/bulk?dry_run=true", lines(ANN, BOB)).json()
    assert (report["inserted"], report["dry_run"]) == (2, True)
    assert stored(acme) == []


def test_options_are_those_of_the_command(api, acme):
    old = {**ANN, "created_at": "2020-01-02T03:04:05Z"}
    send(api, "users/bulk?preserve_timestamps=true", lines(old))
    with tenant(acme):
        assert User.objects.for_organization(acme).get().created_at.year == 2020
    unknown = lines({**BOB, "shoe": 43})
    assert send(api, "users/bulk", unknown).status_code == 207
    assert send(api, "users/bulk?ignore_unknown=true", unknown).status_code == 200
    api.delete("users/u1")
    assert send(api, "users/bulk", lines(ANN)).json()["deleted"] == 1
    assert api.get("users/u1").status_code == 404
    assert send(api, "users/bulk?restore=true", lines(ANN)).status_code == 200
    assert api.get("users/u1").status_code == 200


def test_memories_are_embedded_now_or_later(api, acme):
    send(api, "memories/bulk?embed=later", lines({"content": "Later."}))
    send(api, "memories/bulk?embed=now", lines({"content": "Now."}))
    send(api, "memories/bulk", lines({"content": "Now too."}))
    with tenant(acme):
        rows = Memory.objects.for_organization(acme).values_list("content", "embedding_state")
        assert dict(rows) == {"Later.": "pending", "Now.": "ready", "Now too.": "ready"}


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("on_error=ignore", "on_error"),
        ("batch_size=0", "batch_size"),
        ("batch_size=10001", "batch_size"),
        ("max_rejects=-1", "max_rejects"),
        ("dry_run=perhaps", "dry_run"),
        ("preserve_ids=true", "preserve_ids"),
        ("actor=alice", "actor"),
        ("organization=globex", "organization"),
        ("embed=now", "embed"),
        ("dry_run=true&dry_run=false", "dry_run"),
    ],
)
def test_an_unknown_parameter_is_refused_before_the_body(api, acme, query, field):
    refused = problem(send(api, f"users/bulk?{query}", lines(ANN)), 400)
    assert [e["field"] for e in refused["errors"]] == [field]
    assert stored(acme) == []


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain"])
def test_another_content_type_is_refused_with_the_accepted_ones(api, kind):
    refused = problem(send(api, "users/bulk", lines(ANN), kind), 415)
    assert "application/x-ndjson" in refused["detail"]


@pytest.mark.parametrize("kind", [NDJSON, ARRAY])
def test_json_may_have_any_shape(api, acme, kind):
    body = json.dumps({"results": [ANN, BOB], "next": None}, indent=2).encode()
    assert send(api, "users/bulk", body, kind).json()["inserted"] == 2
    assert stored(acme) == ["u1", "u2"]


def test_a_table_is_loaded_as_a_file_is(api, acme):
    text = "sep=;\r\nExternal ID;Full name;city\r\nu1;Ann;Köln\r\nu2;NULL;\r\n"
    query = "map=Full name=name,city=metadata.city&set=status=inactive&null=NULL&encoding=cp1252"
    answer = send(api, f"users/bulk?{query}", text.encode("cp1252"), "text/csv").json()
    assert (answer["inserted"], answer["rejects"]) == (2, [])
    assert answer["notices"] == ["'External ID' of the header is read as external_id."]
    with tenant(acme):
        ann, bob = User.objects.for_organization(acme).order_by("external_id")
    assert (ann.name, ann.metadata, ann.status) == ("Ann", {"city": "Köln"}, "inactive")
    assert (bob.name, bob.metadata) == ("", {})


def test_parquet_is_loaded(api, acme):
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"external_id": [1, 2]}), sink)
    kind = "application/vnd.apache.parquet"
    assert send(api, "users/bulk", sink.getvalue(), kind).json()["inserted"] == 2
    assert stored(acme) == ["1", "2"]


def test_advice_names_parameters(api):
    refused = problem(send(api, "users/bulk", b"nmae\nx\n", "text/csv"), 400)
    assert "`map` nmae=name" in refused["detail"]
    assert "`ignore_unknown` leaves out" in refused["detail"]
    assert "--" not in refused["detail"]
    answer = send(api, "blocks/bulk", b"external_id,label,user_id\nb,l,NULL\n", "text/csv").json()
    assert "`null` NULL reads it so" in answer["rejects"][0]["message"]
    refused = problem(send(api, "users/bulk?map=a=nmae", lines(ANN)), 400)
    assert refused["errors"][0]["field"] == "map"


def test_another_content_encoding_is_refused(api):
    refused = problem(send(api, "users/bulk", lines(ANN), **{"Content-Encoding": "br"}), 415)
    assert "'br'" in refused["detail"]


@pytest.mark.parametrize(
    ("body", "kind", "packing", "message"),
    [
        (gzip.compress(lines(ANN) * 900, mtime=0)[:-9], NDJSON, "gzip", "cut off"),
        (lines(ANN), NDJSON, "gzip", "is gzip, but the body is not"),
        (gzip.compress(lines(ANN), mtime=0)[:-8] + b"nonsense", NDJSON, "gzip", "damaged"),
        (b'"u1"', ARRAY, "identity", "at byte 0: the [ of a JSON array or the { of an object"),
        (b'[{"external_id": "u1"}', ARRAY, "identity", "at byte 22: a comma or ] is expected"),
        (b'[{"external_id": "u1"},]', ARRAY, "identity", "a value is expected, ']' is there"),
        (b"[] x", ARRAY, "identity", "at byte 3: the [ of a JSON array or the {"),
        (b"", ARRAY, "identity", "the end is there"),
        (b"PK\x03\x04....", NDJSON, "identity", "zip archive"),
    ],
)
def test_an_unreadable_body_is_refused_with_its_position(api, body, kind, packing, message):
    refused = problem(send(api, "users/bulk", body, kind, **{"Content-Encoding": packing}), 400)
    assert refused["code"] == "unreadable_body"
    assert message in refused["detail"]


def test_what_was_read_of_an_unreadable_body_is_reported(api, acme):
    body = b"[" + b",".join(json.dumps({"external_id": f"u{n}"}).encode() for n in range(5)) + b" 5"
    refused = problem(send(api, "users/bulk?batch_size=2", body, ARRAY), 400)
    assert "Lines up to 4 are committed." in refused["detail"]
    assert refused["report"]["inserted"] == 4
    assert len(stored(acme)) == 4


def test_a_line_too_long_is_rejected_and_the_others_read_on(api, acme):
    long = {"external_id": "long", "name": "x" * 2_000_000}
    for body, kind in [(lines(ANN, long, BOB), NDJSON), (json.dumps([ANN, long, BOB]), ARRAY)]:
        report = send(api, "users/bulk", body, kind).json()
        assert [(r["line"], r["code"]) for r in report["rejects"]] == [(2, "line_too_long")]
    assert stored(acme) == ["u1", "u2"]


# -- who may ---------------------------------------------------------------------------------------


def test_a_key_that_may_not_add_agents_adds_none_by_naming_them(acme):
    make_user(acme, external_id="ann")
    writer = client_with(make_key(acme, ["memory:read", "memory:write", "user:write"]))
    body = lines(
        {"content": "One.", "user_id": "new"},
        {"content": "Two.", "agent_id": "new"},
        {"content": "Three.", "user_id": "ann"},
    )
    report = send(writer, "memories/bulk?embed=later", body).json()
    assert report["inserted"] == 2
    rejects = [(r["line"], r["field"], r["code"]) for r in report["rejects"]]
    assert rejects == [(2, "agent_id", "unknown_reference")]
    assert stored(acme, Agent) == []
    assert stored(acme) == ["ann", "new"]


def test_strict_references_reject_what_names_the_unknown(api, acme):
    body = lines({"session_id": "s1", "user_id": "nobody"}, {"session_id": "s2"})
    report = send(api, "sessions/bulk?strict_references=true", body).json()
    assert [(r["line"], r["field"]) for r in report["rejects"]] == [(1, "user_id")]
    assert stored(acme, Session, "session_id") == ["s2"]


def test_a_foreign_row_is_neither_seen_nor_changed(theirs, acme, globex):
    ann = make_user(acme, external_id="u1", name="Ann of acme")
    assert send(theirs, "users/bulk", lines({"external_id": "u1", "name": "X"})).json()["inserted"]
    foreign = {"session_id": "s1", "user_id": str(ann.pk)}
    report = send(theirs, "sessions/bulk?strict_references=true", lines(foreign)).json()
    assert report["rejects"][0]["code"] == "unknown_reference"
    with tenant(acme):
        assert User.objects.for_organization(acme).get().name == "Ann of acme"


def test_a_line_does_not_choose_its_organization(api, acme, globex):
    report = send(api, "users/bulk", lines({**ANN, "organization_id": str(globex.pk)})).json()
    assert (report["inserted"], report["rejected"]) == (0, 1)
    assert stored(globex) == []
