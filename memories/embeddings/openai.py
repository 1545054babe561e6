"""Any server with OpenAI's `POST {url}/embeddings`. Key, texts and the server's messages are never
logged or shown: some servers repeat a part of the key.
"""

import email.utils
import http.client
import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from email.message import Message
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from memories.embeddings.encoder import MAX_NAME_LENGTH, VECTOR_DIM, EncoderError

# The API takes at most 8,192 tokens per input, and refuses the whole batch of a longer one.
MAX_CHARACTERS = 8000
MAX_ANSWER_BYTES = 64 * 1024 * 1024
FIRST_WAIT_S, MAX_WAIT_S = 0.5, 8.0
MAX_RETRY_AFTER_S = 30.0
_HINTS = {
    400: "check AGENTMEM_OPENAI_MODEL, AGENTMEM_OPENAI_DIMENSIONS and AGENTMEM_OPENAI_BATCH_SIZE",
    401: "check AGENTMEM_OPENAI_KEY",
    403: "check AGENTMEM_OPENAI_KEY",
    404: "check AGENTMEM_OPENAI_URL and AGENTMEM_OPENAI_MODEL",
    413: "lower AGENTMEM_OPENAI_BATCH_SIZE",
}


class _Transient(Exception):
    """An error that a retry may fix; `wait_s` is what the server asked for."""

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would send the key and the texts to a host that nobody configured."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class OpenAIEncoder:
    """Uses the proxies of the environment (HTTPS_PROXY, NO_PROXY)."""

    is_cheap = False

    def __init__(self, options: Mapping[str, Any]) -> None:
        """options: as in settings.OPENAI_ENCODER."""
        self._model: str = options["MODEL"]
        self._dimensions: int = options["DIMENSIONS"]
        self._batch_size: int = options["BATCH_SIZE"]
        self._timeout_s: float = options["TIMEOUT_S"]
        self._retries: int = options["RETRIES"]
        self._key: str = options["KEY"]
        url = urlsplit(options["URL"])
        if url.scheme not in {"http", "https"} or not url.hostname or url.username:
            raise EncoderError("AGENTMEM_OPENAI_URL is not a URL like https://api.openai.com/v1.")
        self._host = url.hostname
        self._url = url._replace(path=f"{url.path.rstrip('/')}/embeddings").geturl()
        if not 0 <= self._dimensions <= VECTOR_DIM:
            raise _too_long(self._dimensions)
        if self._batch_size < 1 or self._timeout_s <= 0 or self._retries < 0:
            raise EncoderError(
                "AGENTMEM_OPENAI_BATCH_SIZE and AGENTMEM_OPENAI_TIMEOUT_S must be more than 0, "
                "AGENTMEM_OPENAI_RETRIES must be 0 or more."
            )
        # A shortened vector is a different vector: the dimension is part of the name.
        shortened = f"@{self._dimensions}" if self._dimensions else ""
        self.name: str = options["NAME"] or f"openai:{self._model}{shortened}"
        if len(self.name) > MAX_NAME_LENGTH:
            raise EncoderError(
                f"The encoder's name {self.name!r} is longer than {MAX_NAME_LENGTH} characters: "
                "set a shorter one in AGENTMEM_OPENAI_NAME."
            )
        self._known_dim = self._dimensions
        self._opener = urllib.request.build_opener(_NoRedirects)

    @property
    def dim(self) -> int:
        """Requests one vector first, if AGENTMEM_OPENAI_DIMENSIONS is not set."""
        if not self._known_dim:
            self._batch(["dimension"])
        return self._known_dim

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        parts = [
            self._batch(texts[start : start + self._batch_size])
            for start in range(0, len(texts), self._batch_size)
        ]
        return np.concatenate(parts) if parts else np.empty((0, self.dim), np.float32)

    def known_shares(self, texts: Sequence[str]) -> list[float]:
        """1: its models read bytes, so no word is unknown to them."""
        return [1.0] * len(texts)

    def _batch(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One request, retried after transient errors."""
        # The API refuses the whole batch of an empty text.
        body: dict[str, Any] = {
            "model": self._model,
            "input": [text[:MAX_CHARACTERS] or " " for text in texts],
            "encoding_format": "float",
        }
        if self._dimensions:
            body["dimensions"] = self._dimensions
        data = json.dumps(body).encode()
        for tries in range(self._retries + 1):
            try:
                return self._vectors(self._post(data), len(texts))
            except _Transient as error:
                if tries == self._retries:
                    raise EncoderError(
                        f"The embedding service at {self._host} {error} ({tries + 1} tries).",
                        is_temporary=True,
                    ) from error
                time.sleep(_wait_s(tries, error.wait_s))
        raise AssertionError("the loop returns or raises")

    def _post(self, data: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        # The scheme is http or https: checked above.
        request = urllib.request.Request(self._url, data, headers)  # noqa: S310
        deadline = time.monotonic() + self._timeout_s
        try:
            with self._opener.open(request, timeout=self._timeout_s) as answer:
                return self._read(answer, deadline)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error.code, error.headers) from error
        except TimeoutError as error:
            raise _Transient(f"did not answer within {self._timeout_s:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            if isinstance(getattr(error, "reason", None), TimeoutError):
                raise _Transient(f"did not answer within {self._timeout_s:g} s") from error
            raise _Transient("cannot be reached, or closed the connection") from error

    def _read(self, answer: http.client.HTTPResponse, deadline: float) -> bytes:
        """The whole body. (The socket's timeout restarts with each byte.)"""
        parts: list[bytes] = []
        size = 0
        while part := answer.read1(1 << 16):
            parts.append(part)
            size += len(part)
            if time.monotonic() > deadline:
                raise TimeoutError
            if size > MAX_ANSWER_BYTES:
                raise EncoderError(
                    f"The embedding service at {self._host} sent an answer that is too long."
                )
        if answer.length:
            raise http.client.IncompleteRead(b"", answer.length)
        return b"".join(parts)

    def _refusal(self, status: int, headers: Message) -> Exception:
        if status == HTTPStatus.TOO_MANY_REQUESTS or status >= 500:
            return _Transient(f"answered {status}", _retry_after_s(headers.get("Retry-After")))
        hint = _HINTS.get(status)
        return EncoderError(
            f"The embedding service at {self._host} answered {status}{f': {hint}' if hint else ''}."
        )

    def _vectors(self, answer: bytes, count: int) -> NDArray[np.float32]:
        """(count, dim) unit rows of the answer, which is checked first."""
        try:
            data = sorted(json.loads(answer)["data"], key=lambda item: item["index"])
            places = [item["index"] for item in data]
            rows = np.array([item["embedding"] for item in data], np.float64)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._wrong("that is not a list of vectors") from error
        if places != list(range(count)):
            raise self._wrong(f"that does not have one vector for each of {count} texts")
        if rows.ndim != 2 or not rows.shape[1]:
            raise self._wrong("that is not a list of vectors")
        if rows.shape[1] > VECTOR_DIM:
            raise _too_long(rows.shape[1])
        if rows.shape[1] != (self._known_dim or rows.shape[1]):
            raise self._wrong(f"of {rows.shape[1]} numbers instead of {self._known_dim}")
        with np.errstate(over="ignore"):  # overflow becomes infinite, and is refused
            lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        if not np.isfinite(lengths).all() or not lengths.all():
            raise self._wrong("with a vector that is zero or not finite")
        self._known_dim = rows.shape[1]
        return (rows / lengths).astype(np.float32)

    def _wrong(self, what: str) -> EncoderError:
        return EncoderError(f"The embedding service at {self._host} sent an answer {what}.")


def _too_long(dim: int) -> EncoderError:
    return EncoderError(
        f"A vector can have at most {VECTOR_DIM} numbers, not {dim}: set "
        f"AGENTMEM_OPENAI_DIMENSIONS to {VECTOR_DIM} or less, or choose another model."
    )


def _wait_s(tries: int, retry_after_s: float | None) -> float:
    """The server's Retry-After, up to a limit; else exponential backoff with full jitter."""
    if retry_after_s is not None:
        return min(retry_after_s, MAX_RETRY_AFTER_S)
    return random.uniform(0, min(MAX_WAIT_S, FIRST_WAIT_S * 2**tries))  # noqa: S311  (no secret)


def _retry_after_s(value: str | None) -> float | None:
    """Seconds, from seconds or a date."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
