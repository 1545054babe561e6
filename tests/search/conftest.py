"""Memories, embedded by the fast encoder."""

from typing import Any

import pytest

from accounts.models import Organization
from memories.models import Memory
from memories.services.embedding import embed
from tests.api.conftest import Client, client_with
from tests.makers import make_memory


@pytest.fixture(autouse=True)
def static_encoder(settings: Any) -> None:
    settings.ENCODER = "static"


@pytest.fixture
def api(acme_key: str) -> Client:
    return client_with(acme_key)


@pytest.fixture
def theirs(globex_key: str) -> Client:
    return client_with(globex_key)


@pytest.fixture
def remember(acme: Organization) -> Any:
    """Creates a memory of acme with its vector."""

    def make(content: str, organization: Organization = acme, **over: Any) -> Memory:
        vectors = embed([(over.get("speaker"), content)], organization=organization)
        return make_memory(
            organization,
            content=content,
            **{"embedding": vectors.rows[0], "embedding_model": vectors.encoder, **over},
        )

    return make
