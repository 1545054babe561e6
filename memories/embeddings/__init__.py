"""Text into vectors. Knows no table: who stores or compares vectors lives elsewhere.

Two vectors can be compared only if they come from encoders of the same name.
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

# Of a text's letters, that many stand in words that the encoder knows, or it cannot be read
# (docs/decisions/0009).
MIN_KNOWN_SHARE = 0.15
_HALFVEC_HEADER_BYTES = 4


def get_encoder(name: str = "") -> Encoder:
    """The encoder of that name, or of `settings.ENCODER`: one per process, loaded on first use.
    "openai:MODEL", as vectors are called, is the one of `openai` if that is its model.

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
        raise EncoderError(f"{kind} is set up with another model than that of {name!r}.")
    return encoder


def refuse_unknown_encoder(name: str = "") -> None:
    """Loads nothing.

    Raises: EncoderError
    """
    name = name or settings.ENCODER
    if name not in _LOADERS and name not in _loaded:
        raise EncoderError(
            f"There is no encoder {name!r}; AGENTMEM_ENCODER is one of: {', '.join(_LOADERS)}."
        )


def encoder_name() -> str:
    """The name of the vectors of `settings.ENCODER`; its model is not loaded to learn it.

    Raises: EncoderError
    """
    is_its_own = settings.ENCODER in ("minilm-int8", "static")
    return settings.ENCODER if is_its_own else get_encoder().name


def encode_texts(texts: Sequence[str], encoder: Encoder | None = None) -> "NDArray[np.float32]":
    """(n, VECTOR_DIM) float32, unit rows: shorter vectors end in zeros, which no cosine notices.

    Raises: EncoderError
    """
    import numpy as np  # noqa: PLC0415  (a tenth of a second, at the start of every command)

    vectors = (encoder or get_encoder()).encode(texts)
    missing = VECTOR_DIM - vectors.shape[1]
    return np.pad(vectors, ((0, 0), (0, missing))) if missing else vectors


def are_readable(texts: Sequence[str], encoder: Encoder) -> list[bool]:
    """Whether the encoder knows enough of each text for its vector to say what the text does."""
    return [share >= MIN_KNOWN_SHARE for share in encoder.known_shares(texts)]


def read_halfvecs(sent: Sequence[bytes]) -> "NDArray[np.float32]":
    """(n, VECTOR_DIM) float32, from what `halfvec_send` gives: the dimension and an unused short,
    then big-endian halves."""
    import numpy as np  # noqa: PLC0415  (see encode_texts)

    numbers = b"".join(bytes(one)[_HALFVEC_HEADER_BYTES:] for one in sent)
    return np.frombuffer(numbers, ">f2").astype(np.float32).reshape(len(sent), VECTOR_DIM)


# Each loader imports its module when it is called: onnxruntime, numpy and tokenizers take time and
# memory that a command without vectors need not spend.


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
