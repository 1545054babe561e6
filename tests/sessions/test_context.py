"""POST agents/{id}/context: what goes into a prompt, in which order, and what is left out."""

import base64
from datetime import UTC, datetime, timedelta

import pytest

from accounts.tenancy import tenant
from memories.embeddings import EncoderError
from memories.models import Block
from memories.services import searching
from memories.services.agents import attach_block, blocks
from tests.api.conftest import client_with
from tests.makers import (
    TESTER,
    make_agent,
    make_block,
    make_key,
    make_memory,
    make_message,
    make_session,
    make_user,
)

SCOPES = ["memory:read", "agent:read", "session:read"]
DAY = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture(autouse=True)
def static_encoder(settings):
    settings.ENCODER = "static"


@pytest.fixture
def api(acme):
    return client_with(make_key(acme, SCOPES))


def attach(agent, block):
    with tenant(agent.organization_id):
        attach_block(agent, block, organization=agent.organization, actor=TESTER)


@pytest.fixture
def talk(acme):
    """An agent with two blocks, in a session with Ann; Bob is somebody else."""
    ann, bob = make_user(acme, external_id="ann"), make_user(acme, external_id="bob")
    agent = make_agent(acme, external_id="barista", system="You sell coffee.")
    attach(agent, make_block(acme, label="persona", value="Kind."))
    attach(agent, make_block(acme, label="human", value="Ann is a regular.", user=ann))
    session = make_session(acme, session_id="s", agent=agent, user=ann)
    for number, (role, text) in enumerate(
        [("user", "Hi!"), ("assistant", "Hello."), ("user", "?")]
    ):
        at = DAY + timedelta(minutes=number)
        make_message(acme, session=session, role=role, text=text, created_at=at, external_id=text)
    for user, content in ((ann, "Coffee without sugar."), (bob, "Coffee with milk.")):
        make_memory(acme, user=user, agent=agent, content=content, speaker="They", created_at=DAY)
    return session


def ask(api, **body):
    answer = api.post("agents/barista/context", {"query": "coffee", **body})
    assert answer.status_code == 200, answer.content
    context = answer.json()
    assert len(context["text"]) == context["characters"] <= context["max_characters"]
    assert context["characters"] == sum(item["characters"] for item in context["items"])
    return context


PROMPT = """You sell coffee.

# persona
Kind.

# human
Ann is a regular.

# Memories
- 2026-01-02 They: Coffee without sugar.

# Recent messages
user: Hi!
assistant: Hello.
user: ?"""


