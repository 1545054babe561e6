"""What the caller of a load should know, though nothing is wrong."""

from collections.abc import Iterator

MAX_NOTICES = 50


class Notices:
    """Sentences, each kept once, in the order in which they came up. Threads may share them."""

    def __init__(self) -> None:
        self._sentences: dict[str, None] = {}

    def add(self, sentence: str) -> None:
        if len(self._sentences) < MAX_NOTICES:
            self._sentences.setdefault(sentence)

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._sentences))
