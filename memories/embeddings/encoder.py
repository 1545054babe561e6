"""The protocol of encoders, and their error."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from accounts.errors import Unavailable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VECTOR_DIM = 384  # of the column
MAX_NAME_LENGTH = 64


class EncoderError(Unavailable):
    """The encoder cannot be used."""

    code = "encoder_unavailable"

    def __init__(self, message: str = "", *, is_temporary: bool = False) -> None:
        super().__init__(message)
        self.is_temporary = is_temporary  # a later attempt may succeed


class Encoder(Protocol):
    """Safe to use from several threads at once."""

    @property
    def name(self) -> str:
        """Stored with each vector; at most 64 characters."""

    @property
    def dim(self) -> int:
        """The length of its vectors: at most VECTOR_DIM."""

    @property
    def is_cheap(self) -> bool:
        """Whether encoding a text costs less than looking up its vector in the cache."""

    def encode(self, texts: Sequence[str]) -> "NDArray[np.float32]":
        """(n, dim) float32, unit rows, in the order of texts.

        Raises: EncoderError
        """

    def known_shares(self, texts: Sequence[str]) -> list[float]:
        """The share, from 0 to 1, of each text's letters that are in words that the encoder knows.
        Unknown words all have the same vector, whatever their meaning."""
