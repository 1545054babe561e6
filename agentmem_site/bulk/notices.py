"""What the caller of a load should know, although nothing failed."""

from collections.abc import Iterator

MAX_NOTICES = 50


class Notices:
    """Sentences, each kept once, in order. Thread-safe."""

    def __init__(self) -> None:
        self._sentences: dict[str, None] = {}

    def add(self, sentence: str) -> None:
        if len(self._sentences) < MAX_NOTICES:
            self._sentences.setdefault(sentence)

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._sentences))
