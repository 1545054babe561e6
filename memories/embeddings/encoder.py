"""What every encoder is, and how it fails."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from accounts.errors import Unavailable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VECTOR_DIM = 384  # what the column holds
MAX_NAME_LENGTH = 64


class EncoderError(Unavailable):
    """The encoder cannot be used."""

    code = "encoder_unavailable"

    def __init__(self, message: str = "", *, is_temporary: bool = False) -> None:
        super().__init__(message)
        self.is_temporary = is_temporary  # asked again in a while, it may well answer


class Encoder(Protocol):
    """Safe to use from several threads at once."""

    @property
    def name(self) -> str:
        """Stored with each vector; at most 64 characters."""

    @property
    def dim(self) -> int:
        """How many numbers it gives: at most VECTOR_DIM."""

    @property
    def is_cheap(self) -> bool:
        """Encoding a text costs less than looking its vector up in the cache."""

    def encode(self, texts: Sequence[str]) -> "NDArray[np.float32]":
        """(n, dim) float32, unit rows, in the order of texts.

        Raises: EncoderError
        """

    def known_shares(self, texts: Sequence[str]) -> list[float]:
        """What share of each text's letters, as far as it is read, stands in words that the
        encoder knows, from 0 to 1. All that it does not know has one vector, whatever it says."""
