"""Lines of users, good ones among lines broken in every way, and a judge that knows which is which.

The judge shares nothing with the loader but the names of the fields: it reads with Python's own
JSON, slowly. So it tells also what becomes of a line whose bytes were changed at random.
"""

import json
import random
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

from django.core.exceptions import ValidationError
from django.core.validators import validate_email

MAX_LINE_BYTES = 1024 * 1024
LENGTHS = {"name": (0, 255), "email": (0, 254), "timezone": (1, 64)}
STATUSES = ("active", "inactive")
DEFAULTS = {"name": "", "email": None, "timezone": "UTC", "status": "active", "metadata": {}}
ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz",
    'ab "\\/\b\f\n\r\t{}[]:,',
    "äöüß€ΩЖ中文",
    "😀🎉𝄞\u2028\ufeff\x7f\xa0",
]


class Bad(Exception):
    """What is wrong with a line."""


def lines(seed: int, count: int) -> Iterator[bytes]:
    """So many lines without their ends; about half are as they should be."""
    chance = random.Random(seed)
    for number in range(count):
        line = _line(chance, number)
        kind = chance.random()
        if kind < 0.2:
            line = chance.choice(_BREAKING)(chance, line)
        elif kind < 0.5:
            line = _operated(chance, line)
        yield line.replace(b"\n", b" ")


def row_of(line: bytes) -> dict[str, Any] | None:
    """The row that a line stands for, None for a blank one; its JSON's numbers are floats.

    Raises: Bad.
    """
    if not line.strip():
        return None
    if len(line) > MAX_LINE_BYTES:
        raise Bad("too long")
    try:
        text = line.decode("utf-8", "strict")
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_whole,
            parse_float=_real,
            parse_constant=_constant,
        )
    except RecursionError as error:
        raise Bad("too deep") from error
    except ValueError as error:
        raise Bad(str(error)) from error
    _walk(value, 1)
    if not isinstance(value, dict):
        raise Bad("no object")
    for name, item in value.items():
        if name == "external_id":
            value[name] = _key(item)
        elif name in LENGTHS:
            _text(name, item)
            if name == "email" and item is not None:
                value[name] = _email(item.strip())
        elif name == "status":
            if item is not None and (not isinstance(item, str) or item not in STATUSES):
                raise Bad("status")
        elif name == "metadata":
            if item is not None and not isinstance(item, dict):
                raise Bad("metadata")
        elif name in ("created_at", "updated_at"):
            _moment(item)
        else:
            raise Bad(f"unknown field {name!r}")
    if "external_id" not in value:
        raise Bad("no external_id")
    known = {name: value[name] for name in DEFAULTS if value.get(name) is not None}
    return {"external_id": value["external_id"], **DEFAULTS, **known}


# -- the judge -----------------------------------------------------------------------------------


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise Bad("a key twice")
    return dict(pairs)


class Whole(float):
    """An integer, and how it was written."""

    text: str


def _whole(text: str) -> float:
    if len(text.lstrip("-")) > 38:
        raise Bad("digits")
    number = Whole(text)
    number.text = text
    return number


def _real(text: str) -> float:
    number = Decimal(text)
    exponent = number.as_tuple().exponent
    if not number.is_finite() or not isinstance(exponent, int):
        raise Bad("digits")
    whole = re.split("[.eE]", text.lstrip("-"))[0]
    if len(whole) > 38 or (number and number.adjusted() >= 38):
        raise Bad("digits")
    if exponent < -16_383 or exponent > 16_383:
        raise Bad("digits")
    return float(number)


def _constant(name: str) -> None:
    raise Bad(name)


def _walk(value: Any, depth: int) -> None:
    if isinstance(value, str):
        if re.search("[\0\ud800-\udfff]", value):
            raise Bad("text")
    elif isinstance(value, dict | list):
        if depth > 64:
            raise Bad("too deep")
        for item in [*value, *(value.values() if isinstance(value, dict) else ())]:
            _walk(item, depth + 1)


def _key(item: Any) -> str:
    key = str(int(item.text)) if isinstance(item, Whole) else item
    if not isinstance(key, str) or not 1 <= len(key.strip()) <= 255:
        raise Bad("external_id")
    if re.search("[\0-\x1f\x7f-\x9f\u2028\u2029]", key.strip()):
        raise Bad("external_id")
    return key.strip()


def _email(address: str) -> str:
    try:
        if address:
            validate_email(address)
    except ValidationError as error:
        raise Bad("email") from error
    return address


