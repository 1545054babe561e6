"""The options for reading a file."""

import codecs
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from agentmem_site.bulk.notices import Notices

MAX_LINE_BYTES = 1024 * 1024
FORMATS = ("auto", "jsonl", "json", "csv", "parquet")
DELIMITERS = (",", ";", "\t", "|")
_NOT_FOR_FILES = ("idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape")
_SPELLED = {"tab": "\t", "\\t": "\t", "auto": "", "comma": ",", "semicolon": ";", "pipe": "|"}


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How a file is read. `fields` are those that a line may have, with their kinds
    (`columns.kinds_of`); None: any, all of them text."""

    format: str = "auto"
    fields: Mapping[str, str] | None = None
    resource: str = ""  # an object may hold the lines under this name
    encoding: str = ""  # "": UTF-8, or UTF-16 if the file starts like it
    delimiter: str = ""  # of CSV; "": the one that yields known columns
    nulls: frozenset[str] | None = None  # cells that are empty, besides "" and \N
    renames: Mapping[str, str] = field(default_factory=dict)  # old -> new; to "": left out
    constants: Mapping[str, str] = field(default_factory=dict)  # field -> text
    ignore_unknown: bool = False
    max_line_bytes: int = MAX_LINE_BYTES
    max_bytes: int | None = None  # unpacked
    notices: Notices = field(default_factory=Notices)


class BadOption(ValueError):
    """An option is invalid."""

    def __init__(self, option: str, message: str) -> None:
        super().__init__(message)
        self.option = option


def delimiter_named(name: str) -> str:
    """Raises: BadOption."""
    delimiter = _SPELLED.get(name.lower(), name)
    if len(delimiter) > 1 or delimiter in ('"', "\n", "\r", "\0"):
        message = f"A delimiter must be one character, tab or auto, not {name[:80]!r}"
        raise BadOption("delimiter", message)
    return delimiter


def encoding_named(name: str) -> str:
    """Raises: BadOption."""
    try:
        found = codecs.lookup(name) if name else None
    except (LookupError, ValueError):
        found = None
    if name and not (
        found and found._is_text_encoding and found.name.replace("-", "_") not in _NOT_FOR_FILES
    ):
        message = f"There is no encoding {name[:80]!r}; some are utf-8, cp1252, utf-16"
        raise BadOption("encoding", message)
    return found.name if found else ""


def pairs(option: str, given: Iterable[str]) -> dict[str, str]:
    """Repeated options `a=b` as a dict. Raises: BadOption."""
    found: dict[str, str] = {}
    for text in given:
        key, sign, value = text.partition("=")
        if not sign:
            message = f"--{option} must be NAME=VALUE, not {text[:80]!r}"
            raise BadOption(option, message)
        if key in found:
            raise BadOption(option, f"--{option} names {key[:80]!r} twice")
        found[key] = value
    return found
