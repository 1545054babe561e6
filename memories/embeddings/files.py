"""Model files, which are checked before they are used, and their tokenizers."""

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from memories.embeddings.encoder import EncoderError

SUMS = "SHA256SUMS"
# The length of a token in real texts, at most. A text is cut accordingly before tokenization: the
# tokenizer would otherwise process 256 KiB to keep 256 tokens.
CHARACTERS_PER_TOKEN = 16
UNKNOWN = "[UNK]"
MAX_WORD = 100  # characters: a longer word is one unknown token
_LONG_WORD = re.compile(rf"\S{{{MAX_WORD + 1}}}")
# Latin letters, quotation marks, dashes: the characters of most texts.
_COMMON = [*map(chr, [*range(0x21, 0x250), *range(0x2010, 0x2060), 0x20AC, 0x2122])]
_HINT = "Restore it with `git checkout`, or build it with memories/embeddings/artefacts/build.py."


def checked(folder: Path, name: str) -> Path:
    """The path of a model's file, after comparing it with `SHA256SUMS` beside it.

    Raises: EncoderError
    """
    path = folder / name
    try:
        lines = (folder / SUMS).read_text().splitlines()
        sums = {file: digest for digest, _, file in (line.partition("  ") for line in lines)}
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, UnicodeDecodeError) as error:
        missing = getattr(error, "filename", None) or folder / SUMS
        raise EncoderError(f"The model file {missing} cannot be read. {_HINT}") from error
    if sums.get(name) != digest:
        raise EncoderError(f"The model file {path} is damaged. {_HINT}")
    return path


def unusable(path: Path) -> EncoderError:
    return EncoderError(f"The model file {path} is not a model that this version reads. {_HINT}")


def wrong_shape(path: Path, dim: object, expected: int) -> EncoderError:
    return EncoderError(f"The model file {path} gives {dim} numbers, not {expected}. {_HINT}")


class TextTokenizer:
    """Tokenizes texts and keeps the first `max_tokens` tokens of each."""

    def __init__(self, path: Path, max_tokens: int, *, special_tokens: bool) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library has no exception class of its own
            raise unusable(path) from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        self._max_characters = max_tokens * CHARACTERS_PER_TOKEN
        self._special = special_tokens

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids per text, including special tokens if the model needs them."""
        cut = [text[: self._max_characters] for text in texts]
        try:
            encoded = self._tokenizer.encode_batch_fast(cut, add_special_tokens=self._special)
        except TypeError:
            cut = list(map(_as_utf8, cut))
            encoded = self._tokenizer.encode_batch_fast(cut, add_special_tokens=self._special)
        return [one.ids for one in encoded]

    def id_of(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def known_shares(self, texts: Sequence[str]) -> list[float]:
        """As in Encoder. (A text of plain words is known without tokenizing it.)"""
        cut = [text[: self._max_characters] for text in texts]
        shares = [1.0] * len(cut)
        for position, text in enumerate(cut):
            if not self._plain.fullmatch(text) or _LONG_WORD.search(text):
                shares[position] = known_share(self._tokenizer, self._unknown, _as_utf8(text))
        return shares

    @cached_property
    def _unknown(self) -> int | None:
        return self.id_of(UNKNOWN)

    @cached_property
    def _plain(self) -> re.Pattern[str]:
        """Matches texts of characters that are known both at the start of a word and inside: then
        every word of them is known."""
        words = [word for one in _COMMON for word in (one, f"a{one}a")]
        encoded = self._tokenizer.encode_batch(words, add_special_tokens=False)
        known = [self._unknown not in one.ids for one in encoded]
        plain = [c for c, *both in zip(_COMMON, known[::2], known[1::2], strict=True) if all(both)]
        return re.compile(rf"[\x00-\x20{re.escape(''.join(plain))}]*")


def known_share(tokenizer: Any, unknown: int | None, text: str) -> float:
    """Counts letters, not digits and punctuation, which occur in every script; in unknown words
    (an emoji is one) all characters, up to MAX_WORD."""
    encoded = tokenizer.encode(text, add_special_tokens=False)
    if not encoded.ids:
        return 0.0
    known_letters = unknown_characters = 0
    for token, (start, end) in zip(encoded.ids, encoded.offsets, strict=True):
        if token == unknown:
            unknown_characters += min(end - start, MAX_WORD)
        else:
            known_letters += sum(map(str.isalpha, text[start:end]))
    total = known_letters + unknown_characters
    return known_letters / total if unknown_characters else 1.0


def _as_utf8(text: str) -> str:
    """Replaces lone surrogates, which UTF-8 cannot encode."""
    return text.encode(errors="replace").decode()
