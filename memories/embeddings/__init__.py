"""Encodes texts as vectors. Uses no table: vectors are stored and compared elsewhere.

Two vectors can only be compared if they come from encoders of the same name.
"""

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from django.conf import settings

from memories.embeddings.encoder import MAX_NAME_LENGTH, VECTOR_DIM, Encoder, EncoderError

__all__ = [
    "MAX_NAME_LENGTH",
    "VECTOR_DIM",
    "Encoder",
    "EncoderError",
    "are_readable",
    "encode_texts",
    "encoder_name",
    "get_encoder",
    "read_halfvecs",
    "refuse_unknown_encoder",
]

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The encoder can read a text when at least this share of its letters is in words that it knows
# (docs/decisions/0009).
MIN_KNOWN_SHARE = 0.15
_HALFVEC_HEADER_BYTES = 4


def get_encoder(name: str = "") -> Encoder:
    """The encoder of that name, or of `settings.ENCODER`: one per process, loaded on first use.
    "openai:MODEL", a name that vectors have, is `openai` if it is configured with that model.

    Raises: EncoderError
    """
    name = name or settings.ENCODER
    kind, _, model = name.partition(":")
    refuse_unknown_encoder(kind)
    encoder = _loaded.get(kind)
    if encoder is None:
        with _loading:
            if kind not in _loaded:
                _loaded[kind] = _LOADERS[kind]()
            encoder = _loaded[kind]
    if model and encoder.name != name:
        raise EncoderError(f"{kind} is configured with another model than {name!r}.")
    return encoder


def refuse_unknown_encoder(name: str = "") -> None:
    """Checks the name without loading the encoder.

    Raises: EncoderError
    """
    name = name or settings.ENCODER
    if name not in _LOADERS and name not in _loaded:
        raise EncoderError(
            f"There is no encoder {name!r}; AGENTMEM_ENCODER is one of: {', '.join(_LOADERS)}."
        )


def encoder_name() -> str:
    """The name stored with vectors of `settings.ENCODER`, without loading its model.

    Raises: EncoderError
    """
    is_built_in = settings.ENCODER in ("minilm-int8", "static")
    return settings.ENCODER if is_built_in else get_encoder().name


def encode_texts(texts: Sequence[str], encoder: Encoder | None = None) -> "NDArray[np.float32]":
    """(n, VECTOR_DIM) float32, unit rows. Shorter vectors are padded with zeros, which does not
    change a cosine.

    Raises: EncoderError
    """
    import numpy as np  # noqa: PLC0415  (a tenth of a second, at the start of every command)

    vectors = (encoder or get_encoder()).encode(texts)
    missing = VECTOR_DIM - vectors.shape[1]
    return np.pad(vectors, ((0, 0), (0, missing))) if missing else vectors


def are_readable(texts: Sequence[str], encoder: Encoder) -> list[bool]:
    """Whether the encoder knows enough words of each text for a meaningful vector."""
    return [share >= MIN_KNOWN_SHARE for share in encoder.known_shares(texts)]


def read_halfvecs(sent: Sequence[bytes]) -> "NDArray[np.float32]":
    """(n, VECTOR_DIM) float32 from the output of `halfvec_send`: the dimension and an unused short,
    then big-endian halves."""
    import numpy as np  # noqa: PLC0415  (see encode_texts)

    numbers = b"".join(bytes(one)[_HALFVEC_HEADER_BYTES:] for one in sent)
    return np.frombuffer(numbers, ">f2").astype(np.float32).reshape(len(sent), VECTOR_DIM)


# Each loader imports its module when it is called, because onnxruntime, numpy and tokenizers take
# time and memory, which a command without vectors saves.


def _minilm() -> Encoder:
    from memories.embeddings.minilm import MiniLMEncoder  # noqa: PLC0415  (loads onnxruntime)

    return MiniLMEncoder(settings.MODELS_DIR / "minilm-int8", threads=settings.ENCODER_THREADS)


def _static() -> Encoder:
    from memories.embeddings.static import StaticEncoder  # noqa: PLC0415  (loads numpy)

    return StaticEncoder(settings.MODELS_DIR / "static")


def _openai() -> Encoder:
    from memories.embeddings.openai import OpenAIEncoder  # noqa: PLC0415  (loads numpy)

    return OpenAIEncoder(settings.OPENAI_ENCODER)


def _sentence_transformers() -> Encoder:
    from memories.embeddings import sentence_transformers  # noqa: PLC0415  (loads torch)

    return sentence_transformers.SentenceTransformersEncoder(settings.SENTENCE_TRANSFORMERS_MODEL)


_LOADERS: dict[str, Callable[[], Encoder]] = {
    "minilm-int8": _minilm,
    "static": _static,
    "openai": _openai,
    "sentence-transformers": _sentence_transformers,
}
_loaded: dict[str, Encoder] = {}
_loading = threading.Lock()
