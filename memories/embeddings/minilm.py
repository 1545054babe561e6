"""all-MiniLM-L6-v2 in 8 bits on the CPU: the default (docs/decisions/0005-encoders.md)."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from memories.embeddings import files

MAX_TOKENS = 256
MAX_BATCH = 32
# As fast as larger ones, which do not fit the CPU's cache: 45 MB per thread instead of 120.
MAX_BATCH_TOKENS = 512
_CHUNK = 256  # texts that are sorted by length together, to limit the memory for their tokens
MODEL, TOKENIZER = "model.onnx", "tokenizer.json"


class MiniLMEncoder:
    """Runs batches in parallel, each on one thread: at most `threads`, over all callers."""

    name = "minilm-int8"
    dim = 384
    is_cheap = False

    def __init__(self, folder: Path, *, threads: int = 0) -> None:
        """threads: 0 for one per core."""
        path = files.checked(folder, MODEL)
        tokenizer = files.checked(folder, TOKENIZER)
        self._tokenizer = files.TextTokenizer(tokenizer, MAX_TOKENS, special_tokens=True)
        options = onnxruntime.SessionOptions()
        # Products this small gain little from a second thread; a second batch uses it fully.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors: its warnings are for those who build models
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions have no common base class
            raise files.unusable(path) from error
        dim = self._session.get_outputs()[0].shape[-1]
        if dim != self.dim:
            raise files.wrong_shape(path, dim, self.dim)
        self._threads = threads or _cores()
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="encoder")

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = np.empty((len(texts), self.dim), np.float32)
        running: deque[tuple[list[int], Future[NDArray[np.float32]]]] = deque()
        for positions, ids in self._batches(texts):
            # At most as many as there are threads, so that a search during the embedding of a file
            # waits for one or two batches and not for the file.
            if len(running) == self._threads:
                done, result = running.popleft()
                rows[done] = result.result()
            running.append((positions, self._pool.submit(self._run, ids)))
        for done, result in running:
            rows[done] = result.result()
        return rows

    def known_shares(self, texts: Sequence[str]) -> list[float]:
        return self._tokenizer.known_shares(texts)

    def _batches(self, texts: Sequence[str]) -> Iterator[tuple[list[int], list[list[int]]]]:
        """(positions in texts, token ids): texts of similar length together, longest first."""
        for start in range(0, len(texts), _CHUNK):
            ids = self._tokenizer.ids(texts[start : start + _CHUNK])
            order = sorted(range(len(ids)), key=lambda position: -len(ids[position]))
            while order:
                size = min(MAX_BATCH, MAX_BATCH_TOKENS // len(ids[order[0]]))
                batch, order = order[:size], order[size:]
                yield [start + position for position in batch], [ids[n] for n in batch]

    def _run(self, ids: list[list[int]]) -> NDArray[np.float32]:
        tokens = np.zeros((len(ids), max(map(len, ids))), np.int64)
        mask = np.zeros_like(tokens)
        for row, one in enumerate(ids):
            tokens[row, : len(one)] = one
            mask[row, : len(one)] = 1
        (vectors,) = self._session.run(None, {"input_ids": tokens, "attention_mask": mask})
        return vectors


def _cores() -> int:
    """The cores that this process may use, if the system reports them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
