import pytest

from memories import embeddings


@pytest.fixture(params=["minilm-int8", "static"])
def encoder(request):
    return embeddings.get_encoder(request.param)


@pytest.fixture
def fresh(monkeypatch):
    """As in a new process: no encoder is loaded yet."""
    monkeypatch.setattr(embeddings, "_loaded", {})
