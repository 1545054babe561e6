"""What an organization may set for itself, in `Organization.settings`: read here, checked here.

{"language": "german", "retention": {...}, "quotas": {...}}
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from accounts.errors import Invalid

if TYPE_CHECKING:
    from accounts.models import Organization

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


def language_of(organization: "Organization") -> str:
    """The text search configuration of its memories and searches."""
    return str(organization.settings.get("language", DEFAULT_LANGUAGE))


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raises: Invalid, naming what is wrong and what is known."""
    language = settings.get("language", DEFAULT_LANGUAGE)
    if language not in LANGUAGES:
        known = ", ".join(LANGUAGES)
        raise Invalid(f"settings.language is one of {known}.", field="settings")
