"""A strict JSON parser: it refuses what PostgreSQL or Python could not store unchanged."""

import json
import re
from typing import Any

from agentmem_site.bulk.checks import MAX_DEPTH, number_fault

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


class RefusedJson(Exception):
    """The message says why."""


def parse_json(body: bytes, *, name: str = "This") -> Any:
    """Raises: RefusedJson."""
    try:
        value = _decoder.decode(body.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RefusedJson(f"{name} is not UTF-8 (byte {error.start}).") from error
    except json.JSONDecodeError as error:
        raise RefusedJson(
            f"{name} is not JSON: {error.msg} (line {error.lineno}, column {error.colno})."
        ) from error
    except RecursionError as error:
        raise RefusedJson(f"The JSON is nested deeper than {MAX_DEPTH} levels.") from error
    _refuse_unstorable(value)
    return value


def _refuse_unstorable(value: Any) -> None:
    level: list[Any] = [value]
    depth = 0
    while level:
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                if _UNSTORABLE.search(item):
                    raise RefusedJson("A string contains a NUL character or a lone surrogate.")
            elif isinstance(item, dict):
                below += item.keys()
                below += item.values()
            elif isinstance(item, list):
                below += item
        level = below
        depth += any(isinstance(item, dict | list) for item in level)
        if depth >= MAX_DEPTH:
            raise RefusedJson(f"The JSON is nested deeper than {MAX_DEPTH} levels.")


def _whole(digits: str) -> int:
    _refuse_number(digits)
    return int(digits)


def _real(text: str) -> float:
    _refuse_number(text)
    return float(text)


def _refuse_number(text: str) -> None:
    if reason := number_fault(text):
        raise RefusedJson(f"{reason}.")


def _constant(name: str) -> None:
    raise RefusedJson(f"{name} is not JSON.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RefusedJson(f"The key {twice[:80]!r} is given twice.")
    return value


_decoder = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_real, parse_int=_whole, parse_constant=_constant
)
