"""Model files: checked before they are used, and what to do when they cannot be."""

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from memories.embeddings.encoder import EncoderError

SUMS = "SHA256SUMS"
# A token is at most this many characters in what people write; a text is cut to that before it
# comes to the tokenizer, which would otherwise work through 256 KiB to keep 256 tokens.
CHARACTERS_PER_TOKEN = 16
UNKNOWN = "[UNK]"
MAX_WORD = 100  # characters: a tokenizer of words does not look into a longer one
_LONG_WORD = re.compile(rf"\S{{{MAX_WORD + 1}}}")
# Latin letters, quotation marks, dashes: what most texts consist of.
_USUAL = [*map(chr, [*range(0x21, 0x250), *range(0x2010, 0x2060), 0x20AC, 0x2122])]
_MEND = "Restore it with `git checkout`, or build it with memories/embeddings/artefacts/build.py."


def checked(folder: Path, name: str) -> Path:
    """The path of a model's file that is what `SHA256SUMS` beside it says.

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
        raise EncoderError(f"The model file {missing} cannot be read. {_MEND}") from error
    if sums.get(name) != digest:
        raise EncoderError(f"The model file {path} is damaged. {_MEND}")
    return path


def unusable(path: Path) -> EncoderError:
    return EncoderError(f"The model file {path} is not a model that this version reads. {_MEND}")


def wrong_shape(path: Path, found: object, wanted: int) -> EncoderError:
    return EncoderError(f"The model file {path} gives {found} numbers, not {wanted}. {_MEND}")


class Words:
    """A tokenizer that keeps the first `max_tokens` tokens of a text."""

    def __init__(self, path: Path, max_tokens: int, *, has_marks: bool) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library's own has no other class
            raise unusable(path) from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        self._max_characters = max_tokens * CHARACTERS_PER_TOKEN
        self._has_marks = has_marks

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids per text, with the marks of beginning and end if the model wants them."""
        cut = [text[: self._max_characters] for text in texts]
        try:
            found = self._tokenizer.encode_batch_fast(cut, add_special_tokens=self._has_marks)
        except TypeError:
            cut = list(map(_as_utf8, cut))
            found = self._tokenizer.encode_batch_fast(cut, add_special_tokens=self._has_marks)
        return [one.ids for one in found]

    def id_of(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def known_shares(self, texts: Sequence[str]) -> list[float]:
        """As an encoder's. (A text of plain words is known without a look at its tokens.)"""
        cut = [text[: self._max_characters] for text in texts]
        shares = [1.0] * len(cut)
        looked_at = [
            place
            for place, text in enumerate(cut)
            if not self._plain.fullmatch(text) or _LONG_WORD.search(text)
        ]
        for place in looked_at:
            shares[place] = known_share(self._tokenizer, self._unknown, _as_utf8(cut[place]))
        return shares

    @cached_property
    def _unknown(self) -> int | None:
        return self.id_of(UNKNOWN)

    @cached_property
    def _plain(self) -> re.Pattern[str]:
        """Texts of characters that are known at the beginning of a word and within it: any word
        of them is."""
        tries = [part for one in _USUAL for part in (one, f"a{one}a")]
        found = self._tokenizer.encode_batch(tries, add_special_tokens=False)
        known = [self._unknown not in one.ids for one in found]
        usual = [c for c, *both in zip(_USUAL, known[::2], known[1::2], strict=True) if all(both)]
        return re.compile(rf"[\x00-\x20{re.escape(''.join(usual))}]*")


def known_share(tokenizer: Any, unknown: int | None, text: str) -> float:
    """Letters count, and of what is unknown every character (an emoji is a word): digits and
    punctuation stand in a text of any script. Of a word that is too long its first part does."""
    found = tokenizer.encode(text, add_special_tokens=False)
    if not found.ids:
        return 0.0
    letters = strange = 0
    for token, (start, end) in zip(found.ids, found.offsets, strict=True):
        if token == unknown:
            strange += min(end - start, MAX_WORD)
        else:
            letters += sum(map(str.isalpha, text[start:end]))
    return letters / (letters + strange) if strange else 1.0


def _as_utf8(text: str) -> str:
    """Half of a surrogate pair is no text in UTF-8."""
    return text.encode(errors="replace").decode()
