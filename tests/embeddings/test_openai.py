"""The HTTP encoder against a local server that works, and one that fails."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from memories.embeddings import EncoderError, encode_texts, get_encoder, openai
from memories.embeddings.openai import OpenAIEncoder

KEY = "sk-not-to-be-seen"
Reply = tuple[int, dict[str, str], bytes]


class Service:
    """Answers with the next of `replies`; without any left, correctly."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.replies: list[Callable[[dict[str, Any]], Reply]] = []
        self.dim = 8
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.requests.append({"path": self.path, **body})
                service.headers.append(dict(self.headers))
                reply = service.replies.pop(0) if service.replies else service.right
                status, headers, content = reply(body)
                if status == 0:
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("Content-Length", headers.pop("Length", str(len(content))))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
                self.close_connection = True

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def rows(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        dim = body.get("dimensions", self.dim)
        return [
            {"index": number, "embedding": [2.0 * len(text), *([1.0] * (dim - 1))]}
            for number, text in enumerate(body["input"])
        ]

    def right(self, body: dict[str, Any]) -> Reply:
        return answer(self.rows(body))


def answer(rows: Any) -> Reply:
    return 200, {}, json.dumps({"data": rows}).encode()


def status(code: int, content: bytes = b"{}", **headers: str) -> Callable[[Any], Reply]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda body: (code, named, content)


@pytest.fixture
def service(monkeypatch) -> Iterator[Service]:
    monkeypatch.setattr(openai, "FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    service = Service()
    thread = threading.Thread(target=service.server.serve_forever, args=(0.01,))
    thread.start()
    yield service
    service.server.shutdown()
    service.server.server_close()
    thread.join()


def encoder(service: Service | None = None, **over: Any) -> OpenAIEncoder:
    options = {
        "URL": service.url if service else "http://127.0.0.1:9/v1",
        "KEY": KEY,
        "MODEL": "small",
        "DIMENSIONS": 0,
        "NAME": "",
        "BATCH_SIZE": 3,
        "TIMEOUT_S": 5.0,
        "RETRIES": 2,
    }
    return OpenAIEncoder({**options, **over})


def refusal(service: Service, texts: tuple[str, ...] = ("a", "bb"), **over: Any) -> str:
    with pytest.raises(EncoderError) as raised:
        encoder(service, **over).encode(texts)
    assert KEY not in repr(raised.getrepr(style="long"))
    return str(raised.value)


def test_texts_are_sent_in_batches_and_return_as_unit_rows(service):
    vectors = encoder(service).encode([f"{'x' * number}" for number in range(1, 8)])
    assert vectors.shape == (7, 8)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert np.all(np.diff(vectors[:, 0]) > 0)
    assert [len(request["input"]) for request in service.requests] == [3, 3, 1]
    assert service.requests[0]["path"] == "/v1/embeddings"
    assert service.requests[0]["model"] == "small"
    assert "dimensions" not in service.requests[0]
    assert service.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_vectors_are_padded_to_the_column(service):
    assert encode_texts(["a"], encoder(service)).shape == (1, 384)


def test_without_a_key_no_key_is_sent(service):
    encoder(service, KEY="").encode(["a"])
    assert "Authorization" not in service.headers[0]


def test_without_texts_only_the_dimension_is_requested(service):
    assert encoder(service, DIMENSIONS=8).encode([]).shape == (0, 8)
    assert service.requests == []
    assert encoder(service).encode([]).shape == (0, 8)


def test_dimensions_are_requested_and_part_of_the_name(service):
    small = encoder(service, DIMENSIONS=256)
    assert (small.name, small.dim) == ("openai:small@256", 256)
    assert small.encode(["a"]).shape == (1, 256)
    assert service.requests[0]["dimensions"] == 256


def test_the_dimension_is_requested_once(service):
    small = encoder(service)
    assert (small.name, small.dim, small.dim) == ("openai:small", 8, 8)
    assert len(service.requests) == 1


def test_an_empty_text_and_a_long_one_do_not_fail_their_batch(service):
    assert encoder(service).encode(["", "x" * 262_144]).shape == (2, 8)
    assert [len(text) for text in service.requests[0]["input"]] == [1, openai.MAX_CHARACTERS]


def test_results_in_another_order_are_sorted(service):
    service.replies.append(lambda body: answer(service.rows(body)[::-1]))
    vectors = encoder(service).encode(["a", "bb", "ccc"])
    assert np.all(np.diff(vectors[:, 0]) > 0)


@pytest.mark.parametrize(
    "reply",
    [
        status(500),
        status(503, b"<html>"),
        status(429, Retry_After="0"),
        status(429),
        status(0),
        status(200, b'{"data": [', Length="4000"),
    ],
)
def test_temporary_failures_are_retried(service, reply):
    service.replies.append(reply)
    assert encoder(service).encode(["a"]).shape == (1, 8)
    assert len(service.requests) == 2


def test_retries_are_limited(service):
    service.replies += [status(500)] * 5
    assert refusal(service) == "The embedding service at 127.0.0.1 answered 500 (3 tries)."
    assert len(service.requests) == 3


def test_retry_after_sets_the_wait(service):
    service.replies.append(status(429, Retry_After="1"))
    started = time.monotonic()
    encoder(service).encode(["a"])
    assert 1 <= time.monotonic() - started < 3


def test_waits_are_capped():
    assert openai._wait_s(0, 3600) == openai.MAX_RETRY_AFTER_S
    assert openai._retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert openai._retry_after_s("soon") is None
    assert max(openai._wait_s(40, None) for _ in range(100)) <= openai.MAX_WAIT_S


def test_a_server_that_hangs_times_out(service):
    def hang(body: Any) -> Reply:
        time.sleep(1)
        return status(0)(body)

    service.replies += [hang, hang]
    message = refusal(service, TIMEOUT_S=0.2, RETRIES=1)
    assert message == "The embedding service at 127.0.0.1 did not answer within 0.2 s (2 tries)."


def test_a_server_that_is_down_is_reported():
    with pytest.raises(EncoderError, match=r"127\.0\.0\.1 cannot be reached, or closed the conn"):
        encoder(RETRIES=1).encode(["a"])


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (400, ": check AGENTMEM_OPENAI_MODEL, AGENTMEM_OPENAI_DIMENSIONS and AGENTMEM_OPENAI_BA"),
        (401, ": check AGENTMEM_OPENAI_KEY."),
        (403, ": check AGENTMEM_OPENAI_KEY."),
        (404, ": check AGENTMEM_OPENAI_URL and AGENTMEM_OPENAI_MODEL."),
        (422, "."),
    ],
)
def test_a_refusal_is_not_retried_and_not_quoted(service, code, hint):
    service.replies.append(status(code, f"Incorrect key: {KEY}".encode()))
    assert refusal(service).startswith(f"The embedding service at 127.0.0.1 answered {code}{hint}")
    assert len(service.requests) == 1