def test_a_prompt_contains_blocks_memories_and_messages(api, talk):
    context = ask(api, session_id="s")
    assert context["text"] == PROMPT
    assert context["left_out"] == []
    assert [i["kind"] for i in context["items"]] == [
        "system",
        *["block"] * 2,
        "memory",
        *["message"] * 3,
    ]
    assert context["items"][0]["id"] == str(talk.agent_id)
    assert [i["label"] for i in context["items"][1:3]] == ["persona", "human"]
    assert context["items"][3]["score"] > 0
    assert context["estimated_tokens"] == -(-len(PROMPT) // 4)
    assert context["max_characters"] == 16_000


def test_without_a_session_messages_are_those_of_the_agent_and_the_user(acme, api, talk):
    make_message(acme, agent=talk.agent, user=talk.user, text="Outside.")
    make_message(acme, agent=make_agent(acme), user=talk.user, text="Elsewhere.")
    context = ask(api, user_id="ann")
    texts = [i["text"] for i in context["items"] if i["kind"] == "message"]
    assert texts == ["user: Hi!", "assistant: Hello.", "user: ?", "user: Outside."]
    assert [i["text"] for i in ask(api)["items"] if i["kind"] == "message"] == []


def test_rows_of_another_user_are_left_out(api, talk):
    context = ask(api, user_id="bob")
    assert "Ann" not in context["text"]
    assert "with milk" in context["text"]
    assert "without sugar" not in context["text"]
    assert [(i["label"], i["reason"]) for i in context["left_out"]] == [("human", "another_user")]
    refused = api.post(
        "agents/barista/context", {"query": "x", "user_id": "bob", "session_id": "s"}
    )
    assert refused.status_code == 400
    assert refused.json()["errors"][0] == {
        "field": "session_id",
        "code": "invalid",
        "message": "This session belongs to another user.",
    }


def left_out(context):
    return [(i["kind"], i["label"], i["reason"]) for i in context["left_out"]]


def test_a_block_that_does_not_fit_is_left_out_and_named(acme, api, talk):
    large = make_block(acme, label="large", value="x" * 1500)
    attach(talk.agent, large)
    context = ask(api, session_id="s", max_characters=600)
    assert left_out(context) == [("block", "large", "over_budget")]
    assert context["left_out"][0]["id"] == str(large.pk)
    assert context["left_out"][0]["characters"] == len("# large\n") + 1500
    assert context["text"] == PROMPT


def test_each_budget_holds_and_what_fits_is_exact(api, talk):
    assert ask(api, session_id="s", max_characters=len(PROMPT))["left_out"] == []
    assert len(ask(api, session_id="s", max_characters=len(PROMPT) - 1)["left_out"]) == 1
    for budget in range(1, len(PROMPT), 7):
        ask(api, session_id="s", max_characters=budget)
    context = ask(api, session_id="s", max_tokens=10)
    assert (context["max_characters"], context["estimated_tokens"] <= 10) == (40, True)


def test_messages_are_taken_from_the_newest_back_and_on_request_without_gaps(acme, api, talk):
    base = len(PROMPT) - len("user: Hi!\n")
    context = ask(api, session_id="s", max_characters=base)
    assert context["text"] == PROMPT.replace("user: Hi!\n", "")
    assert left_out(context) == [("message", "Hi!", "over_budget")]
    long = make_message(acme, session=talk, text="x" * 500, created_at=DAY + timedelta(seconds=90))
    context = ask(api, session_id="s", max_characters=len(PROMPT))
    assert context["text"] == PROMPT
    assert left_out(context) == [("message", "", "over_budget")]
    context = ask(api, session_id="s", max_characters=len(PROMPT), allow_gaps=False)
    assert context["text"].endswith("# Recent messages\nuser: ?")
    assert left_out(context) == [
        ("message", "", "over_budget"),
        ("message", "Hello.", "after_a_gap"),
        ("message", "Hi!", "after_a_gap"),
    ]
    assert context["left_out"][0]["id"] == str(long.pk)


def test_a_message_that_is_too_long_is_cut_with_a_mark(acme, api, talk):
    long = make_message(acme, session=talk, text="word " * 20_000, external_id="long")
    context = ask(api, session_id="s", max_characters=2000)
    *older, last = [item for item in context["items"] if item["kind"] == "message"]
    assert [item["text"] for item in older] == ["user: Hi!", "assistant: Hello.", "user: ?"]
    assert (last["id"], last["is_cut"]) == (str(long.pk), True)
    assert last["text"].startswith("user: word word ")
    assert last["text"].endswith("… [cut: 100,005 characters]")
    assert 800 < last["characters"] < 1000
    assert context["left_out"] == []
    assert not any(item["is_cut"] for item in context["items"] if item is not last)
    # The same with allow_gaps false: a message that is cut leaves no gap.
    assert ask(api, session_id="s", max_characters=2000, allow_gaps=False) == context


def test_a_message_that_would_be_cut_too_short_is_left_out(acme, api, talk):
    make_message(acme, session=talk, text="x" * 5000, external_id="long")
    context = ask(api, session_id="s", max_characters=len(PROMPT) + 100)
    assert context["text"] == PROMPT
    assert left_out(context) == [("message", "long", "over_budget")]


def test_a_picture_counts_as_its_placeholder(acme, api, talk):
    picture = "data:image/png;base64," + base64.b64encode(bytes(range(240)) * 250).decode()
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": picture}},
    ]
    make_message(acme, session=talk, text="", content=parts)
    call = {"type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}}
    make_message(acme, session=talk, role="assistant", text="", tool_calls=[call])
    context = ask(api, session_id="s", max_tokens=200)
    messages = "user: What is this?\n[image, 60 KB]\nassistant: [calls look(at: it)]"
    assert context["text"] == f"{PROMPT}\n{messages}"
    assert context["left_out"] == []


def test_a_query_that_is_too_long_is_cut(api, talk):
    context = ask(api, session_id="s", query="coffee " * 1999 + "coffees")
    assert (
        context["notice"] == "The query has 14,000 characters: its first 8,000 were searched for."
    )
    assert context["text"] == PROMPT


def test_the_numbers_of_memories_and_messages_can_be_set(api, talk):
    context = ask(api, session_id="s", messages=1, memories=0)
    assert context["text"].endswith("Ann is a regular.\n\n# Recent messages\nuser: ?")


def test_empty_items_are_reported(acme, api, talk):
    make_message(acme, session=talk, text="", role="assistant", external_id="none")
    make_message(acme, session=talk, text="", role="tool", content={"a": "ü"}, external_id="some")
    with tenant(acme):
        persona = Block.objects.for_organization(acme).get(label="persona")
        blocks.update(persona, organization=acme, actor=TESTER, values={"value": " "})
    context = ask(api, session_id="s")
    assert left_out(context) == [("block", "persona", "empty"), ("message", "none", "empty")]
    assert context["text"].endswith("user: ?\ntool: a: ü")


def test_rows_in_the_trash_are_left_out(acme, api, talk):
    everything = client_with(make_key(acme))
    everything.delete("messages/Hi!")
    with tenant(acme):
        block = Block.objects.for_organization(acme).get(label="human")
    everything.delete(f"blocks/{block.pk}")
    context = ask(api, session_id="s")
    assert "Hi!" not in context["text"]
    assert "regular" not in context["text"]
    assert context["left_out"] == []


def test_if_the_encoder_fails_keywords_are_used_and_a_notice_says_so(api, talk, monkeypatch):
    def fail(*args, **kwargs):
        raise EncoderError("The model is gone.")

    monkeypatch.setattr(searching, "embed_queries", fail)
    context = ask(api, session_id="s")
    assert "the encoder cannot be used" in context["notice"]
    assert context["text"] == PROMPT


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({"max_tokens": 5, "max_characters": 5}, "max_characters", "not both"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"query": ""}, "query", "may not be blank"),
        ({"session_id": ""}, "session_id", "must not be empty"),
        ({"memories": 201}, "memories", "less than or equal to 200"),
        ({"tokens": 5}, "tokens", "There is no such field"),
    ],
)
def test_a_body_is_refused_by_its_field(api, talk, body, field, message):
    refused = api.post("agents/barista/context", {"query": "coffee", **body})
    assert refused.status_code == 400
    assert refused.json()["errors"][0]["field"] == field
    assert message in refused.json()["errors"][0]["message"]


