"""The built-in encoders, with their real models."""

import importlib.util
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from django.core.management import CommandError, call_command

from accounts.errors import Unavailable
from agentmem_site.api.problems import problem_response
from agentmem_site.management.commands import serve
from memories import embeddings
from memories.embeddings import EncoderError, encode_texts, get_encoder, minilm
from memories.models import EMBEDDING_DIM

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [
    "Anna's dog is called Rex.",
    "",
    "Прывітанне, как дела? こんにちは、元気ですか。",
    "🙂🙂🙂",
    "a" * 5000,
    " \n\t\x00 ",
    "half of a pair: \ud83d",
    "The quick brown fox jumps over the lazy dog. " * 200,
]


def test_the_column_has_the_dimension_of_the_encoders():
    assert embeddings.VECTOR_DIM == EMBEDDING_DIM


def test_rows_are_unit_vectors_for_any_text(encoder):
    vectors = encoder.encode(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), encoder.dim)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_rows_are_in_the_order_of_the_texts(encoder):
    texts = [f"{'word ' * (number * 7 % 50)}number {number}" for number in range(100)]
    together = encoder.encode(texts)
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    assert (together @ alone.T).argmax(axis=1).tolist() == list(range(100))


def test_a_vector_does_not_depend_on_the_batch(encoder):
    texts = ["Anna moved to Lisbon in May.", *TEXTS, "x", "tea " * 300]
    together = encoder.encode(texts * 5)[: len(texts)]
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    assert (together * alone).sum(axis=1).min() > 0.999


def test_no_texts_return_no_rows(encoder):
    assert encoder.encode([]).shape == (0, encoder.dim)
    assert encode_texts([], encoder).shape == (0, 384)


@pytest.mark.parametrize(
    ("text", "near", "far"),
    [
        ("I love my dog", "My puppy is dear to me", "The stock market fell today"),
        ("Anna is allergic to peanuts", "She cannot eat nuts", "He bought a new car"),
        ("The server crashed at night", "Our servers crash", "We had pasta for dinner"),
    ],
)
def test_similar_texts_have_near_vectors(encoder, text, near, far):
    query, alike, unlike = encoder.encode([text, near, far])
    assert query @ alike > query @ unlike + 0.1


def test_shorter_vectors_are_padded_with_zeros():
    encoder = get_encoder("static")
    padded = encode_texts(["tea", "coffee"], encoder)
    assert padded.shape == (2, 384)
    assert not padded[:, 256:].any()
    assert np.array_equal(padded[:, :256], encoder.encode(["tea", "coffee"]))


