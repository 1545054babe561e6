"""The variables of the environment, each read by its type.

What cannot be read is refused in one sentence that names the variable, and never quotes what stands
in it: that may be a password.
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
    """Reads `values`. An empty one counts as not set. `shown` is what docs/operations.md says of a
    default that this machine, or another command, settles.

    Raises: ImproperlyConfigured, from each method.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        self.defaults: dict[str, str] = {}  # of each variable that was read, as documented

    def text(self, name: str, default: str = "", *, shown: str = "") -> str:
        return self._given(name, shown or default or "none") or default

    def whole(
        self, name: str, default: int, *, least: int = 0, most: int | None = None, shown: str = ""
    ) -> int:
        given = self._given(name, shown or str(default))
        if not given:
            return default
        limits = f"{least} or more" if most is None else f"{least} to {most}"
        try:
            number = int(given)
        except ValueError:
            _refuse(name, f"a whole number, {limits}")
        if number < least or (most is not None and number > most):
            _refuse(name, f"a whole number, {limits}")
        return number

    def number(self, name: str, default: float, *, least: float = 0) -> float:
        given = self._given(name, f"{default:g}")
        if not given:
            return default
        try:
            number = float(given)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and number >= least):
            _refuse(name, f"a number, {least:g} or more")
        return number

    def flag(self, name: str, default: bool, *, shown: str = "") -> bool:
        given = self._given(name, shown or ("on" if default else "off")).lower()
        if given and given not in _ON + _OFF:
            _refuse(name, "on or off")
        return given in _ON if given else default

    def one_of(self, name: str, default: str, choices: Sequence[str], *, shown: str = "") -> str:
        given = self._given(name, shown or default) or default
        if given not in choices:
            _refuse(name, f"one of {', '.join(choices)}")
        return given

    def words(
        self, name: str, default: Sequence[str], *, like: re.Pattern[str], as_in: str
    ) -> list[str]:
        """Separated by commas; blanks around them do not count."""
        given = self._given(name, ", ".join(default) or "none")
        words = [word.strip() for word in given.split(",") if word.strip()] or list(default)
        if not all(like.fullmatch(word) for word in words):
            _refuse(name, f"like {as_in}, separated by commas")
        return words

    def web_address(self, name: str, default: str) -> str:
        given = self._given(name, default) or default
        try:
            parts = urlsplit(given)
            is_whole = parts.scheme in ("http", "https") and bool(parts.hostname)
            _ = parts.port  # raises where it is no number
        except ValueError:
            is_whole = False
        if not is_whole:
            _refuse(name, f"like {default}")
        return given

    def _given(self, name: str, default: str) -> str:
        self.defaults[name] = default
        return self._values.get(name, "").strip()


def _refuse(name: str, what: str) -> NoReturn:
    raise ImproperlyConfigured(f"{name} is to be {what}.")


@contextmanager
def refusals_told() -> Iterator[None]:
    """Ends a process that cannot begin with these settings, or this data directory: one sentence on
    standard error, exit code 2 (1 of the data directory)."""
    try:
        yield
    except (EmbeddedError, ImproperlyConfigured) as error:
        sys.stderr.write(f"Error: {error}\n")
        raise SystemExit(USAGE if isinstance(error, ImproperlyConfigured) else 1) from None
