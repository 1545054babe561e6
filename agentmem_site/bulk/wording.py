"""Replaces the names of the command's options in messages, for the other doors."""

import re
from collections.abc import Mapping

_OPTION = re.compile(r"(?<![\w-])--([a-z]+(?:-[a-z]+)*)")


def reworded(text: str, names: Mapping[str, str]) -> str:
    """`text` with each `--an-option` replaced by its name in `names`. Clauses after the first are
    left out if they name an option that the caller does not have."""
    first, *others = text.split("; ")
    kept = [c for c in others if all(option in names for option in _OPTION.findall(c))]
    return _OPTION.sub(lambda found: names.get(found[1], found[0]), "; ".join([first, *kept]))