def _text(name: str, item: Any) -> None:
    least, most = LENGTHS[name]
    if item is None:
        return
    if not isinstance(item, str) or not least <= len(item) <= most:
        raise Bad(name)


_MOMENTS: dict[Any, bool] = {
    "2024-02-29T12:00:00Z": True,
    "2024-02-01T12:00:00.123456+05:30": True,
    "1970-01-01T00:00:00Z": True,
    "2199-12-31T23:59:59Z": True,
    1_700_000_000.0: True,
    None: True,
    "2023-02-29T12:00:00Z": False,
    "2024-02-30T00:00:00Z": False,
    "2024-02-01T12:00:00": False,
    "2024-02-01": True,
    "infinity": False,
    "-infinity": False,
    "1969-12-31T23:59:59Z": False,
    "2200-01-01T00:00:00Z": False,
    "2024-02-01T25:00:00Z": False,
    "now": False,
    -1.0: False,
    1e18: True,
    2e10: False,
    True: False,
}


def _moment(item: Any) -> None:
    """(Lines with a moment are not changed at random: the list is all that occurs.)"""
    if isinstance(item, dict | list) or not _MOMENTS[item]:
        raise Bad("moment")


# -- lines ---------------------------------------------------------------------------------------


def _word(chance: random.Random, most: int = 12) -> str:
    return "".join(chance.choices(chance.choice(ALPHABETS), k=chance.randint(0, most)))


def _number(chance: random.Random) -> Any:
    return chance.choice(
        [
            chance.randint(-5, 5),
            chance.randint(-(10**18), 10**18),
            10 ** chance.randint(18, 37),
            round(chance.uniform(-1000, 1000), 3),
            chance.gauss(0, 1),
            chance.uniform(-1, 1) * 10.0 ** chance.randint(-300, 36),
        ]
    )