@pytest.mark.parametrize("missing", SCOPES)
def test_each_read_scope_is_required(acme, talk, missing):
    client = client_with(make_key(acme, [s for s in SCOPES if s != missing]))
    refused = client.post("agents/barista/context", {"query": "coffee"})
    assert refused.status_code == 403
    assert refused.json()["detail"] == f"This key does not hold the scope {missing}."


def test_memories_of_no_agent_and_of_no_user_are_included(api, talk, acme):
    other = make_agent(acme)
    ann, bob = talk.user, make_user(acme)
    for content, over in {
        "Coffee is for Ann, any agent knows.": {"user": ann},
        "Coffee is sold until six.": {},
        "Coffee of the barista.": {"agent": talk.agent},
        "Coffee of another agent.": {"user": ann, "agent": other},
        "Coffee of Bob.": {"user": bob},
    }.items():
        make_memory(acme, content=content, created_at=DAY, **over)
    context = ask(api, query="coffee", session_id="s", memories=50)
    texts = {item["text"] for item in context["items"] if item["kind"] == "memory"}
    assert texts == {
        "- 2026-01-02 They: Coffee without sugar.",
        "- 2026-01-02 Coffee is for Ann, any agent knows.",
        "- 2026-01-02 Coffee is sold until six.",
        "- 2026-01-02 Coffee of the barista.",
    }
