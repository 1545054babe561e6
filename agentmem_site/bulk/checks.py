"""What a line of JSON must not contain, for every resource. Called for every line.

Cheap filters come first. They pass most good lines, and never a bad one. An exact parse, at ten
times the cost, decides about the rest and says what is wrong and where.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from agentmem_site.bulk.encoding import hint
from agentmem_site.bulk.spec import LineError

MAX_DEPTH = 64
MAX_DIGITS = 38
MAX_DECIMALS = 16_383  # PostgreSQL's limit after the decimal point
_VECTOR_BYTES = 512
_PATH_CHARACTERS = 200

_ESCAPE = re.compile(rb"\\(u[0-9a-fA-F]{4}|.)")
# NUL, half of a surrogate pair, a colon.
_CRITICAL_ESCAPE = re.compile(rb"\\u(?:0000|[dD][89a-fA-F]|003[aA])")
_NUMBER = re.compile(r"-?(\d+)(?:\.(\d+))?(?:[eE]([-+]?)(\d+))?")
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_UNPRINTABLE = re.compile("[\0-\x1f\x7f\ud800-\udfff]")
_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_TOO_MANY_DIGITS = b"0" * (MAX_DIGITS + 1)
_COLON = 0x3A
_EVERY = 6  # a run of too many digits has at least six in every sixth byte
_SAMPLE = b"0" * ((MAX_DIGITS + 1) // _EVERY)
_NO_OPENERS = bytes(set(range(256)) - set(b"[{"))
_OF_NUMBERS = b"0123456789+-.eE, "
_TOO_DEEP = b"\n" + b" " * MAX_DEPTH


def check_line(line: bytes) -> None:
    """Refuses what PostgreSQL cannot store or Python cannot read back, and duplicate keys.

    Raises: LineError.
    """
    if not line.isascii():
        try:
            line.decode()
        except UnicodeDecodeError as error:
            raise LineError(
                "invalid_utf8", "", f"Invalid UTF-8 at byte {error.start} of the line{hint(line)}"
            ) from error
    if b"\\" in line and _CRITICAL_ESCAPE.search(line) and not _has_only_pairs(line):
        _refuse_inexact(line)
        return
    body = _without_vectors(line) if len(line) > 2 * _VECTOR_BYTES else line
    if _has_many_digits(body):
        _refuse_inexact(line)
    try:
        encoded = _encode(_decode(body))
    except (msgspec.DecodeError, RecursionError) as error:
        _refuse_inexact(line, error)
        return
    # A duplicate key is decoded once, so that one colon is lost. (Nothing else loses one.)
    if encoded != body and encoded.count(b":") != body.count(b":"):
        _refuse_inexact(line)
    if len(body.translate(None, _NO_OPENERS)) > MAX_DEPTH and _TOO_DEEP in msgspec.json.format(
        line, indent=1
    ):
        _refuse_inexact(line)


def number_fault(text: str) -> str:
    """Why a JSON number is refused, or "". jsonb stores numbers of a hundred thousand digits, but
    Python refuses to read them back."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return "NaN and Infinity are not JSON"
    whole, decimals, sign, exponent = match[1], match[2] or "", match[3], match[4] or ""
    # (Python refuses to read an exponent of thousands of digits, too.)
    power = int(exponent.lstrip("0")[:9] or "0") * (-1 if sign == "-" else 1)
    digits = (whole + decimals).lstrip("0")
    size = len(digits) - len(decimals) + power  # digits before the point
    if len(whole) > MAX_DIGITS or size > (MAX_DIGITS if digits else MAX_DECIMALS):
        return f"A number has more than {MAX_DIGITS} digits"
    if len(decimals) - power > MAX_DECIMALS:
        return f"A number has more than {MAX_DECIMALS:,} digits after the decimal point"
    return ""


def _real(text: str) -> msgspec.Raw:
    if ("e" in text or "E" in text or len(text) > MAX_DIGITS) and number_fault(text):
        raise ValueError("(the exact parse says why)")
    return msgspec.Raw(text.encode())  # unchanged


_decode = msgspec.json.Decoder(float_hook=_real).decode
_encode = msgspec.json.Encoder().encode


def _has_only_pairs(line: bytes) -> bool:
    """Whether all critical escapes are complete surrogate pairs: emoji, in most lines."""
    expected = -1  # where the low half of a pair must start
    for escape in _ESCAPE.finditer(line):
        code = int(escape[1][1:], 16) if len(escape[1]) == 5 else -1
        if code in (0, _COLON) or (0xDC00 <= code <= 0xDFFF) != (expected == escape.start()):
            return False
        expected = escape.end() if 0xD800 <= code <= 0xDBFF else -1
    return expected < 0


