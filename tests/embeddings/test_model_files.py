"""Model files that are missing, damaged or of another model: each message says what to do."""

import base64
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from django.conf import settings as site

from memories.embeddings import EncoderError, get_encoder

MEND = "Restore it with `git checkout`, or build it with memories/embeddings/artefacts/build.py."
MODELS = [("minilm-int8", "model.onnx"), ("static", "vectors.npy")]

# An ONNX graph of one node (Cast), whose output is (batch, 128).
SMALL_MODEL = base64.b64decode(
    "CAk6dwonCglpbnB1dF9pZHMSCWVtYmVkZGluZyIEQ2FzdCoJCgJ0bxgBoAECEgFtWiYKCWlucHV0X2lk"
    "cxIZChcIBxITCgcSBWJhdGNoCggSBnRva2Vuc2IhCgllbWJlZGRpbmcSFAoSCAESDgoHEgViYXRjaAoD"
    "CIABQgQKABAU"
)


@pytest.fixture
def models(fresh, settings, tmp_path) -> Path:
    folder = tmp_path / "models"
    shutil.copytree(site.MODELS_DIR, folder)
    settings.MODELS_DIR = folder
    return folder


def refusal(name: str) -> str:
    with pytest.raises(EncoderError) as raised:
        get_encoder(name)
    assert raised.value.code == "encoder_unavailable"
    return str(raised.value)


def sign(path: Path) -> None:
    """Updates the checksums for a changed file."""
    sums = path.with_name("SHA256SUMS")
    lines = [line for line in sums.read_text().splitlines() if not line.endswith(path.name)]
    lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}")
    sums.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(("name", "file"), MODELS)
@pytest.mark.parametrize("missing", ["", "tokenizer.json", "SHA256SUMS"])
def test_a_missing_file_is_named(models, name, file, missing):
    path = models / name / (missing or file)
    path.unlink()
    assert refusal(name) == f"The model file {path} cannot be read. {MEND}"


@pytest.mark.parametrize(("name", "file"), MODELS)
def test_a_damaged_file_is_named(models, name, file):
    path = models / name / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert refusal(name) == f"The model file {path} is damaged. {MEND}"


@pytest.mark.parametrize(("name", "file"), MODELS)
def test_a_truncated_file_is_damaged(models, name, file):
    path = models / name / file
    path.write_bytes(path.read_bytes()[:-1])
    assert refusal(name) == f"The model file {path} is damaged. {MEND}"


@pytest.mark.parametrize(("name", "file"), [*MODELS, ("static", "tokenizer.json")])
def test_a_file_that_is_no_model_is_refused(models, name, file):
    path = models / name / file
    path.write_bytes(b"not a model")
    sign(path)
    assert refusal(name) == f"The model file {path} is not a model that this version reads. {MEND}"


def test_vectors_of_another_dimension_are_refused(models):
    path = models / "static" / "vectors.npy"
    np.save(path, np.ones((29525, 128), np.int8))
    sign(path)
    assert refusal("static") == f"The model file {path} gives 128 numbers, not 256. {MEND}"


def test_a_model_of_another_dimension_is_refused(models):
    path = models / "minilm-int8" / "model.onnx"
    path.write_bytes(SMALL_MODEL)
    sign(path)
    assert refusal("minilm-int8") == f"The model file {path} gives 128 numbers, not 384. {MEND}"


def test_a_repaired_file_is_loaded_without_a_restart(models):
    path = models / "static" / "vectors.npy"
    content = path.read_bytes()
    path.write_bytes(b"")
    refusal("static")
    path.write_bytes(content)
    assert get_encoder("static").name == "static"
