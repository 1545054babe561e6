"""The variables of the environment; each is read as its type.

An invalid value is refused in one sentence that names the variable and never quotes the value: it
may be a password.
"""

import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NoReturn
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured

from agentmem_site.embedded import EmbeddedError

USAGE = 2  # exit code: a setting is wrong

_ON, _OFF = ("on", "true", "yes", "1"), ("off", "false", "no", "0")
HOST = re.compile(r"\*|\.?[\w.-]+|\[[0-9a-fA-F:.]+\]")
ORIGIN = re.compile(r"https?://[^/\s]+")


class Variables:
    """Reads `values`. An empty one counts as not set. `documented` is the default as
    docs/operations.md has it, where it depends on the machine or the command.

    Raises: ImproperlyConfigured, from each method.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        self.defaults: dict[str, str] = {}  # of each variable that was read, as documented

    def text(self, name: str, default: str = "", *, documented: str = "") -> str:
        return self._value(name, documented or default or "none") or default

    def integer(
        self,
        name: str,
        default: int,
        *,
        minimum: int = 0,
        maximum: int | None = None,
        documented: str = "",
    ) -> int:
        value = self._value(name, documented or str(default))
        if not value:
            return default
        limits = f"{minimum} or more" if maximum is None else f"{minimum} to {maximum}"
        try:
            number = int(value)
        except ValueError:
            _refuse(name, f"a whole number, {limits}")
        if number < minimum or (maximum is not None and number > maximum):
            _refuse(name, f"a whole number, {limits}")
        return number

    def number(self, name: str, default: float, *, minimum: float = 0) -> float:
        value = self._value(name, f"{default:g}")
        if not value:
            return default
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and number >= minimum):
            _refuse(name, f"a number, {minimum:g} or more")
        return number

    def flag(self, name: str, default: bool, *, documented: str = "") -> bool:
        value = self._value(name, documented or ("on" if default else "off")).lower()
        if value and value not in _ON + _OFF:
            _refuse(name, "on or off")
        return value in _ON if value else default

    def one_of(
        self, name: str, default: str, choices: Sequence[str], *, documented: str = ""
    ) -> str:
        value = self._value(name, documented or default) or default
        if value not in choices:
            _refuse(name, f"one of {', '.join(choices)}")
        return value

    def listed(
        self, name: str, default: Sequence[str], *, pattern: re.Pattern[str], example: str
    ) -> list[str]:
        """Separated by commas; blanks around them are ignored."""
        value = self._value(name, ", ".join(default) or "none")
        items = [item.strip() for item in value.split(",") if item.strip()] or list(default)
        if not all(pattern.fullmatch(item) for item in items):
            _refuse(name, f"like {example}, separated by commas")
        return items

    def url(self, name: str, default: str) -> str:
        value = self._value(name, default) or default
        try:
            parts = urlsplit(value)
            is_valid = parts.scheme in ("http", "https") and bool(parts.hostname)
            _ = parts.port  # raises if it is not a number
        except ValueError:
            is_valid = False
        if not is_valid:
            _refuse(name, f"like {default}")
        return value

    def _value(self, name: str, default: str) -> str:
        self.defaults[name] = default
        return self._values.get(name, "").strip()


def _refuse(name: str, expected: str) -> NoReturn:
    raise ImproperlyConfigured(f"{name} must be {expected}.")


@contextmanager
def exit_on_refusal() -> Iterator[None]:
    """Ends a process that cannot start with these settings, or with this data directory: one
    sentence on standard error, exit code 2 (1 for the data directory)."""
    try:
        yield
    except (EmbeddedError, ImproperlyConfigured) as error:
        sys.stderr.write(f"Error: {error}\n")
        raise SystemExit(USAGE if isinstance(error, ImproperlyConfigured) else 1) from None
