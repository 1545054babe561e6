"""Bad input: named by line, field and reason, and nothing of its batch is stored."""

import gzip
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from django.core.management import CommandError
from django.db import ProgrammingError, connection
from psycopg import errors

from accounts.models import User
from accounts.tenancy import tenant
from tests.bulk.loading import load, load_file


def test_a_bad_line_stops_the_load_and_its_batch(acme, tmp_path):
    rows = [{"external_id": f"u{n}"} for n in range(1, 11)]
    rows[6] = {"external_id": "u7", "nmae": "Ann"}
    with pytest.raises(CommandError) as refusal:
        load(tmp_path, "users", rows, batch_size=4)
    message = "line 7: nmae: Unknown field (do you mean name?); allowed: external_id, name"
    assert message in str(refusal.value)
    assert "Lines up to 4 are committed." in str(refusal.value)
    assert refusal.value.returncode == 65
    with tenant(acme):
        stored = User.objects.for_organization(acme).values_list("external_id", flat=True)
        assert sorted(stored) == ["u1", "u2", "u3", "u4"]


BAD = [
    (
        "users",
        b'{"external_id": 7.5}',
        "external_id: A text or a whole number is needed, got the number 7.5.",
    ),
    ("users", b'{"name": "Ann"}', "external_id: Missing"),
    ("users", b'{"external_id": ""}', "external_id: A key must not be empty."),
    (
        "users",
        b'{"external_id": "' + b"x" * 256 + b'"}',
        "external_id: 256 characters are given; a key has at most 255.",
    ),
    (
        "users",
        b'{"external_id": "u", "email": "' + b"e" * 255 + b'"}',
        "email: 255 characters are given; at most 254 are allowed.",
    ),
    (
        "users",
        b'{"external_id": "u", "timezone": "' + b"z" * 65 + b'"}',
        "timezone: 65 characters are given; at most 64 are allowed.",
    ),
    (
        "memories",
        b'{"content": "c", "embedding": [' + b",".join([b"1e-10"] * 384) + b"]}",
        "embedding: An embedding of only zeros has no direction.",
    ),
    ("users", b'{"external_id": "u"', "Input data was truncated"),
    ("users", b"[]", "An object is needed, got an array."),
    (
        "users",
        b'{"external_id": "u", "status": "asleep"}',
        'status: "active" or "inactive" is needed, got the text "asleep".',
    ),
    ("users", b'{"external_id": "u", "name": 42}', "A text or null is needed, got the number 42."),
    (
        "sessions",
        b'{"session_id": "s", "runs": [{"run_id": "1"}, {"run_id": "2", "status": true}]}',
        "runs[1].status: A text or null is needed, got true.",
    ),
    (
        "users",
        b'{"external_id": "u", "metadata": [1]}',
        "metadata: An object is needed, got an array.",
    ),
    ("users", b'{"external_id": "u", "metadata": {"a": NaN}}', "metadata.a: NaN"),
    ("users", b'{"external_id": "a\\u0000b"}', "cannot hold the character \\u0000"),
    ("users", b'{"external_id": "u", "metadata": {"\\u0000": 1}}', "the character \\u0000"),
    ("users", b'{"external_id": "u", "metadata": {"a": "\\ud800"}}', "Half of a surrogate pair"),
    ("users", b'{"external_id": "u", "metadata": {"a": ' + b"1" * 5000 + b"}}", "than 38 digits"),
    ("users", b'{"external_id": "u", "metadata": {"a": [-1e38]}}', "than 38 digits"),
    ("users", b'{"external_id": "\xff"}', "Invalid UTF-8 at byte 17"),
    (
        "users",
        b'{"external_id": "u", "metadata": {"a": ' + b"[" * 5000 + b"]" * 5000 + b"}}",
        "Nested deeper than 64 levels",
    ),
    ("blocks", b'{"external_id": "b", "label": "' + b"x" * 51 + b'"}', "label: 51 characters are"),
    (
        "blocks",
        b'{"external_id": "b", "label": "l", "value": "four", "limit": 3}',
        "value: 4 characters; the limit is 3",
    ),
    (
        "sessions",
        b'{"session_id": "s", "runs": [{"run_id": "1", "input_tokens": -1}]}',
        "runs[0].input_tokens: A whole number of at least 0 is needed, got the number -1.",
    ),
    ("sessions", b'{"session_id": "s", "runs": [{"run_id": "1", "x": 1}]}', "runs[0].x: Unknown"),
    (
        "sessions",
        b'{"session_id": "s", "runs": [{"run_id": "1"}, {"run_id": "2", "messages": {}}]}',
        "runs[1].messages: An array is needed, got an object.",
    ),
    (
        "sessions",
        b'{"session_id": "s", "runs": [{"run_id": "1", "started_at": "2024-02-30T00:00:00Z"}]}',
        "runs[0].started_at: '2024-02-30T00:00:00Z': day is out of range",
    ),
    (
        "sessions",
        b'{"session_id": "s", "runs": [{"run_id": "1", "started_at": "2024-02-01T00:00:00"}]}',
        "runs[0].started_at: '2024-02-01T00:00:00' has no time zone",
    ),
    (
        "sessions",
        b'{"session_id": "s", "runs": [{"run_id": "1", "started_at": 2e10}]}',
        "runs[0].started_at: Expected a moment between 1970 and 2200",
    ),
    (
        "messages",
        b'{"external_id": "m", "role": "user", "session_id": "s", "run_id": "nope"}',
        "run_id: There is no run 'nope'",
    ),
    (
        "messages",
        b'{"external_id": "m", "role": "user", "run_id": "1"}',
        "session_id: Needed to find run_id",
    ),
    ("memories", b'{"content": ""}', "content: It must not be empty."),
    (
        "memories",
        b'{"content": "x", "importance": 1.5}',
        "importance: A number of at most 1 is needed",
    ),
    ("memories", b'{"content": "x", "embedding": [1, 2]}', "embedding: 2 numbers are given; an"),
    (
        "memories",
        b'{"content": "x", "embedding": [' + b", ".join([b"0"] * 384) + b"]}",
        "embedding: An embedding of only zeros has no direction.",
    ),
    (
        "memories",
        b'{"content": "' + "ä".encode() * 140_000 + b'"}',
        "content: 280,000 bytes; the limit is 262,144",
    ),
]


