"""The caller's own keys (`external_id`, `session_id`, `run_id`, a tool's `name`): one rule, which
bodies, paths, filters, files and forms share."""

import json
import re
from typing import Any
from uuid import UUID

MAX_KEY_LENGTH = 255  # characters
MAX_ECHOED = 80  # characters of a value in a message
_UUID = re.compile(r"[0-9a-f]{8}(-?)(?:[0-9a-f]{4}\1){3}[0-9a-f]{12}", re.IGNORECASE)
# Cc, the line separators, and halves of surrogate pairs.
_CONTROL = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class KeyFault(ValueError):
    """No row can have this key."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def key_of(value: Any) -> str:
    """The key that `value` stands for: blanks around it are trimmed, an integer is its decimal
    text. Raises: KeyFault."""
    if type(value) is str:
        key = value.strip()
        if 0 < len(key) <= MAX_KEY_LENGTH and key.isprintable():  # as nearly all are
            return key
    return _checked(str(value) if type(value) is int else value)


def _checked(value: Any) -> str:
    if not isinstance(value, str):
        raise KeyFault("not_text", f"A text or a whole number is needed, got {kind_of(value)}.")
    key = value.strip()
    if not key:
        raise KeyFault("blank", "A key must not be empty.")
    if len(key) > MAX_KEY_LENGTH:
        raise KeyFault(
            "max_length", f"{len(key)} characters are given; a key has at most {MAX_KEY_LENGTH}."
        )
    if control := _CONTROL.search(key):
        raise KeyFault(
            "control_character",
            f"A key cannot hold control characters: character {control.start() + 1} is "
            f"U+{ord(control[0]):04X}.",
        )
    return key


def as_id(key: str) -> UUID | None:
    """The id of ours that `key` may be; ours goes before a key that looks like it."""
    return UUID(key) if len(key) in (32, 36) and _UUID.fullmatch(key) else None


def kind_of(value: Any, limit: int = MAX_ECHOED) -> str:
    """What a JSON value is, in words for people: `the number 42`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {str(value)[:limit]}"
    if isinstance(value, str):
        return f"the text {json.dumps(value[:limit], ensure_ascii=False)}"
    return "an array" if isinstance(value, list) else "an object"
