"""The life of rows: created, changed, deleted with their dependent rows, restored, purged."""

import pytest

from accounts.errors import Conflict
from accounts.models import AuditEvent, User
from accounts.services.users import users
from accounts.tenancy import tenant
from memories.models import Agent, AgentBlock, Memory, MemoryHistory
from memories.services.adding import add_memory
from memories.services.agents import agents, attach_block, blocks
from memories.services.memories import memories
from sessions.models import Message, Run, Session
from sessions.services.conversations import sessions
from tests.makers import (
    TESTER,
    make_agent,
    make_block,
    make_memory,
    make_message,
    make_run,
    make_session,
    make_user,
)


def test_an_agent_is_deleted_and_restored_with_its_dependent_rows(acme):
    agent, other = make_agent(acme), make_agent(acme)
    block = make_block(acme)
    session = make_session(acme, agent=agent)
    run = make_run(session)
    make_message(acme, session=session, run=run)
    gone_before = make_session(acme, agent=agent)
    make_memory(acme, agent=agent)
    kept = make_memory(acme, agent=other)
    with tenant(acme):
        attach_block(agent, block, organization=acme, actor=TESTER)
        sessions.delete(
            Session.objects.for_organization(acme).filter(pk=gone_before.pk),
            organization=acme,
            actor=TESTER,
        )
        rows = Agent.objects.for_organization(acme).filter(pk=agent.pk)
        counts = agents.delete(rows, organization=acme, actor=TESTER)
        assert counts == {
            "agent": 1,
            "agentblock": 1,
            "memory": 1,
            "session": 1,
            "run": 1,
            "message": 1,
        }
        assert list(Memory.objects.for_organization(acme).live()) == [kept]
        for model in (Run, Message, Session, AgentBlock):
            assert not model.objects.for_organization(acme).live().exists()

        assert agents.restore(rows, organization=acme, actor=TESTER) == counts
        live = Session.objects.for_organization(acme).live()
        assert list(live) == [session]  # not the one that was deleted before
        event = AuditEvent.objects.for_organization(acme).get(action="restored")
        assert event.resource_id == agent.pk
        assert event.changes == {"rows": counts}


def test_a_row_is_not_restored_while_its_parent_is_in_the_trash(acme):
    agent, user = make_agent(acme), make_user(acme)
    make_session(acme, agent=agent, user=user)
    with tenant(acme):
        agent_rows = Agent.objects.for_organization(acme).filter(pk=agent.pk)
        user_rows = User.objects.for_organization(acme).filter(pk=user.pk)
        agents.delete(agent_rows, organization=acme, actor=TESTER)
        users.delete(user_rows, organization=acme, actor=TESTER)
        with pytest.raises(Conflict, match="The user of this session is in the trash"):
            agents.restore(agent_rows, organization=acme, actor=TESTER)
        users.restore(user_rows, organization=acme, actor=TESTER)
        assert agents.restore(agent_rows, organization=acme, actor=TESTER)["session"] == 1


def test_adding_a_memory_again_returns_the_same_row(acme):
    def say(speaker, content):
        values = {"content": content, "speaker": speaker}
        return add_memory(organization=acme, actor=TESTER, values=values, embed="later")

    first, again = say("Ann", "Likes tea"), say("Ann", " Likes tea ")
    assert (first.status, again.status) == ("created", "duplicate")
    assert again.id == first.id
    assert say("Bob", "Likes tea").status == "created"


def test_restoring_a_memory_beside_its_live_duplicate_is_a_conflict(acme):
    memory = make_memory(acme, content="Likes tea")
    with tenant(acme):
        rows = Memory.objects.for_organization(acme).filter(pk=memory.pk)
        memories.delete(rows, organization=acme, actor=TESTER)
    make_memory(acme, content="Likes tea")
    with tenant(acme), pytest.raises(Conflict, match="content exists already"):
        memories.restore(rows, organization=acme, actor=TESTER)


def test_history_has_every_change_of_a_memory(acme):
    memory = make_memory(acme, content="Likes tea")
    with tenant(acme):
        memories.update(memory, organization=acme, actor=TESTER, values={"content": "Likes coffee"})
        rows = Memory.objects.for_organization(acme).filter(pk=memory.pk)
        memories.delete(rows, organization=acme, actor=TESTER)
        memories.restore(rows, organization=acme, actor=TESTER)
        history = MemoryHistory.objects.for_organization(acme).order_by("id")
        assert [(h.change_type, h.version, h.content) for h in history] == [
            ("created", 1, "Likes tea"),
            ("updated", 2, "Likes coffee"),
            ("deleted", 2, "Likes coffee"),
            ("restored", 2, "Likes coffee"),
        ]


def test_an_update_that_changes_nothing_writes_nothing(acme):
    block = make_block(acme, value="same")
    with tenant(acme):
        after = blocks.update(block, organization=acme, actor=TESTER, values={"value": "same"})
        assert (after.version, after.updated_at) == (1, block.updated_at)


def test_a_user_with_their_memories_can_be_purged(acme):
    user = make_user(acme)
    session = make_session(acme, user=user)
    make_run(session)
    elsewhere = make_message(acme, user=user)
    make_memory(acme, user=user)

    with tenant(acme):
        rows = User.objects.for_organization(acme).filter(pk=user.pk)
        counts = users.purge(rows, organization=acme, actor=TESTER)
        assert counts == {"user": 1, "memory": 1, "memoryhistory": 1, "session": 1, "run": 1}
        message = Message.objects.for_organization(acme).get()
        assert (message.pk, message.user_id) == (elsewhere.pk, None)


def test_restored_memories_wait_for_the_index(acme):
    row = make_memory(acme)
    with tenant(acme):
        own = Memory.objects.for_organization(acme).filter(pk=row.pk)
        own.update(is_indexed=True)
        memories.delete(own, organization=acme, actor=TESTER)
        memories.restore(own, organization=acme, actor=TESTER)
        assert own.values_list("is_deleted", "is_indexed").get() == (False, False)