@pytest.mark.parametrize(("resource", "line", "message"), BAD)
def test_each_refusal_says_where_and_why(acme, tmp_path, resource, line, message):
    with pytest.raises(CommandError, match="line 2: ") as refusal:
        good = {
            "users": b'{"external_id": "good"}',
            "blocks": b'{"external_id": "good", "label": "x"}',
            "sessions": b'{"session_id": "good"}',
            "messages": b'{"external_id": "good", "role": "user"}',
            "memories": b'{"content": "good"}',
        }[resource]
        load(tmp_path, resource, [good, line])
    assert message in str(refusal.value)
    assert "Nothing is stored." in str(refusal.value)


def test_strict_references_are_refused_by_name(acme, tmp_path):
    with pytest.raises(CommandError, match="line 1: agent_id: There is no agent 'a'"):
        load(tmp_path, "sessions", [{"session_id": "s", "agent_id": "a"}], strict_references=True)


def test_gzip_is_unpacked_and_a_truncated_file_is_refused(acme, tmp_path):
    data = b"".join(b'{"external_id": "user-%d"}\n' % n for n in range(5000))
    file = tmp_path / "users.jsonl.gz"
    file.write_bytes(gzip.compress(data))
    assert load_file(file, "users")["inserted"] == 5000
    file.write_bytes(gzip.compress(data)[:-2000])
    with pytest.raises(CommandError, match="end-of-stream marker") as refusal:
        load_file(file, "users", batch_size=100)
    assert refusal.value.returncode == 2
    assert "are committed" in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "message", "code"),
    [
        ({"organization": "nowhere"}, "There is no organization 'nowhere'", 77),
        ({"actor": "eve@acme.example"}, "There is no active member", 77),
        ({"batch_size": 0}, "--batch-size is at least 1", 2),
    ],
)
def test_wrong_options_are_refused_before_any_work(acme, tmp_path, options, message, code):
    with pytest.raises(CommandError, match=message) as refusal:
        load(tmp_path, "users", [{"external_id": "u"}], **options)
    assert refusal.value.returncode == code


@pytest.mark.parametrize("name", ["absent.jsonl", "."])
def test_an_unreadable_file_is_refused(acme, tmp_path, name):
    with pytest.raises(CommandError, match=r"No such file|Is a directory") as refusal:
        load_file(tmp_path / name, "users")
    assert refusal.value.returncode == 2


