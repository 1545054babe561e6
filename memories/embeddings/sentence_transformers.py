"""Any model that sentence-transformers can load, on a GPU if there is one."""

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memories.embeddings import files
from memories.embeddings.encoder import MAX_NAME_LENGTH, VECTOR_DIM, EncoderError

try:
    import sentence_transformers
except ImportError as error:
    raise EncoderError(
        "The package sentence-transformers is not installed: pip install sentence-transformers"
    ) from error

BATCH = 32


class SentenceTransformersEncoder:
    is_cheap = False

    def __init__(self, model: str) -> None:
        """model: a folder, or a name to look up in the local cache and then on the hub."""
        try:
            self._model = sentence_transformers.SentenceTransformer(model)
        except Exception as error:  # torch, the hub and the model's own code raise anything
            raise EncoderError(
                f"sentence-transformers cannot load {model!r}: set "
                "AGENTMEM_SENTENCE_TRANSFORMERS_MODEL to a folder with a model, or to the name of "
                "a model if the hub can be reached."
            ) from error
        # Renamed in version 6; the old name warns there.
        dimension = getattr(self._model, "get_embedding_dimension", None)
        dimension = dimension or self._model.get_sentence_embedding_dimension
        self.dim: int = dimension() or 0
        if not 0 < self.dim <= VECTOR_DIM:
            raise EncoderError(
                f"{model!r} gives {self.dim} numbers, but a vector can have at most {VECTOR_DIM}: "
                "choose another model in AGENTMEM_SENTENCE_TRANSFORMERS_MODEL."
            )
        name = Path(model).name
        self.name = f"sentence-transformers:{name}"[:MAX_NAME_LENGTH]
        # Its tokenizer changes its own settings in each call.
        self._lock = threading.Lock()

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if not texts:
            return np.empty((0, self.dim), np.float32)
        with self._lock:
            return self._model.encode(
                list(texts),
                batch_size=BATCH,
                normalize_embeddings=True,
                convert_to_numpy=True,
                show_progress_bar=False,
            ).astype(np.float32)

    def known_shares(self, texts: Sequence[str]) -> list[float]:
        """1 if the tokenizer has no unknown token (it reads bytes), or no offsets (in Python)."""
        tokenizer = getattr(self._model, "tokenizer", None)
        words = getattr(tokenizer, "backend_tokenizer", None)
        unknown = getattr(tokenizer, "unk_token_id", None)
        if words is None or unknown is None:
            return [1.0] * len(texts)
        with self._lock:
            return [files.known_share(words, unknown, text) for text in texts]