def test_a_redirect_is_not_followed(service):
    service.replies.append(status(307, Location=service.url))
    assert refusal(service) == "The embedding service at 127.0.0.1 answered 307."
    assert len(service.requests) == 1


def change(**over: Any) -> Callable[[list[dict[str, Any]]], Any]:
    return lambda rows: [{**rows[0], **over}, *rows[1:]]


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda rows: rows[:1], "that does not have one vector for each of 2 texts"),
        (lambda rows: rows * 2, "that does not have one vector for each of 2 texts"),
        (change(index=1), "that does not have one vector for each of 2 texts"),
        (change(index=None), "that is not a list of vectors"),
        (change(embedding="AAAA"), "that is not a list of vectors"),
        (change(embedding=[1.0]), "that is not a list of vectors"),
        (lambda rows: [{**row, "embedding": []} for row in rows], "that is not a list of vectors"),
        (lambda rows: "no", "that is not a list of vectors"),
        (change(embedding=[float("nan")] * 8), "with a vector that is zero or not finite"),
        (change(embedding=[1e300] * 8), "with a vector that is zero or not finite"),
        (change(embedding=[0.0] * 8), "with a vector that is zero or not finite"),
        (change(embedding=[0.1] * 8, index=7), "that does not have one vector for each of 2"),
    ],
)
def test_a_response_of_another_shape_is_refused(service, spoil, what):
    service.replies.append(lambda body: answer(spoil(service.rows(body))))
    assert refusal(service).startswith(f"The embedding service at 127.0.0.1 sent an answer {what}")
    assert len(service.requests) == 1


@pytest.mark.parametrize("content", [b"<html></html>", b'{"data": [', b"[]", b"{}", b"\xff", b""])
def test_a_response_that_is_not_json_is_refused(service, content):
    service.replies.append(status(200, content))
    assert refusal(service).endswith("sent an answer that is not a list of vectors.")


def test_a_dimension_that_changes_is_refused(service):
    small = encoder(service)
    small.encode(["a"])
    service.dim = 16
    with pytest.raises(EncoderError, match="of 16 numbers instead of 8"):
        small.encode(["a"])


def test_a_vector_that_the_column_cannot_hold_is_refused(service):
    service.dim = 1536
    assert refusal(service) == (
        "A vector can have at most 384 numbers, not 1536: set AGENTMEM_OPENAI_DIMENSIONS to 384 "
        "or less, or choose another model."
    )


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"DIMENSIONS": 1536}, "set AGENTMEM_OPENAI_DIMENSIONS to 384 or less"),
        ({"URL": "file:///etc/passwd"}, "AGENTMEM_OPENAI_URL is not a URL like https://api.openai"),
        ({"URL": "api.openai.com/v1"}, "AGENTMEM_OPENAI_URL is not a URL like https://api.openai"),
        ({"MODEL": "m" * 80}, "set a shorter one in AGENTMEM_OPENAI_NAME"),
        ({"BATCH_SIZE": 0}, "AGENTMEM_OPENAI_BATCH_SIZE"),
    ],
)
def test_invalid_settings_are_named(over, message):
    with pytest.raises(EncoderError, match=message):
        encoder(**over)


def test_a_name_can_be_set():
    assert encoder(MODEL="m" * 80, NAME="ours").name == "ours"


def test_vectors_of_the_configured_model_have_its_name(service, settings):
    settings.OPENAI_ENCODER = {**settings.OPENAI_ENCODER, "URL": service.url, "MODEL": "small"}
    settings.OPENAI_ENCODER |= {"DIMENSIONS": 0, "NAME": ""}
    assert get_encoder("openai:small").name == "openai:small"
    with pytest.raises(EncoderError, match="configured with another model than 'openai:big'"):
        get_encoder("openai:big")