def _value(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.random()
    if kind < 0.15 and depth < 5:
        return [_value(chance, depth + 1) for _ in range(chance.randint(0, 4))]
    if kind < 0.35 and depth < 5:
        return _metadata(chance, depth + 1)
    if kind < 0.4:
        return [chance.gauss(0, 1) for _ in range(chance.randint(40, 90))]
    if kind < 0.6:
        return _number(chance)
    return _word(chance) if kind < 0.9 else chance.choice([True, False, None])


def _metadata(chance: random.Random, depth: int = 0) -> dict[str, Any]:
    return {_word(chance): _value(chance, depth) for _ in range(chance.randint(0, 4))}


def _line(chance: random.Random, number: int) -> bytes:
    row: dict[str, Any] = {"external_id": f"user-{number}"}
    if chance.random() < 0.7:
        row["metadata"] = _metadata(chance)
    if chance.random() < 0.4:
        row["name"] = _word(chance, 250)
    if chance.random() < 0.3:
        row["email"] = chance.choice([None, f"user{number}@acme.example"])
    if chance.random() < 0.2:
        row["timezone"] = "Europe/Berlin"
    if chance.random() < 0.3:
        row["status"] = chance.choice(STATUSES)
    return _written(chance, row)


def _written(chance: random.Random, row: dict[str, Any]) -> bytes:
    separators = chance.choice([(",", ":"), (", ", ": "), (" ,\t", " : ")])
    text = json.dumps(row, ensure_ascii=chance.random() < 0.5, separators=separators)
    return text.encode() + chance.choice([b"", b"", b"\r", b"  "])


# -- breaking them -------------------------------------------------------------------------------

Breaking = Callable[[random.Random, bytes], bytes]


def _with(*given: str) -> Breaking:
    """The line with one of those (as it is written) for its metadata."""

    def breaking(chance: random.Random, line: bytes) -> bytes:
        row = json.loads(line)
        row["metadata"] = {"a": _value(chance), "here": "@"}
        return _written(chance, row).replace(b'"@"', chance.choice(given).encode())

    return breaking


def _field(name: str, *given: Any) -> Breaking:
    def breaking(chance: random.Random, line: bytes) -> bytes:
        return _written(chance, {**json.loads(line), name: chance.choice(given)})

    return breaking


def _nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def _without_key(chance: random.Random, line: bytes) -> bytes:
    row = json.loads(line)
    del row["external_id"]
    return _written(chance, row)


def _repeating(chance: random.Random, line: bytes) -> bytes:
    name, value = chance.choice(list(json.loads(line).items()))
    again = f"{json.dumps(name)}{chance.choice([':', ' : '])}{json.dumps(value)}, ".encode()
    return line.replace(b"{", b"{" + again, 1)


def _cut(chance: random.Random, line: bytes) -> bytes:
    return line[: chance.randrange(len(line))]


def _moved(chance: random.Random, line: bytes) -> bytes:
    name = chance.choice(["created_at", "updated_at"])
    moments = [1_700_000_000 if m == 1_700_000_000.0 else m for m in _MOMENTS]
    return _written(chance, {**json.loads(line), name: chance.choice(moments)})


def _too_long(chance: random.Random, line: bytes) -> bytes:
    if chance.random() < 0.99:
        return line
    size = MAX_LINE_BYTES + chance.choice([-1, 0, 1, 100_000]) - len(line)
    return line + b" " * size


def _replaced(chance: random.Random, line: bytes) -> bytes:
    return chance.choice(
        [b"[]", b"null", b"{}", b'"x"', b"17", b"", b"   ", b"\t\r", b"{}{}", line[::-1]]
    )


_BREAKING: list[Breaking] = [
    _with('"\\u0000"', '"a\\u0000b"', '{"\\u0000": 1}', '"\\\\u0000"', '"\\\\\\u0000"'),
    _with('"\\ud800"', '"\\udc00"', '"\\ud83d\\ude00"', '"\\ud83d \\ude00"', '"\\ude00\\ud83d"'),
    _with("NaN", "Infinity", "-Infinity", "nan", "1e400", "-1e400", "1e-400", "1e-20000"),
    _with(
        "9" * 38, "9" * 39, "-" + "9" * 39, "1e38", "1e37", "9.9e37", "0." + "1" * 60, "9" * 5000
    ),
    _with("0e5", "0e99999", "-0", "-0.0", "01", "+1", "1.", ".5", "0x10", "1E5", "1e+05"),
    _with(_nested(62), _nested(63), _nested(100), _nested(20_000), '{"a":' * 62 + "1" + "}" * 62),
    _with(
        '{"a": 1, "a": 1}', '[{"a": 1, "b": 1, "\\u0061": 2}]', '{"a": {"a": 1}, "b": [{"a": 1}]}'
    ),
    _with(
        '"' + "[{" * 60 + '"', '"\\":\\":"', '"\\u003a"', '{"\\u003a": 1, ":": 2}', '"{\\"a\\":1}"'
    ),
    _with("[" + "0.5, " * 300 + "1]", "[" + "0.5, " * 300 + "1e99]", "[" + "0.5, " * 300 + "]"),
    _field("metadata", None, {}, [], "x", 7, True),
    _field("name", None, "", "x" * 255, "x" * 256, "😀" * 255, "😀" * 256, 7, ["x"], {}),
    _field("external_id", None, "", "x" * 256, 7, -0, 7.5, True, [], " a\t", " ", "a\tb", "a b"),
    _field("status", None, "active", "Active", "asleep", "", 0),
    _field(
        "email", "x" * 254, "x" * 255, "", " a@b.example ", "a b@c.example", "a@b", "ä@ö.example"
    ),
    _field("timezone", "x" * 64, "x" * 65),
    _field("nmae", "Ann"),
    _field("organization_id", "019a0000-0000-7000-8000-000000000000"),
    _field("id", "019a0000-0000-7000-8000-000000000000"),
    _without_key,
    _repeating,
    _cut,
    _moved,
    _too_long,
    _replaced,
]
_GRAFTS = [
    b"\0",
    b"\xff",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
]
_GRAFTS += [
    b" ",
    b"\r",
    b"\t",
    b"\xef\xbb\xbf",
    b"\\u0000",
    b"\\ud83d",
    b"e",
    b"-",
    b".",
    b"0",
    b"null",
]


def _operated(chance: random.Random, line: bytes) -> bytes:
    """The line with a few bytes changed, cut out, put in, or doubled."""
    changed = bytearray(line)
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        at = chance.randrange(len(changed) + 1)
        to = min(at + chance.choice([1, 1, 2, 10, 50]), len(changed))
        what = chance.random()
        if what < 0.3:
            changed[at:to] = b""
        elif what < 0.6:
            changed[at:at] = chance.choice(_GRAFTS)
        elif what < 0.8:
            changed[at:at] = changed[at:to]
        else:
            changed[at : at + 1] = bytes([chance.randrange(256)])
    return bytes(changed)