def test_blank_lines_and_a_byte_order_mark_are_no_lines(acme, tmp_path):
    file = tmp_path / "users.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"external_id": "u"}\r\n\r\n   \n{"external_id": "v"}')
    assert load_file(file, "users")["inserted"] == 2
    file.write_bytes(b"\xef\xbb\xbf")
    assert load_file(file, "users")["read"] == 0


def test_the_site_starts_without_the_heavy_libraries():
    code = (
        "import django, sys; django.setup(); import agentmem_site.services.loads; "
        "print([m for m in ('rich.progress', 'torch', 'numpy', 'pyarrow') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "agentmem_site.settings"},
    )
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("timeout", [-1.0, float("nan"), float("inf"), 1e9])
def test_a_timeout_out_of_range_is_a_usage_error(acme, tmp_path, timeout):
    with pytest.raises(CommandError) as refusal:
        load(tmp_path, "users", [{"external_id": "u"}], timeout=timeout)
    assert refusal.value.returncode == 2


@pytest.mark.parametrize("number", [b"1e200000", b"1e-200000", b"9" * 140_000])
def test_a_number_that_jsonb_cannot_hold_is_refused_by_line_and_field(acme, tmp_path, number):
    good = [{"session_id": f"s{n}", "runs": [{"run_id": "a"}, {"run_id": "b"}]} for n in range(3)]
    bad = b'{"session_id": "s3", "state": {"n": ' + number + b"}}"
    with pytest.raises(CommandError) as refusal:
        load(tmp_path, "sessions", [good[0], *good, bad])
    assert "line 5: state.n: " in str(refusal.value)
    assert refusal.value.returncode == 65
    bad = b'{"session_id": "s3", "runs": [{"run_id": "a", "metadata": {"n": ' + number + b"}}]}"
    with pytest.raises(CommandError) as refusal:
        load(tmp_path, "sessions", [good[0], *good, bad])
    assert "line 5: runs[0].metadata.n: " in str(refusal.value)
    assert refusal.value.returncode == 65


def test_the_file_of_rejects_is_never_the_file_to_load(acme, tmp_path):
    file = tmp_path / "users.jsonl"
    file.write_text('{"external_id": "u1"}\n')
    (link := tmp_path / "rejects.jsonl").symlink_to(file)
    with pytest.raises(CommandError, match="--rejects is the file to load") as refusal:
        load_file(file, "users", on_error="skip", rejects=link)
    assert refusal.value.returncode == 2
    assert file.read_text() == '{"external_id": "u1"}\n'


def test_a_file_whose_name_is_no_text_is_loaded(acme, tmp_path):
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl"))
    file.write_text('{"external_id": "u1"}\n')
    assert load_file(file, "users")["inserted"] == 1


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ({"throttle": float("inf")}, "--throttle is 0 to 3,600,000"),
        ({"throttle": float("nan")}, "--throttle is 0 to 3,600,000"),
        ({"max_line": 2**63}, "--max-line is at most 1,073,741,824"),
        ({"organization": "\udcff"}, "There is no organization"),
        ({"actor": "\udcff"}, "There is no active member"),
    ],
    ids=str,
)
def test_an_invalid_option_value_is_refused(acme, tmp_path, option, complaint):
    with pytest.raises(CommandError, match=complaint):
        load(tmp_path, "users", [{"external_id": "u1"}], **option)


def test_a_reject_does_not_copy_its_line(acme, tmp_path):
    bad = [
        {"external_id": "u1", "x" * 100_000: 1},
        {"external_id": "u2", "status": "x" * 100_000},
        {"external_id": "u3", "metadata": {"x" * 100_000: "\0"}},
    ]
    rejects = tmp_path / "rejects.jsonl"
    with pytest.raises(CommandError, match="3 lines are rejected"):
        load(tmp_path, "users", bad, on_error="skip", rejects=rejects)
    assert [line.count(b"x") < 205 for line in rejects.read_bytes().splitlines()] == [True] * 3


@pytest.mark.parametrize("table", ["accounts_organization", "accounts_auditevent"])
def test_a_role_without_privileges_is_reported(acme, tmp_path, table):
    denied = connection.execute_wrapper(partial(_deny, table))
    with denied, pytest.raises(CommandError, match="permission denied") as refusal:
        load(tmp_path, "users", [{"external_id": "u1"}])
    assert refusal.value.returncode == 77


def _deny(table, execute, statement, parameters, many, context):
    if table in str(statement):
        raise ProgrammingError("permission denied") from errors.InsufficientPrivilege()
    return execute(statement, parameters, many, context)
