"""A fast encoder for tests, which records its texts and fails on demand."""

import hashlib
from typing import Any

import numpy as np

from memories.embeddings import EncoderError


class Recorder:
    name, dim, is_cheap = "recorder", 384, False

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.failure: EncoderError | None = None

    def encode(self, texts: Any) -> Any:
        if self.failure:
            raise self.failure
        self.texts += texts
        seeds = [hashlib.sha256(text.encode()).digest()[0] for text in texts]
        rows = np.array([np.random.default_rng(s).standard_normal(self.dim) for s in seeds])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def known_shares(self, texts: Any) -> list[float]:
        return [1.0] * len(texts)
