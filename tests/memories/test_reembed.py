"""Reembedding by another encoder, reindexing in another language, and retrying failed memories."""

import io

import numpy as np
import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from accounts.models import AuditEvent
from accounts.services.organizations import organizations
from accounts.tenancy import tenant
from memories import embeddings
from memories.embeddings import EncoderError
from memories.models import EMBEDDING_DIM, Memory, MemoryHistory
from memories.services import reembedding
from tests.makers import TESTER, make_memory

ENCODERS = ("east", "north", "south")


class Compass:
    """The vector of each text depends on the encoder's name alone."""

    dim, is_cheap = EMBEDDING_DIM, True

    def __init__(self, name):
        self.name = name
        self.refused = ""
        self.calls_left = 1000
        self.unread = "?"

    def encode(self, texts):
        if not self.calls_left:
            raise EncoderError("The encoder is away.")
        self.calls_left -= 1
        if self.refused and self.refused in " ".join(texts):
            raise ValueError(self.refused)
        rows = np.zeros((len(texts), self.dim), np.float32)
        rows[:, ENCODERS.index(self.name)] = 1
        return rows

    def known_shares(self, texts):
        return [float(self.unread not in text) for text in texts]


@pytest.fixture
def compass(monkeypatch, settings):
    encoders = {name: Compass(name) for name in ENCODERS}
    for name, encoder in encoders.items():
        monkeypatch.setitem(embeddings._loaded, name, encoder)
    settings.ENCODER = "east"
    return encoders


def run(command, **options):
    out = io.StringIO()
    call_command(command, no_progress=True, stdout=out, **options)
    return out.getvalue().strip()


def make_embedded(organization, encoder, **over):
    vector = [0.0] * EMBEDDING_DIM
    vector[ENCODERS.index(encoder)] = 1.0
    return make_memory(organization, embedding=vector, embedding_model=encoder, **over)


def models(organization):
    """Encoders by content; checks that each vector is of that encoder."""
    with tenant(organization):
        live = list(Memory.objects.for_organization(organization).live().defer(None))
    for row in live:
        if row.embedding_state == "ready":
            assert row.embedding[ENCODERS.index(row.embedding_model)] == 1.0
    return {row.content: row.embedding_model for row in live}


def test_vectors_of_other_encoders_are_replaced_by_those_of_the_setting(acme, globex, compass):
    make_embedded(acme, "north", content="a")
    make_embedded(acme, "south", content="b")
    make_embedded(acme, "east", content="c")
    make_memory(acme, content="pending")
    make_embedded(globex, "south", content="d")
    assert run("reembed") == "3 re-embedded by east."
    assert models(acme) == {"a": "east", "b": "east", "c": "east", "pending": ""}
    assert models(globex) == {"d": "east"}
    assert run("reembed") == "0 re-embedded by east."


def test_another_encoder_and_one_organization_can_be_named(acme, globex, compass):
    make_embedded(acme, "east", content="a")
    make_embedded(globex, "east", content="b")
    out = run("reembed", organization="globex", encoder="south")
    assert out == "1 re-embedded by south."
    assert (models(acme), models(globex)) == ({"a": "east"}, {"b": "south"})


def test_an_interrupted_run_resumes(acme, compass, monkeypatch):
    monkeypatch.setattr(reembedding, "BATCH_SIZE", 2)
    for number in range(7):
        make_embedded(acme, "north", content=f"{number}")
    compass["east"].calls_left = 2
    with pytest.raises(CommandError, match="The encoder is away"):
        run("reembed")
    # The others still have their old vectors, and are found as before.
    assert sorted(models(acme).values()) == ["east"] * 4 + ["north"] * 3
    compass["east"].calls_left = 1000
    assert run("reembed") == "3 re-embedded by east."


def test_a_memory_that_changed_meanwhile_does_not_get_the_vector_of_its_old_text(acme, compass):
    memory = make_embedded(acme, "north", content="before")
    encode = compass["east"].encode

    def encode_and_change(texts):
        with tenant(acme):
            rows = Memory.objects.for_organization(acme).filter(pk=memory.pk)
            rows.update(hash=b"x" * 32, content="after", updated_at=timezone.now())
        compass["east"].encode = lambda texts: pytest.fail("It was read again.")
        with tenant(acme):
            rows.update(embedding=None, embedding_state="pending", embedding_model="")
        return encode(texts)

    compass["east"].encode = encode_and_change
    assert run("reembed") == "0 re-embedded by east."
    assert models(acme) == {"after": ""}


def test_a_text_that_the_new_encoder_refuses_keeps_its_vector_and_is_reported(acme, compass):
    make_embedded(acme, "north", content="fine")
    make_embedded(acme, "north", content="terrible")
    compass["east"].refused = "terrible"
    with pytest.raises(CommandError, match="east refused 1 texts: these memories keep"):
        run("reembed")
    assert models(acme) == {"fine": "east", "terrible": "north"}


def test_reembedding_writes_no_history_and_no_timestamp(acme, compass):
    before = make_embedded(acme, "north")
    run("reembed")
    with tenant(acme):
        after = Memory.objects.for_organization(acme).get()
        assert (after.updated_at, after.version) == (before.updated_at, before.version)
        assert MemoryHistory.objects.for_organization(acme).count() == 1
        events = AuditEvent.objects.for_organization(acme).filter(resource_type="memory")
        assert events.count() == 1


def test_failed_memories_are_pending_again(acme, compass):
    make_memory(acme, content="was refused")
    with tenant(acme):
        rows = Memory.objects.for_organization(acme)
        rows.update(embedding_state="failed", embedding_attempts=5, embedding_error="No.")
    assert run("reembed", failed=True) == "1 are pending again."
    call_command("embed_worker", once=True, no_progress=True, stdout=io.StringIO())
    assert models(acme) == {"was refused": "east"}
    assert run("reembed", failed=True) == "0 are pending again."


@pytest.mark.django_db
def test_an_unavailable_encoder_is_reported():
    with pytest.raises(CommandError, match="There is no encoder 'nobody'"):
        run("reembed", encoder="nobody")
    with pytest.raises(CommandError, match="There is no organization 'nobody'"):
        run("reembed", organization="nobody", encoder="static")


def words_that_find(organization, language):
    """How many memories full-text search finds by the singular, in that language."""
    with tenant(organization), connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM memories_memory WHERE organization_id = %s "
            "AND document @@ to_tsquery(%s::regconfig, 'Buch')",
            [organization.pk, language],
        )
        return cursor.fetchone()[0]


def test_reindex_uses_the_language_of_the_organization(acme, globex, monkeypatch):
    monkeypatch.setattr(reembedding, "ROWS_PER_WALK", 2)
    for number in range(5):
        make_memory(acme, content=f"Die Bücher {number}")
    make_memory(globex, content="Die Bücher")
    assert words_that_find(acme, "german") == 0
    with tenant(acme):
        organizations.update(
            acme, organization=acme, actor=TESTER, values={"settings": {"language": "german"}}
        )
    out = run("reindex", organization="acme")
    assert out == "5 search documents rebuilt in german."
    assert words_that_find(acme, "german") == 5
    assert words_that_find(globex, "german") == 0
    assert run("reindex", organization="acme").startswith("0 search documents")