def test_a_long_text_is_cut_before_it_is_tokenized(encoder):
    sentence = "Anna's dog is called Rex. "
    long, cut = encoder.encode([sentence * (256 * 1024 // len(sentence)), sentence * 300])
    assert long @ cut > 0.999


def test_no_encoder_uses_the_network(fresh, monkeypatch):
    def refused(*args, **kwargs):
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket, "socket", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    for name in ("minilm-int8", "static"):
        assert get_encoder(name).encode(["tea"]).shape[0] == 1


def test_threads_share_one_encoder_and_get_their_own_rows(fresh):
    texts = [[f"thread {number} says {word}" for word in range(20)] for number in range(8)]
    results = {}

    def work(number: int) -> None:
        encoder = get_encoder()
        results[number] = encoder, [encoder.encode(texts[number]) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(encoder) for encoder, _ in results.values()}) == 1
    expected = get_encoder().encode([text for part in texts for text in part])
    for number in range(8):
        for rows in results[number][1]:
            wanted = expected[number * 20 : number * 20 + 20]
            assert (rows * wanted).sum(axis=1).min() > 0.999


def test_static_can_be_used_by_several_threads():
    encoder = get_encoder("static")
    wrong = []

    def work() -> None:
        try:
            for _ in range(50):
                encoder.encode(["tea", "word " * 600])
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_setting_chooses_the_encoder(settings):
    assert get_encoder().name == "minilm-int8"
    settings.ENCODER = "static"
    assert get_encoder().name == "static"


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(EncoderError) as refusal:
        get_encoder("word2vec")
    assert str(refusal.value) == (
        "There is no encoder 'word2vec'; AGENTMEM_ENCODER is one of: "
        "minilm-int8, static, openai, sentence-transformers."
    )


@pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is not None, reason="it is installed"
)
def test_a_library_that_is_not_installed_is_named(fresh):
    with pytest.raises(EncoderError) as refusal:
        get_encoder("sentence-transformers")
    assert str(refusal.value) == (
        "The package sentence-transformers is not installed: pip install sentence-transformers"
    )


def test_over_http_an_encoder_that_cannot_be_used_is_a_503():
    answer = problem_response(EncoderError("The model file m is damaged."), {})
    assert answer.status_code == 503
    assert answer.data["code"] == "encoder_unavailable"
    assert answer.data["detail"] == "The encoder cannot be used. The server's log says why."
    assert answer.data["errors"] == []
    assert "Retry-After" not in answer.headers  # a retry does not help
    answer = problem_response(Unavailable("Counting takes too long: ask for fewer."), {})
    assert (answer.status_code, answer.data["detail"]) == (
        503,
        "Counting takes too long: ask for fewer.",
    )
    answer = problem_response(EncoderError("The service does not answer.", is_temporary=True), {})
    assert answer.headers["Retry-After"] == "5"


def test_texts_are_encoded_in_small_batches():
    encoder = get_encoder("minilm-int8")
    texts = [f"{'word ' * (number % 400)}end" for number in range(1500)]
    batches = list(encoder._batches(texts))
    assert sorted(place for places, _ in batches for place in places) == list(range(1500))
    for _, ids in batches:
        assert len(ids) <= minilm.MAX_BATCH
        assert len(ids) * max(map(len, ids)) <= minilm.MAX_BATCH_TOKENS
        assert max(map(len, ids)) <= minilm.MAX_TOKENS


MEMORY = """
import django; django.setup()
from memories.embeddings import get_encoder
encoder = get_encoder("minilm-int8")
encoder.encode(["word " * 52000] * 200)
print(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_default_stays_below_300_mb():
    """Two threads, 200 texts of 256 KiB at once, with Django in the same process."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY],
        cwd=ROOT,
        env={**_environment(), "AGENTMEM_ENCODER_THREADS": "2"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(done.stdout) / 1024 < 300  # kB -> MB


HEAVY = {
    "numpy",
    "onnxruntime",
    "tokenizers",
    "fastembed",
    "model2vec",
    "torch",
    "sentence_transformers",
    "transformers",
}
START = """
import sys, pkgutil, importlib
import django; django.setup()
import agentmem_site.urls, memories.embeddings
from django.core.management import get_commands, load_command_class
for name, app in get_commands().items():
    if not str(app).startswith("django."):
        load_command_class(app, name)
print(*{name.partition(".")[0] for name in sys.modules})
"""


def test_starting_the_site_imports_no_model_library():
    done = subprocess.run(
        [sys.executable, "-c", START],
        cwd=ROOT,
        env=_environment(),
        check=True,
        capture_output=True,
        text=True,
    )
    assert "django" in done.stdout.split()
    assert HEAVY & set(done.stdout.split()) == set()


def _environment() -> dict[str, str]:
    return {**os.environ, "DJANGO_SETTINGS_MODULE": "agentmem_site.settings"}


def test_serve_refuses_an_unknown_encoder(monkeypatch, settings):
    settings.ENCODER = "minilm"
    monkeypatch.setattr(serve, "reasons_not_ready", list)
    monkeypatch.setattr(serve.os, "execv", lambda *_: pytest.fail("it serves"))
    with pytest.raises(CommandError, match=r"no encoder 'minilm'; AGENTMEM_ENCODER is one of"):
        call_command("serve")
