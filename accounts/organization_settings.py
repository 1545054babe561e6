"""Reads and checks what an organization may set for itself, in `Organization.settings`.

{"language": "german", "retention": {"memory_days": 365, ...}, "quotas": {...}}
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from accounts.errors import Invalid

# PostgreSQL's own text search configurations, in every version that AgentMem runs on.
LANGUAGES = (
    "arabic",
    "armenian",
    "basque",
    "catalan",
    "danish",
    "dutch",
    "english",
    "finnish",
    "french",
    "german",
    "greek",
    "hindi",
    "hungarian",
    "indonesian",
    "irish",
    "italian",
    "lithuanian",
    "nepali",
    "norwegian",
    "portuguese",
    "romanian",
    "russian",
    "serbian",
    "simple",
    "spanish",
    "swedish",
    "tamil",
    "turkish",
    "yiddish",
)
DEFAULT_LANGUAGE = "english"


MAX_DAYS = 36_500


@dataclass(frozen=True, slots=True)
class Retention:
    """How long an organization keeps its rows; None: until somebody deletes them."""

    memory_days: int | None = None  # older memories are moved to the trash
    unfound_days: int | None = None  # so are memories that no search has found for this long ..
    unfound_below_importance: float | None = None  # .. and that are less important than this
    trash_days: int | None = None  # rows that are in the trash for longer are deleted for good
    cached_vector_days: int = 180  # older cached vectors are deleted


def language_of(settings: Mapping[str, Any]) -> str:
    """The text search configuration of the organization's memories and searches."""
    return str(settings.get("language", DEFAULT_LANGUAGE))


def retention_of(settings: Mapping[str, Any]) -> Retention:
    """Raises: Invalid."""
    return _retention(settings.get("retention", {}))


def is_stricter(after: Retention, before: Retention) -> bool:
    """Whether the rules `after` may delete a row that the rules `before` would have kept."""

    def shorter(new: int | None, old: int | None) -> bool:
        return new is not None and (old is None or new < old)

    return (
        shorter(after.memory_days, before.memory_days)
        or shorter(after.unfound_days, before.unfound_days)
        or shorter(after.trash_days, before.trash_days)
        or shorter(after.cached_vector_days, before.cached_vector_days)
        or (after.unfound_below_importance or 0) > (before.unfound_below_importance or 0)
    )


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raises: Invalid, with the invalid value and the valid ones."""
    language = settings.get("language", DEFAULT_LANGUAGE)
    if language not in LANGUAGES:
        known = ", ".join(LANGUAGES)
        raise Invalid(f"settings.language is one of {known}.", field="settings")
    _retention(settings.get("retention", {}))


def _retention(given: Any) -> Retention:
    known = [field.name for field in fields(Retention)]
    if not isinstance(given, Mapping):
        raise _wrong("is an object", f"of {', '.join(known)}")
    for name, value in given.items():
        if name not in known:
            raise _wrong("has", f"{', '.join(known)}; not {str(name)[:64]!r}")
        if name == "unfound_below_importance":
            if not _is_number(value, float | int) or not 0 < value <= 1:
                raise _wrong(f".{name} is", "a number above 0, at most 1")
        elif not _is_number(value, int) or not 1 <= value <= MAX_DAYS:
            raise _wrong(f".{name} is", f"a whole number of days, 1 to {MAX_DAYS:,}")
    if ("unfound_days" in given) != ("unfound_below_importance" in given):
        raise _wrong("needs", "unfound_days and unfound_below_importance together, or neither")
    return Retention(**given)


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _wrong(what: str, rule: str) -> Invalid:
    space = "" if what.startswith(".") else " "
    return Invalid(f"settings.retention{space}{what} {rule}.", field="settings")
