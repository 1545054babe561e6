"""What no file may put into a row: refused by line, field and reason, through the command."""

import json

import msgspec
import pytest
from django.core.management import CommandError

from accounts.models import User
from accounts.tenancy import tenant
from agentmem_site.bulk.checks import MAX_DEPTH, check_line, number_fault
from agentmem_site.bulk.spec import LineError
from tests.bulk.loading import load

GOOD = {
    "users": b'{"external_id": "good"}',
    "blocks": b'{"external_id": "good", "label": "x"}',
    "sessions": b'{"session_id": "good"}',
    "messages": b'{"external_id": "good", "role": "user"}',
    "memories": b'{"content": "good"}',
}
NUL = "Text cannot hold the character \\u0000"
HALF = "Half of a surrogate pair"
LONG = "A number has more than 38 digits"
MOMENT = "Expected a moment between 1970 and 2200"
NOT_FINITE = "NaN and Infinity are not JSON"


def user(metadata: bytes) -> bytes:
    return b'{"external_id": "u", "metadata": ' + metadata + b"}"


def expiring(moment: bytes) -> bytes:
    return b'{"content": "c", "expires_at": ' + moment + b"}"


def memory(numbers: list[bytes]) -> bytes:
    return b'{"content": "c", "embedding": [' + b", ".join(numbers) + b"]}"


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