def _has_many_digits(text: bytes) -> bool:
    return _SAMPLE in text[::_EVERY].translate(_DIGITS) and _TOO_MANY_DIGITS in text.translate(
        _DIGITS
    )


def _without_vectors(line: bytes) -> bytes:
    """The line with its long arrays of harmless numbers emptied: they cost the most to parse.

    Only arrays that are a key's value. The key's quote follows a letter, so it closes the key and
    does not open a string that looks like an array.
    """
    sample = line[:: _VECTOR_BYTES // 8]
    if 2 * len(sample.translate(None, _OF_NUMBERS)) > len(sample):
        return line  # it has few numbers
    kept, done, start = [], 0, 0
    while (start := line.find(b"[", start) + 1) > 0:
        before = line[max(start - 6, 0) : start - 1].rstrip()
        end = line.find(b"]", start)
        if (
            end - start > _VECTOR_BYTES
            and before.endswith(b":")
            and (key := before[:-1].rstrip()).endswith(b'"')
            and key[-2:-1].isalpha()
            and _is_harmless(line[start:end])
        ):
            kept.append(line[done:start])
            done = end
    return b"".join([*kept, line[done:]]) if kept else line


def _is_harmless(numbers: bytes) -> bool:
    if numbers.translate(None, _OF_NUMBERS) or _has_many_digits(numbers):
        return False
    place = -1
    for sign in b"eE":
        while (place := numbers.find(sign, place + 1)) >= 0:
            # As in -0.5e-05: a negative exponent of one or two digits.
            exponent = numbers[place + 1 : place + 5].split(b",")[0].strip()
            if not (exponent.startswith(b"-") and len(exponent) <= 3):
                return False
    return True


# -- the exact parse -----------------------------------------------------------------------------


class _Object(list[tuple[str, Any]]):
    """The keys and values of an object, including duplicate keys."""


class _Number(str):
    """A number as it is written."""


_exactly = json.JSONDecoder(
    object_pairs_hook=_Object, parse_int=_Number, parse_float=_Number, parse_constant=_Number
)


def _refuse_inexact(line: bytes, cause: Exception | None = None) -> None:
    """Raises: LineError, with the path of the fault. Returns if there is neither a fault nor a
    `cause`."""
    try:
        fault = next(_faults(_exactly.decode(line.decode()), (), 1), None)
    except RecursionError as error:
        raise LineError("too_deep", "", _DEPTH) from error
    except json.JSONDecodeError as error:
        message = str(cause) if cause else f"{error.msg} (byte {error.pos})"
        raise LineError("malformed_json", "", message) from error
    if fault is not None:
        raise fault from cause
    if cause is not None:
        raise LineError("malformed_json", "", str(cause)) from cause


_DEPTH = f"Nested deeper than {MAX_DEPTH} levels"


def _faults(value: Any, path: tuple[str, ...], depth: int) -> Iterator[LineError]:
    """Every fault of a value, in the order of the line. The line itself has depth 1."""
    if isinstance(value, _Number):
        if reason := number_fault(value):
            code = "not_finite" if value.lstrip("-")[0] in "NI" else "number_too_long"
            yield LineError(code, _named(path), reason)
    elif isinstance(value, str):
        yield from _text_faults(value, path)
    elif isinstance(value, list):
        if depth > MAX_DEPTH:
            yield LineError("too_deep", _named(path[:1]), _DEPTH)
            return
        if not isinstance(value, _Object):
            for place, item in enumerate(value):
                yield from _faults(item, (*path, f"[{place}]"), depth + 1)
            return
        keys = set()
        for key, item in value:
            below = (*path, f".{key}")
            yield from _text_faults(key, below)
            if key in keys:
                yield LineError("duplicate_key", _named(below), "The key is given twice")
            keys.add(key)
            yield from _faults(item, below, depth + 1)


def _text_faults(text: str, path: tuple[str, ...]) -> Iterator[LineError]:
    if match := _UNSTORABLE.search(text):
        if match[0] == "\0":
            message = "Text cannot hold the character \\u0000"
            yield LineError("nul_character", _named(path), message)
        else:
            yield LineError("lone_surrogate", _named(path), "Half of a surrogate pair")


def _named(path: tuple[str, ...]) -> str:
    """A name like runs[0].metadata.key, with unprintable characters replaced."""
    name = "".join(path).removeprefix(".")[:_PATH_CHARACTERS]
    return _UNPRINTABLE.sub("\ufffd", name)
