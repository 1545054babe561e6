"""Model files: checked before they are used, and what to do when they cannot be."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from memories.embeddings import EncoderError

SUMS = "SHA256SUMS"
# A token is at most this many characters in what people write; a text is cut to that before it
# comes to the tokenizer, which would otherwise work through 256 KiB to keep 256 tokens.
CHARACTERS_PER_TOKEN = 16
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
        except TypeError:  # half of a surrogate pair, which is no text in UTF-8
            cut = [text.encode(errors="replace").decode() for text in cut]
            found = self._tokenizer.encode_batch_fast(cut, add_special_tokens=self._has_marks)
        return [one.ids for one in found]

    def id_of(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)
