"""What is wrong with a line, in words for people: msgspec names its types as Python does."""

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from agentmem_site.bulk.spec import MAX_ECHOED
from agentmem_site.db.keys import kind_of

_WORDS = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "an array",
    "object": "an object",
    "datetime": "a time",
    "uuid": "a uuid",
    "null": "null",
}
_EXPECTED = re.compile(
    r"Expected `(?P<types>[^`]+)`"
    r"(?:, got `[^`]+`| of length (?P<size>[<>]=) (?P<length>\d+)| (?P<sign>[<>]=?) (?P<bound>.+))?"
)
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
_BOUNDS = {"<=": "at most", ">=": "at least", "<": "less than", ">": "more than"}


def explained(message: str, path: str, line: bytes, line_type: type[msgspec.Struct]) -> str:
    """`message` of msgspec about what is at `path` of the line."""
    got = kind_of(_value_at(line, path), MAX_ECHOED)
    if message.startswith("Invalid enum value"):
        choices = _choices(line_type, path)
        return f"{_one_of(choices)} is needed, got {got}." if choices else message
    expected = _EXPECTED.fullmatch(message)
    if expected is None:
        return message
    needed = _one_of(_words(expected["types"]))
    if expected["size"]:
        return _of_length(_value_at(line, path), expected["size"], int(expected["length"]))
    if expected["sign"]:
        bound = expected["bound"].removesuffix(".0")
        needed += f" of {_BOUNDS[expected['sign']]} {bound}"
    return f"{needed[0].upper()}{needed[1:]} is needed, got {got}."


def _of_length(value: Any, sign: str, length: int) -> str:
    if sign == ">=" and length == 1:
        return "It must not be empty."
    unit = "characters" if isinstance(value, str) else "elements"
    return f"{len(value)} {unit} are given; {_BOUNDS[sign]} {length} are allowed."


def _words(types: str) -> list[str]:
    names = types.split(" | ")
    if {"str", "array", "object"} <= set(names):  # a key in the lenient decoding
        return [_WORDS["str"], _WORDS["int"]]
    if "float" in names and "int" in names:
        names.remove("int")
    return [_WORDS.get(name, name) for name in names]


def _one_of(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def _value_at(line: bytes, path: str) -> Any:
    value = json.loads(line)
    for name, place in _STEP.findall(path):
        value = value[name] if name else value[int(place)]
    return value


def _choices(line_type: type[msgspec.Struct], path: str) -> list[str]:
    """The texts that the field at `path` takes."""
    info: Any = msgspec.inspect.type_info(line_type)
    for name, _ in _STEP.findall(path):
        if name:
            info = next(f.type for f in info.fields if f.encode_name == name)
        info = next(_inner(info))
    values = [member.value for member in info.cls] if hasattr(info, "cls") else []
    return [json.dumps(value) for value in values]


def _inner(info: Any) -> Iterator[Any]:
    """What a type is, but for null; of an array, its elements."""
    for one in getattr(info, "types", (info,)):
        if isinstance(one, msgspec.inspect.ListType):
            yield from _inner(one.item_type)
        elif not isinstance(one, msgspec.inspect.NoneType):
            yield one
