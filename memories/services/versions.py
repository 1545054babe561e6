"""Compares two versions of a memory."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Literal

from accounts.errors import Invalid
from accounts.models import Organization
from memories.models import Memory, MemoryHistory

Op = Literal["equal", "insert", "delete"]
Granularity = Literal["words", "lines", "whole"]

# Comparisons that one attempt may cost, a tenth of a second: difflib is cubic at worst. Counting
# steps instead of measuring time gives the same diff for the same texts.
MAX_STEPS = 1_000_000
_WORD = re.compile(r"\w+|\s+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class TextDiff:
    """The `equal` and `delete` parts, joined, are the old text, `equal` and `insert` the new one.

    By words; by lines if that costs too much, else the whole texts as one part each.
    """

    granularity: Granularity
    parts: list[tuple[Op, str]]


@dataclass(frozen=True, slots=True)
class VersionDiff:
    """`metadata` has top-level keys: added and removed with their value, changed with the old and
    the new one. `importance` is the old and the new value, None if equal."""

    old: MemoryHistory
    new: MemoryHistory
    content: TextDiff
    metadata: dict[str, dict[str, Any]]
    importance: tuple[float, float] | None

    @property
    def changed(self) -> list[str]:
        is_changed = {
            "content": self.old.content != self.new.content,
            "metadata": any(self.metadata.values()),
            "importance": self.importance is not None,
        }
        return [name for name, differs in is_changed.items() if differs]


def diff_versions(
    memory: Memory,
    *,
    organization: Organization,
    from_version: int | None = None,
    to_version: int | None = None,
) -> VersionDiff:
    """`to_version` defaults to the newest, `from_version` to the one before it. A memory with one
    version is compared with itself.

    Raises: Invalid (there is no such version).
    """
    rows = MemoryHistory.objects.for_organization(organization).filter(memory=memory)
    numbers = list(rows.order_by("version").values_list("version", flat=True).distinct())
    if not numbers:
        raise Invalid("No versions of this memory are kept.")
    to_version = numbers[-1] if to_version is None else to_version
    if from_version is None:
        from_version = max((n for n in numbers if n < to_version), default=numbers[0])
    for field, version in (("from", from_version), ("to", to_version)):
        if version not in numbers:
            raise Invalid(
                f"There is no version {version} of this memory: its versions are "
                f"{numbers[0]} to {numbers[-1]}.",
                field=field,
                code="unknown",
            )
    both = rows.filter(version__in={from_version, to_version}).order_by("-id")
    by_version = {row.version: row for row in both}  # the change that made it, not its deletion
    return diff(by_version[from_version], by_version[to_version])


def diff(old: MemoryHistory, new: MemoryHistory) -> VersionDiff:
    return VersionDiff(
        old,
        new,
        diff_texts(old.content, new.content),
        _diff_metadata(old.memory_metadata, new.memory_metadata),
        None if old.importance == new.importance else (old.importance, new.importance),
    )


def diff_texts(old: str, new: str, *, max_steps: int = MAX_STEPS) -> TextDiff:
    """Costs at most about three times `max_steps` comparisons, and a few passes over each text."""
    words = _WORD.findall(old), _WORD.findall(new)
    lines = old.splitlines(keepends=True), new.splitlines(keepends=True)
    tries: list[tuple[Granularity, Any, bool]] = [("words", words, False), ("words", words, True)]
    if len(lines[0]) > 1 or len(lines[1]) > 1:
        tries.append(("lines", lines, False))
    for granularity, tokens, skips_common in tries:
        try:
            parts = _diff_tokens(*tokens, skips_common=skips_common, max_steps=max_steps)
        except _TooExpensive:
            continue
        return TextDiff(granularity, parts)
    return TextDiff("whole", [("delete", old), ("insert", new)])


class _TooExpensive(Exception):
    """The diff would cost more than `max_steps`."""


class _BoundedMatcher(SequenceMatcher[str]):
    """White space is junk: it only matches next to matching words. With `skips_common` the same
    holds for words that make up more than one percent of a long text."""

    def __init__(
        self, old: Sequence[str], new: Sequence[str], *, skips_common: bool, max_steps: int
    ) -> None:
        super().__init__(str.isspace, old, new, autojunk=skips_common)
        self.old = old
        self.steps_left = max_steps

    def find_longest_match(
        self, alo: int = 0, ahi: int | None = None, blo: int = 0, bhi: int | None = None
    ) -> Any:
        ahi = len(self.old) if ahi is None else ahi
        positions = self.b2j  # type: ignore[attr-defined]  # token -> its positions in `new`
        self.steps_left -= sum(1 + len(positions.get(token, ())) for token in self.old[alo:ahi])
        if self.steps_left < 0:
            raise _TooExpensive
        return super().find_longest_match(alo, ahi, blo, bhi)


def _diff_tokens(
    old: Sequence[str], new: Sequence[str], *, skips_common: bool, max_steps: int
) -> list[tuple[Op, str]]:
    shorter = min(len(old), len(new))
    start = next((n for n in range(shorter) if old[n] != new[n]), shorter)
    tail = shorter - start
    end = next((n for n in range(tail) if old[-1 - n] != new[-1 - n]), tail)
    inner_old, inner_new = old[start : len(old) - end], new[start : len(new) - end]
    parts: list[tuple[Op, str]] = [("equal", "".join(old[:start]))]
    matcher = _BoundedMatcher(inner_old, inner_new, skips_common=skips_common, max_steps=max_steps)
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag == "equal":
            parts.append(("equal", "".join(inner_old[a:b])))
        else:
            parts += [("delete", "".join(inner_old[a:b])), ("insert", "".join(inner_new[c:d]))]
    parts.append(("equal", "".join(old[len(old) - end :])))
    return [(op, text) for op, text in parts if text]


def _diff_metadata(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        "added": {key: new[key] for key in sorted(new.keys() - old.keys())},
        "removed": {key: old[key] for key in sorted(old.keys() - new.keys())},
        "changed": {
            key: {"old": old[key], "new": new[key]}
            for key in sorted(old.keys() & new.keys())
            if _json(old[key]) != _json(new[key])
        },
    }


def _json(value: Any) -> str:
    """Distinguishes 1 from true, which are equal in Python."""
    return json.dumps(value, sort_keys=True)
