"""JSON that is kept as it came: what PostgreSQL or Python could not keep is refused."""

import json
import re
from typing import Any

from agentmem_site.bulk.checks import MAX_DEPTH, number_fault

_UNKEPT = re.compile("[\0\ud800-\udfff]")


class RefusedJson(Exception):
    """The message says why."""


def parse_json(body: bytes, *, called: str = "This") -> Any:
    """Raises: RefusedJson."""
    try:
        value = _decoder.decode(body.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RefusedJson(f"{called} is not UTF-8 (byte {error.start}).") from error
    except json.JSONDecodeError as error:
        raise RefusedJson(
            f"{called} is not JSON: {error.msg} (line {error.lineno}, column {error.colno})."
        ) from error
    except RecursionError as error:
        raise RefusedJson(f"The JSON is nested deeper than {MAX_DEPTH} levels.") from error
    _refuse_unkept(value)
    return value


def _refuse_unkept(value: Any) -> None:
    level: list[Any] = [value]
    depth = 0
    while level:
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                if _UNKEPT.search(item):
                    raise RefusedJson("Text holds a NUL character or half of a surrogate pair.")
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
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RefusedJson(f"The key {twice[:80]!r} is given twice.")
    return made


_decoder = json.JSONDecoder(object_pairs_hook=_object, parse_int=str, parse_float=str)
_decoder = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_real, parse_int=_whole, parse_constant=_constant
)