TABLE = [
    # text
    ("users", b'{"external_id": "a\\u0000b"}', "nul_character", "external_id", NUL),
    ("users", user(b'{"\\u0000": 1}'), "nul_character", "metadata.\ufffd", NUL),
    ("users", user(b'{"a": ["\\\\\\u0000"]}'), "nul_character", "metadata.a[0]", NUL),
    ("users", b'{"external_id": "a\0b"}', "malformed_json", "", "invalid character (byte 18)"),
    ("users", user(b'{"a": "\\ud800"}'), "lone_surrogate", "metadata.a", HALF),
    ("users", user(b'{"a": "\\udc00\\ud800"}'), "lone_surrogate", "metadata.a", HALF),
    ("users", b'{"external_id": "\\ud83dx"}', "lone_surrogate", "external_id", HALF),
    ("users", user(b'{"\\ud83d \\ude00": 1}'), "lone_surrogate", "metadata.\ufffd \ufffd", HALF),
    ("users", b'{"external_id": "\xff"}', "invalid_utf8", "", "Invalid UTF-8 at byte 17 of the"),
    ("users", b'{"external_id": "\xed\xa0\x80"}', "invalid_utf8", "", "at byte 17 of the line"),
    ("users", b'{"external_id": "\xc0\x80"}', "invalid_utf8", "", "at byte 17 of the line"),
    # the line
    ("users", user(b'"' + b"x" * 2**20 + b'"'), "line_too_long", "", "Over 1,048,576 bytes"),
    ("users", b'{"external_id": "u"', "malformed_json", "", "Input data was truncated"),
    ("users", b'{"external_id": "u"} {}', "malformed_json", "", "trailing characters"),
    ("users", b"{'external_id': 'u'}", "malformed_json", "", "JSON is malformed"),
    ("users", b"external_id", "malformed_json", "", "JSON is malformed"),
    ("users", b"[]", "invalid_value", "", "An object is needed, got an array."),
    ("users", b"null", "invalid_value", "", "An object is needed, got null."),
    # JSON
    ("users", user(b'{"a": ' + nested(63) + b"}"), "too_deep", "metadata", "than 64 levels"),
    ("users", user(b'{"a": ' + nested(5000) + b"}"), "too_deep", "", "than 64 levels"),
    ("users", user(b'{"a":' * 64 + b"1" + b"}" * 64), "too_deep", "metadata", "than 64 levels"),
    ("users", user(b'{"a": NaN}'), "not_finite", "metadata.a", NOT_FINITE),
    ("users", user(b'{"a": [-Infinity]}'), "not_finite", "metadata.a[0]", NOT_FINITE),
    ("users", user(b'{"a": 1e400}'), "number_too_long", "metadata.a", LONG),
    ("users", user(b'{"a": -1e38}'), "number_too_long", "metadata.a", LONG),
    ("users", user(b'{"a": ' + b"9" * 39 + b"}"), "number_too_long", "metadata.a", LONG),
    ("users", user(b'{"a": -' + b"9" * 9000 + b"}"), "number_too_long", "metadata.a", LONG),
    ("users", user(b'{"a": 1e-20000}'), "number_too_long", "metadata.a", "16,383 digits after"),
    (
        "sessions",
        b'{"session_id": "s", "runs": [{"run_id": "1", "metrics": {"n": 1E+40}}]}',
        "number_too_long",
        "runs[0].metrics.n",
        LONG,
    ),
    (
        "users",
        b'{"external_id": "u", "external_id": "v"}',
        "duplicate_key",
        "external_id",
        "The key is given twice",
    ),
    ("users", user(b'{"a": {"b": 1, "c": 2, "b": 1}}'), "duplicate_key", "metadata.a.b", "twice"),
    ("users", user(b'{"a": 1, "\\u0061" : 2}'), "duplicate_key", "metadata.a", "twice"),
    (
        "sessions",
        b'{"session_id": "s", "runs": [{"run_id": "1"}, {"run_id": "2", "run_id": "3"}]}',
        "duplicate_key",
        "runs[1].run_id",
        "twice",
    ),
    # vectors
    ("memories", memory([b"1"] * 383), "invalid_vector", "embedding", "383 numbers are given"),
    ("memories", memory([b"1"] * 385), "invalid_vector", "embedding", "385 numbers are given"),
    ("memories", memory([b"0"] * 384), "invalid_vector", "embedding", "only zeros"),
    ("memories", memory([b"1"] * 383 + [b"NaN"]), "not_finite", "embedding[383]", NOT_FINITE),
    ("memories", memory([b"1"] * 383 + [b"1e999"]), "number_too_long", "embedding[383]", LONG),
    (
        "memories",
        memory([b"1"] * 383 + [b"null"]),
        "invalid_value",
        "embedding[383]",
        "A number is needed, got null.",
    ),
    ("memories", memory([b"1"] * 383 + [b"01"]), "malformed_json", "", "invalid number"),
    ("memories", memory([b"1"] * 383 + [b""]), "malformed_json", "", "trailing comma"),
    # moments
    ("memories", expiring(b'"infinity"'), "invalid_value", "expires_at", "is not a time"),
    ("memories", expiring(b'"2024-02-30T00:00:00Z"'), "invalid_value", "expires_at", "day is out"),
    ("memories", expiring(b'"2024-02-01T00:00:00"'), "invalid_value", "expires_at", "--timezone"),
    ("memories", expiring(b'"01/02/2024"'), "invalid_value", "expires_at", "--date-order"),
    ("memories", expiring(b"46053.4"), "invalid_value", "expires_at", "spreadsheet"),
    ("memories", expiring(b'"1969-12-31T23:59:59Z"'), "invalid_value", "expires_at", MOMENT),
    ("memories", expiring(b'"2200-01-01T00:00:00Z"'), "invalid_value", "expires_at", MOMENT),
    ("memories", expiring(b'"1970-01-01T00:00:00+01:00"'), "invalid_value", "expires_at", MOMENT),
    ("memories", expiring(b'"9999-12-31T23:59:59-14:00"'), "invalid_value", "expires_at", MOMENT),
    ("memories", expiring(b"-1"), "invalid_value", "expires_at", MOMENT),
    ("memories", expiring(b"2e10"), "invalid_value", "expires_at", MOMENT),
    ("memories", expiring(b"7258118400"), "invalid_value", "expires_at", MOMENT),
    # lengths
    (
        "memories",
        b'{"content": "' + "ä".encode() * 131_073 + b'"}',
        "too_long",
        "content",
        "262,146 bytes; the limit is 262,144",
    ),
    (
        "users",
        b'{"external_id": "' + b"x" * 256 + b'"}',
        "max_length",
        "external_id",
        "256 characters are given; a key has at most 255.",
    ),
    (
        "blocks",
        b'{"external_id": "b", "label": "' + b"x" * 51 + b'"}',
        "invalid_value",
        "label",
        "51 characters are given; at most 50 are allowed.",
    ),
    # fields
    (
        "users",
        b'{"external_id": "u", "nmae": "Ann"}',
        "unknown_field",
        "nmae",
        "Unknown field (do you mean name?); allowed: external_id, name, email",
    ),
    (
        "users",
        b'{"external_id": "u", "organization_id": "019a0000-0000-7000-8000-000000000000"}',
        "unknown_field",
        "organization_id",
        "Unknown field; allowed: external_id",
    ),
    ("users", b'{"name": "Ann"}', "missing_field", "external_id", "Missing"),
    (
        "users",
        b'{"external_id": null}',
        "invalid_value",
        "external_id",
        "A text or a whole number is needed, got null.",
    ),
]


