"""Messages that name options of the command, for callers who have others."""

import re
from collections.abc import Mapping

_OPTION = re.compile(r"(?<![\w-])--([a-z]+(?:-[a-z]+)*)")


def reworded(text: str, names: Mapping[str, str]) -> str:
    """`--an-option` by its name in `names`. Behind the first, a clause that names an option which
    the caller does not have is left out."""
    first, *others = text.split("; ")
    kept = [c for c in others if all(option in names for option in _OPTION.findall(c))]
    return _OPTION.sub(lambda found: names.get(found[1], found[0]), "; ".join([first, *kept]))
