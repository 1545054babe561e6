"""Memories from a file: which get their vectors with the load, and which keep theirs."""

import json

import pytest
from django.core.management.base import CommandError
from django.utils import timezone

from accounts.tenancy import platform, tenant
from agentmem_site.bulk import LoadOptions
from agentmem_site.services.loads import run_load
from memories import embeddings
from memories.models import Memory
from tests.bulk.loading import load
from tests.makers import TESTER
from tests.memories.encoders import Recorder


@pytest.fixture(autouse=True)
def encoder(monkeypatch, settings):
    recorder = Recorder()
    monkeypatch.setitem(embeddings._loaded, recorder.name, recorder)
    settings.ENCODER = recorder.name
    return recorder


def rows(count, **over):
    return [{"external_id": f"m-{n}", "content": f"Fact {n}", **over} for n in range(count)]


def states(acme):
    with tenant(acme):
        memories = Memory.objects.for_organization(acme).order_by("external_id")
        return list(memories.values_list("external_id", "embedding_state", "embedding_model"))


def test_a_small_load_is_embedded_with_it(acme, tmp_path, encoder):
    load(tmp_path, "memories", [*rows(2), {"content": "Tea", "speaker": "Ann"}])
    assert encoder.texts == ["Fact 0", "Fact 1", "Ann: Tea"]
    assert [state[1:] for state in states(acme)] == [("ready", "recorder")] * 3


def test_embed_later_leaves_vectors_to_a_worker(acme, tmp_path, encoder):
    load(tmp_path, "memories", rows(2), embed="later")
    assert states(acme) == [("m-0", "pending", ""), ("m-1", "pending", "")]
    assert encoder.texts == []


@pytest.mark.parametrize("batch_size", [2, 3, 10])
def test_only_the_first_rows_of_a_load_are_embedded_with_it(acme, encoder, batch_size):
    lines = [(n, json.dumps(row).encode(), 0) for n, row in enumerate(rows(6), start=1)]
    run_load(
        "memories",
        lines,
        organization=acme,
        actor=TESTER,
        options=LoadOptions(batch_size=batch_size),
        on_batch=lambda report: None,
        embed_first=3,
    )
    assert [state for _, state, _ in states(acme)] == ["ready"] * 3 + ["pending"] * 3


def test_the_same_file_again_encodes_and_changes_nothing(acme, tmp_path, encoder):
    mine = {"content": "Mine", "embedding": [0.5] * 384, "embedding_model": "mine"}
    to_ann = {"content": "Said to two", "user_id": "ann"}
    first = [*rows(2), to_ann, {**to_ann, "user_id": "bob"}, mine]
    load(tmp_path, "memories", first)
    before = states(acme)
    assert {state for _, state, _ in before} == {"ready"}
    encoder.texts.clear()
    bare = [*first[:-1], {"content": "Mine"}]
    report = load(tmp_path, "memories", bare, embed="now")
    assert (report["unchanged"], encoder.texts) == (5, [])
    assert states(acme) == before
    load(tmp_path, "memories", [{**to_ann, "user_id": "cat"}], embed="now")
    assert {state for _, state, _ in states(acme)} == {"ready"}


def test_changed_content_is_embedded_and_indexed_again(acme, tmp_path, encoder):
    load(tmp_path, "memories", rows(1))
    worked = {"is_indexed": True, "embedding_due_at": timezone.now(), "embedding_attempts": 3}

    def after(**load_options):
        with tenant(acme):
            memories = Memory.objects.for_organization(acme)
            memories.update(**worked)
        load(tmp_path, "memories", **load_options)
        with tenant(acme):
            return memories.values_list("embedding_state", *worked)[0]

    same_words = [{**rows(1)[0], "importance": 1}]
    assert after(rows=same_words) == ("ready", *worked.values())
    assert after(rows=rows(1, content="Now")) == ("ready", False, None, 0)
    assert encoder.texts == ["Fact 0", "Now"]
    assert after(rows=rows(1, content="Later"), embed="later") == ("pending", False, None, 0)


@pytest.mark.parametrize(
    ("is_temporary", "code", "advice"),
    [(True, 75, "The same command resumes"), (False, 2, "with --embed later")],
)
def test_an_encoder_that_fails_stops_the_load_after_what_is_committed(
    acme, tmp_path, encoder, is_temporary, code, advice
):
    failure = embeddings.EncoderError("The model is gone.", is_temporary=is_temporary)
    encode = encoder.encode

    def fail_at_the_second(texts):
        encoder.failure = failure if encoder.texts else None
        return encode(texts)

    encoder.encode = fail_at_the_second
    with pytest.raises(CommandError, match="The model is gone") as stopped:
        load(tmp_path, "memories", rows(4), batch_size=2)
    assert stopped.value.returncode == code
    assert "Lines up to 2 are committed." in str(stopped.value)
    assert advice in str(stopped.value)
    assert [key for key, *_ in states(acme)] == ["m-0", "m-1"]


def test_a_dry_run_encodes_nothing(acme, tmp_path, encoder):
    assert load(tmp_path, "memories", rows(2), dry_run=True, embed="now")["inserted"] == 2
    assert (encoder.texts, states(acme)) == ([], [])


def test_loaded_memories_are_indexed_in_the_organizations_language(acme, tmp_path):
    with platform():
        acme.settings = {"language": "german"}
        acme.save()
    load(tmp_path, "memories", rows(2))
    with tenant(acme):
        memories = Memory.objects.for_organization(acme).values_list("language", flat=True)
        assert list(memories) == ["german", "german"]


def test_embed_is_for_memories(acme, tmp_path):
    with pytest.raises(CommandError, match="--embed is for memories") as refused:
        load(tmp_path, "users", [{"external_id": "u"}], embed="now")
    assert refused.value.returncode == 2
