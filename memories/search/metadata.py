"""Compiles conditions on metadata to one jsonpath predicate, which is passed as a parameter.

    {"topic": "travel", "size": {"gte": 3, "lt": 9}, "or": [{"a.b": 1}, {"not": {"c": True}}]}

A dot goes one level down. As in PostgreSQL's lax mode, a list matches when one of its elements
does. Only values of the same type compare: a text is neither greater nor less than a number.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from accounts.errors import Invalid

MAX_CONDITIONS = 64
MAX_DEPTH = 8
MAX_TEXT_LENGTH = 1000
_ORDER = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_OPERATORS = ("eq", "ne", "in", *_ORDER, "contains", "exists")
_NEVER = "(1 == 0)"


def compile_metadata(conditions: Any, *, field: str = "filters") -> str:
    """The jsonpath for `metadata @@ ..`. Raises: Invalid, for `field`."""
    return _Compiler(field).all_of(conditions, 1)


class _Compiler:
    def __init__(self, field: str) -> None:
        self.field = field
        self.conditions = 0

    def refuse(self, message: str) -> Invalid:
        return Invalid(message, field=self.field)

    def all_of(self, conditions: Any, depth: int) -> str:
        if not isinstance(conditions, Mapping) or not conditions:
            raise self.refuse('A filter is an object such as {"topic": {"eq": "travel"}}.')
        if depth > MAX_DEPTH:
            raise self.refuse(f"Filters nest at most {MAX_DEPTH} levels deep.")
        return _joined(" && ", self._parts(conditions, depth))

    def _parts(self, conditions: Mapping[str, Any], depth: int) -> Iterator[str]:
        for key, condition in conditions.items():
            if key in ("and", "or"):
                if not isinstance(condition, Sequence) or isinstance(condition, str):
                    raise self.refuse(f'"{key}" takes a list of filters.')
                if not condition:
                    raise self.refuse(f'"{key}" takes at least one filter.')
                joint = " && " if key == "and" else " || "
                yield _joined(joint, [self.all_of(one, depth + 1) for one in condition])
            elif key == "not":
                yield _not(self.all_of(condition, depth + 1))
            else:
                yield from self._conditions(key, condition)

    def _conditions(self, key: str, condition: Any) -> Iterator[str]:
        path = "$" + "".join(f".{_quoted(self._text(part))}" for part in key.split("."))
        if not isinstance(condition, Mapping):
            condition = {"eq": condition}
        if not condition:
            raise self.refuse(f"{key!r} has no operator; known: {', '.join(_OPERATORS)}.")
        for operator, value in condition.items():
            self.conditions += 1
            if self.conditions > MAX_CONDITIONS:
                raise self.refuse(f"A filter has at most {MAX_CONDITIONS} conditions.")
            yield self._condition(path, key, operator, value)

    def _condition(self, path: str, key: str, operator: str, value: Any) -> str:
        if operator == "eq":
            return self._equal(path, value)
        if operator == "ne":
            return _not(self._equal(path, value))
        if operator == "in":
            if not isinstance(value, list):
                raise self.refuse(f'"in" on {key!r} takes a list.')
            if len(value) > MAX_CONDITIONS:
                raise self.refuse(f'"in" on {key!r} takes at most {MAX_CONDITIONS} values.')
            return _joined(" || ", [self._equal(path, one) for one in value]) if value else _NEVER
        if operator in _ORDER:
            if isinstance(value, bool) or not isinstance(value, int | float | str):
                raise self.refuse(f'"{operator}" on {key!r} takes a number or a text.')
            return f"({path} {_ORDER[operator]} {self._literal(value)})"
        if operator == "contains":
            return self._contains(path, value)
        if operator == "exists":
            if not isinstance(value, bool):
                raise self.refuse(f'"exists" on {key!r} is true or false.')
            return f"exists({path})" if value else f"(!exists({path}))"
        raise self.refuse(f"Unknown operator {operator!r}; known: {', '.join(_OPERATORS)}.")

    def _equal(self, path: str, value: Any) -> str:
        same = f"({path} == {self._literal(value)})"
        return f"({same} || !exists({path}))" if value is None else same

    def _contains(self, path: str, value: Any) -> str:
        literal = self._literal(value)
        element = f'({path}.type() == "array" && {path}[*] == {literal})'
        if not isinstance(value, str):
            return element
        # (The flag "q" takes the pattern literally.)
        part = f'({path}.type() == "string" && {path} like_regex {literal} flag "q")'
        return f"({element} || {part})"

    def _literal(self, value: Any) -> str:
        if isinstance(value, str):
            return _quoted(self._text(value))
        if value is None or isinstance(value, bool | int):
            return json.dumps(value)
        if isinstance(value, float) and math.isfinite(value):
            return json.dumps(value)
        raise self.refuse("A filter compares with a text, a number, true, false or null.")

    def _text(self, text: str) -> str:
        if "\0" in text:
            raise self.refuse("A filter cannot contain a NUL character.")
        if len(text) > MAX_TEXT_LENGTH:
            raise self.refuse(f"A text in a filter has at most {MAX_TEXT_LENGTH} characters.")
        return text


def _quoted(text: str) -> str:
    return json.dumps(text)


def _joined(joint: str, parts: Any) -> str:
    return f"({joint.join(parts)})"


def _not(predicate: str) -> str:
    # Two-valued: a value that cannot be compared does not match, so its negation does. The
    # predicate appears once, so that nested negations do not double its length.
    return f"(!exists($ ? {predicate}))"