def line_error(refusal: BaseException) -> LineError:
    cause: BaseException | None = refusal
    while cause is not None and not isinstance(cause, LineError):
        cause = cause.__cause__
    assert cause is not None, refusal
    return cause


@pytest.mark.parametrize(
    ("resource", "line", "code", "field", "message"),
    TABLE,
    ids=[f"{number}-{code}" for number, (_, _, code, *_) in enumerate(TABLE)],
)
def test_a_bad_line_is_refused_by_line_field_and_reason(
    acme, tmp_path, resource, line, code, field, message
):
    with pytest.raises(CommandError) as refusal:
        load(tmp_path, resource, [GOOD[resource], b"", line])
    error = line_error(refusal.value)
    assert (error.line, error.code, error.field) == (3, code, field)
    assert message in error.message
    assert refusal.value.returncode == 65
    place = f"line 3: {field}: " if field else "line 3: "
    assert place in str(refusal.value)
    assert "Nothing is stored." in str(refusal.value)


KEPT = [
    user(b'{"a": "\\ud83d\\ude00", "b": "\\\\u0000", "c": "\xf0\x9f\x98\x80"}'),
    user(b'{"a": ' + nested(MAX_DEPTH - 2) + b"}"),
    user(b'{"a": ' + b"9" * 38 + b', "b": -1e37, "c": 1e-16000, "d": 0.' + b"1" * 90 + b"}"),
    user(b'{"a": "' + b"9" * 99 + b' 1e999 NaN {{{[[[", "b": "a\\":1, \\"a\\":2"}'),
    user(b'{"a": {"a": [{"a": 1}, {"a": 1}]}, "A": 1}'),
    user(b'{"a" : 1.50, "b"\t:1E5, "c": "\\/\\u00e4\\u003a"}\r'),
    user(b'{"a": "' + b"[" * 100 + b'"}'),
]


@pytest.mark.parametrize("line", KEPT)
def test_what_only_looks_bad_is_kept_as_it_is(acme, tmp_path, line):
    assert load(tmp_path, "users", [line])["inserted"] == 1
    with tenant(acme):
        (stored,) = User.objects.for_organization(acme).values_list("metadata", flat=True)
    # (1e37 comes back as a whole number.)
    kept = json.loads(json.dumps(stored), parse_int=float)
    assert kept == json.loads(line, parse_int=float)["metadata"]


def test_moments_at_the_ends_of_what_is_allowed_are_kept(acme, tmp_path):
    moments = [b"0", b'"1970-01-01T00:00:00Z"', b'"2199-12-31T23:59:59.999999Z"', b"7258118399"]
    lines = [expiring(m).replace(b'"c"', b'"c%d"' % n) for n, m in enumerate(moments)]
    assert load(tmp_path, "memories", lines)["inserted"] == 4


# -- the check by itself -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "is_fine"),
    [
        (rb'{"a": "\ud83d\ude00"}', True),
        (rb'{"a": "\\u0000"}', True),  # a backslash and letters
        (rb'{"a": "\\\u0000"}', False),
        (rb'{"a": "\ude00"}', False),
        (rb'{"a": "\ud83d \ude00"}', False),
        (rb'{"a": "\ud83dx"}', False),
        (rb'{"a": "\ud83d\ud83d\ude00"}', False),
        (rb'{"a": "\u00e4\n"}', True),
        (rb'{"a": 1, "a": "\u003a"}', False),  # a colon more, and a key less
        (rb'{"a": "\\u003a", "b": 1}', True),
    ],
)
def test_escapes_are_distinguished(line, is_fine):
    if is_fine:
        check_line(line)
    else:
        with pytest.raises(LineError):
            check_line(line)


def test_long_arrays_of_numbers_hide_nothing():
    numbers = b", ".join([b"0.25"] * 400)
    check_line(b'{"v": [' + numbers + b"]}")
    check_line(b'{"v": [' + numbers + b', 1e-05, -2.5e-7], "w": [1e5]}')
    for bad in (
        b'{"v": [' + numbers + b', 1e38], "w": 1}',
        b'{"v": [' + numbers + b', 1E+99], "w": 1}',
        b'{"v": [' + numbers + b', 1e-99999], "w": 1}',
        b'{"v": [' + numbers + b", " + b"1" * 39 + b"]}",
        b'{"v": [' + numbers + b'], "v": [' + numbers + b"]}",
        b'{"v": [' + numbers + b'], "w": {"v": 1, "v": 2}}',
        b'{"v": [' + numbers + b'], "w": "\\u0000"}',
        # keys that look like arrays
        b'{":\\u005b' + numbers + b']": 1, ":[' + numbers + b']": 2}',
        b'{"a:[' + numbers + b']": 1, "a:[' + numbers + b']": 2}',
        b'{"a": ":[' + numbers + b']", "a": ":[' + numbers + b']"}',
        b'{"\\"a\\":[' + numbers + b']": 1, "\\"a\\":[' + numbers + b']": 2}',
    ):
        with pytest.raises(LineError):
            check_line(bad)


@pytest.mark.parametrize("openers", [10, 200])
def test_depth_is_what_counts_not_the_number_of_brackets(openers):
    flat = b"[" + b",".join([b"{}"] * openers) + b"]"
    check_line(b'{"a": "' + b"[{" * openers + b'", "b": ' + flat + b"}")
    check_line(b'{"a": ' + flat + b', "b": ' + nested(63) + b"}")
    with pytest.raises(LineError, match="64 levels"):
        check_line(b'{"a": ' + flat + b', "b": ' + nested(64) + b"}")


@pytest.mark.parametrize(
    ("number", "is_fine"),
    [
        ("0", True),
        ("-" + "9" * 38, True),
        ("1" + "0" * 38, False),
        ("9.99e37", True),
        ("1e38", False),
        ("0.001e40", True),
        ("0.01e40", False),
        ("1e-16383", True),
        ("1e-16384", False),
        ("0e99999999999999999999", False),
        ("10e0000000000000000000", True),
        ("10e-000000000000000001", True),
        ("1e-99999999999999999999", False),
        ("NaN", False),
        ("-Infinity", False),
    ],
)
def test_numbers_are_what_jsonb_and_python_both_keep(number, is_fine):
    assert (number_fault(number) == "") == is_fine


def test_what_the_check_lets_through_msgspec_reads_as_python_does():
    line = KEPT[0]
    check_line(line)
    assert msgspec.json.decode(line) == json.loads(line)
