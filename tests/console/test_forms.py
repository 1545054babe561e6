"""What forms refuse, and what they do besides saving the row."""

import pytest

from accounts.models import ApiKey, AuditEvent, Member, Organization, User
from accounts.tenancy import tenant
from memories.models import Agent, AgentBlock, AgentTool, Block, Memory, Tool
from sessions.models import Run, Session
from tests.console.cases import CASES
from tests.console.sending import sent
from tests.console.test_pages import url
from tests.makers import (
    make_agent,
    make_block,
    make_memory,
    make_session,
    make_tool,
    make_user,
)

pytestmark = pytest.mark.unguarded


def errors(page):
    assert page.status_code == 200
    return page.context["adminform"].form.errors


def test_a_key_that_exists_is_an_error_of_its_field(console, acme):
    make_tool(acme, name="search")
    page = console.post(url(Tool, "add"), CASES[Tool].form)
    taken = ["There is another tool with this name, perhaps in the trash."]
    assert errors(page) == {"name": taken}


def test_a_refusal_of_the_service_is_an_error_of_the_form(console, acme):
    make_memory(acme, content="Likes tea")
    page = console.post(url(Memory, "add"), CASES[Memory].form)
    assert errors(page) == {"__all__": ["A memory of this content exists already."]}
    with tenant(acme):
        assert Memory.objects.for_organization(acme).count() == 1


def test_the_error_of_a_block_over_its_limit_has_both_numbers(console):
    form = {**CASES[Block].form, "value": "one\r\ntwo", "limit": "6"}
    messages = ["The value has 7 characters; the block's limit is 6."]
    assert errors(console.post(url(Block, "add"), form)) == {"value": messages}
    page = console.post(url(Block, "add"), {**form, "limit": "-1"})
    assert errors(page) == {"limit": ["The limit is at least 1."]}
    assert console.post(url(Block, "add"), {**form, "limit": "7"}).status_code == 302


def test_a_key_follows_the_rule_of_all_doors(console, acme):
    form = CASES[Session].form
    for key, stored in [("a/b", "a/b"), ("by-key", "by-key"), ("\t é \n", "é")]:
        assert console.post(url(Session, "add"), {**form, "session_id": key}).status_code == 302
        with tenant(acme):
            assert Session.objects.for_organization(acme).filter(session_id=stored).exists()
    page = console.post(url(Session, "add"), {**form, "session_id": "a\x07b"})
    message = "A key cannot hold control characters: character 2 is U+0007."
    assert errors(page) == {"session_id": [message]}
    page = console.post(url(Session, "add"), {**form, "session_id": " "})
    assert errors(page) == {"session_id": ["This field is required."]}
    form = {**CASES[Run].form, "session": make_session(acme).pk, "run_id": "last"}
    assert console.post(url(Run, "add"), form).status_code == 302


def test_a_refused_restore_is_a_message(console, acme):
    memory = make_memory(acme, content="Likes tea")
    console.post(url(Memory, "delete", memory.pk))
    make_memory(acme, content="Likes tea")
    page = console.post(url(Memory, "restore", memory.pk), follow=True)
    assert "A memory of this content exists already." in page.content.decode()
    with tenant(acme):
        assert Memory.objects.for_organization(acme).get(pk=memory.pk).is_deleted


def test_an_empty_json_field_is_the_default_and_invalid_json_an_error(console, acme):
    console.post(url(Agent, "add"), {**CASES[Agent].form, "metadata": ""})
    with tenant(acme):
        agent = Agent.objects.for_organization(acme).get()
    assert (agent.metadata, agent.tool_rules, agent.llm_config) == ({}, [], {"model": "m"})
    page = console.post(url(Agent, "add"), {**CASES[Agent].form, "metadata": "{"})
    assert errors(page)["metadata"][0].startswith("This is not JSON: ")
    page = console.post(url(Agent, "add"), {**CASES[Agent].form, "metadata": "[1]"})
    assert errors(page) == {"__all__": ["Metadata must be a JSON object."]}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (r'{"a": "\ud800"}', "A string contains a NUL character or a lone surrogate."),
        (r'{"a": "\u0000"}', "A string contains a NUL character or a lone surrogate."),
        ("[" * 2_000, "The JSON is nested deeper than 64 levels."),
        ('{"a": %s}' % ("9" * 5_000), "A number has more than 38 digits."),
        ('{"a": NaN}', "NaN is not JSON."),
    ],
)
def test_json_that_cannot_be_stored_is_an_error_of_its_field(console, text, why):
    page = console.post(url(User, "add"), {**CASES[User].form, "metadata": text})
    assert errors(page) == {"metadata": [why]}
    assert page.context["adminform"].form["metadata"].value() == text


def test_a_form_submitted_unchanged_changes_no_text(console, acme):
    content = "  def f():\n    pass\n"
    memory = make_memory(acme, content=content, context="one\ntwo")
    form = sent(console.get(url(Memory, "change", memory.pk)))
    assert form["content"] == "  def f():\r\n    pass\r\n"
    console.post(url(Memory, "change", memory.pk), form)
    with tenant(acme):
        same = Memory.objects.for_organization(acme).get(pk=memory.pk)
    assert (same.content, same.context, same.version) == (content, "one\ntwo", memory.version)
    console.post(url(Memory, "change", memory.pk), {**form, "content": "  one\r\nother\r\n"})
    with tenant(acme):
        changed = Memory.objects.for_organization(acme).get(pk=memory.pk)
    assert (changed.content, changed.version) == ("  one\nother\n", memory.version + 1)


def test_a_reference_to_another_organization_is_refused(console, acme, globex):
    theirs = make_user(globex)
    page = console.post(url(Session, "add"), {**CASES[Session].form, "user": theirs.pk})
    assert "valid choice" in errors(page)["user"][0]


def test_a_superuser_chooses_the_organization_of_a_new_row(platform_console, acme, globex):
    page = platform_console.post(url(Session, "add"), CASES[Session].form)
    assert errors(page) == {"for_organization": ["This field is required."]}

    whose = {**CASES[Session].form, "for_organization": acme.pk}
    page = platform_console.post(url(Session, "add"), {**whose, "user": make_user(globex).pk})
    assert errors(page) == {"user": ["This belongs to another organization."]}

    page = platform_console.post(url(Session, "add"), {**whose, "user": make_user(acme).pk})
    assert page.status_code == 302
    with tenant(acme):
        session = Session.objects.for_organization(acme).get()
    page = platform_console.get(url(Session, "change", session.pk))
    assert f"?organization={acme.pk}" in page.content.decode()


def test_a_reference_in_the_trash_is_kept_when_another_field_changes(console, acme):
    from sessions.models import Message
    from tests.makers import make_message

    agent = make_agent(acme)
    message = make_message(acme, agent=agent)
    console.post(url(Agent, "delete", agent.pk))
    data = sent(console.get(url(Message, "change", message.pk))) | {"text": "Changed"}
    assert console.post(url(Message, "change", message.pk), data).status_code == 302
    with tenant(acme):
        message = Message.objects.for_organization(acme).get()
    assert (message.text, message.agent_id) == ("Changed", agent.pk)


def test_blocks_and_tools_are_attached_and_detached_on_the_page_of_the_agent(console, acme):
    agent, block, tool = make_agent(acme), make_block(acme), make_tool(acme)
    data = sent(console.get(url(Agent, "change", agent.pk)))
    added = {
        "block_links-TOTAL_FORMS": "1",
        "block_links-0-block": block.pk,
        "tool_links-TOTAL_FORMS": "1",
        "tool_links-0-tool": tool.pk,
    }
    page = console.post(url(Agent, "change", agent.pk), data | added)
    assert page.status_code == 302
    with tenant(acme):
        link = AgentBlock.objects.for_organization(acme).get()
        assert (link.block_id, link.block_label) == (block.pk, block.label)
        assert AgentTool.objects.for_organization(acme).get().tool_id == tool.pk

    page = console.get(url(Agent, "change", agent.pk))
    assert block.label in page.content.decode()
    removals = {
        "block_links-0-id": link.pk,
        "block_links-0-agent": agent.pk,
        "block_links-0-DELETE": "on",
        "tool_links-TOTAL_FORMS": "0",
        "tool_links-INITIAL_FORMS": "0",
    }
    assert console.post(url(Agent, "change", agent.pk), sent(page) | removals).status_code == 302
    with tenant(acme):
        assert not AgentBlock.objects.for_organization(acme).exists()
        assert AgentTool.objects.for_organization(acme).count() == 1

    twin = make_block(acme, label=block.label)
    both = {
        "block_links-TOTAL_FORMS": "2",
        "block_links-0-block": block.pk,
        "block_links-1-block": twin.pk,
    }
    data = sent(console.get(url(Agent, "change", agent.pk)))
    page = console.post(url(Agent, "change", agent.pk), data | both)
    assert errors(page) == {"__all__": ["The agent has a block of this label already."]}
    with tenant(acme):
        assert not AgentBlock.objects.for_organization(acme).exists()  # it has neither of the two


def test_a_run_is_appended_after_the_last(console, acme):
    session = make_session(acme)
    for number in range(2):
        form = {**CASES[Run].form, "run_id": f"r-{number}", "session": session.pk}
        assert console.post(url(Run, "add"), form).status_code == 302
    with tenant(acme):
        runs = Run.objects.for_organization(acme).order_by("position")
        assert list(runs.values_list("run_id", "position")) == [("r-0", 0), ("r-1", 1)]


def test_a_new_key_is_shown_once_and_works(console, acme):
    from accounts.access import authenticate_key

    page = console.post(url(ApiKey, "add"), CASES[ApiKey].form)
    secret = page.context["secret"]
    assert secret in page.content.decode()
    holder = authenticate_key(secret)
    assert holder is not None
    assert holder.organization == acme
    assert holder.actor.may("memory:read")
    assert not holder.actor.may("memory:write")
    with tenant(acme):
        key = ApiKey.objects.for_organization(acme).get()
    assert secret not in console.get(url(ApiKey, "change", key.pk)).content.decode()

    console.post(url(ApiKey, "revoke", key.pk))
    assert authenticate_key(secret) is None


def test_a_member_gets_a_password_that_is_shown_once_or_the_one_typed(console, client, acme):
    page = console.post(url(Member, "add"), {**CASES[Member].form, "is_staff": "on"})
    bob = Member.objects.get(email="bob@acme.example")
    assert bob.organization == acme
    assert bob.check_password(page.context["secret"])

    data = sent(console.get(url(Member, "change", bob.pk)))
    page = console.post(
        url(Member, "change", bob.pk), data | {"password1": "short", "password2": "short"}
    )
    assert "too short" in str(errors(page))
    typed = {"password1": "a longer pass phrase", "password2": "another long phrase"}
    page = console.post(url(Member, "change", bob.pk), data | typed)
    assert errors(page) == {"password2": ["The two passwords do not match."]}
    typed["password2"] = typed["password1"]
    assert console.post(url(Member, "change", bob.pk), data | typed).status_code == 302
    bob.refresh_from_db()
    assert bob.check_password(typed["password1"])


def test_admins_change_their_organization_and_superusers_create_and_delete_them(
    console, platform_console, acme
):
    form = {"name": "Acme Ltd", "settings": '{"quotas": {"memories": 5}}', "slug": "mine"}
    form = sent(console.get(url(Organization, "change", acme.pk))) | form
    assert console.post(url(Organization, "change", acme.pk), form).status_code == 302
    acme.refresh_from_db()
    assert (acme.name, acme.slug, acme.settings["quotas"]) == ("Acme Ltd", "acme", {"memories": 5})

    values = {"name": "Initech", "slug": "initech", "settings": ""}
    assert platform_console.post(url(Organization, "add"), values).status_code == 302
    page = platform_console.post(url(Organization, "add"), values)
    assert "slug" in errors(page)
    initech = Organization.objects.get(slug="initech")
    assert initech.settings == {}
    platform_console.post(url(Organization, "delete", initech.pk))
    initech.refresh_from_db()
    assert initech.is_deleted


def test_nobody_locks_themselves_out(console, alice):
    picked = {"_selected_action": str(alice.pk), "action": "move_to_trash", "confirmed": "yes"}
    console.post(url(Member, "changelist"), picked)
    alice.refresh_from_db()
    assert not alice.is_deleted
    data = sent(console.get(url(Member, "change", alice.pk)))
    assert {"role", "is_active", "is_staff"}.isdisjoint(data)
    assert console.post(url(Member, "delete", alice.pk)).status_code == 403


def test_user_content_is_escaped(console, acme):
    script = "<script>alert(1)</script>"
    memory = make_memory(acme, content=script, metadata={script: script})
    agent = make_agent(acme, name=script, description=script, llm_config={script: [script]})
    session = make_session(acme, name=script, agent=agent)
    from tests.makers import make_message, make_run

    make_message(acme, session=session, text=script, content={script: script}, tool_calls=[script])
    make_run(session, content=script, messages=[{"role": script, "content": script}])
    pages = [
        url(Memory, "changelist"),
        url(Memory, "change", memory.pk),
        url(Memory, "delete", memory.pk),
        url(Agent, "changelist"),
        url(Agent, "change", agent.pk),
        url(Agent, "history", agent.pk),
        url(Session, "change", session.pk),
        url(Session, "changelist"),
        "/admin/",
    ]
    for page in pages:
        answer = console.get(page)
        assert script not in answer.content.decode()
        assert "script-src 'self' 'unsafe-eval';" in answer["Content-Security-Policy"]


def test_selected_rows_are_deleted_restored_and_purged(console, acme):
    users = [make_user(acme) for _ in range(3)]
    session = make_session(acme, user=users[0])
    picked = {"_selected_action": [str(u.pk) for u in users[:2]], "index": "0"}
    page = console.post(url(User, "changelist"), picked | {"action": "move_to_trash"})
    assert "2 users, 1 session" in page.content.decode()
    with tenant(acme):
        # It only asks for confirmation.
        assert User.objects.for_organization(acme).live().count() == 3

    del picked["index"]
    confirmed = picked | {"confirmed": "yes"}
    console.post(url(User, "changelist"), confirmed | {"action": "move_to_trash"})
    with tenant(acme):
        assert list(User.objects.for_organization(acme).live()) == [users[2]]
        assert not Session.objects.for_organization(acme).live().exists()

    trash = url(User, "changelist", is_deleted=1)
    console.post(trash, {"_selected_action": str(users[0].pk), "action": "restore_selected"})
    with tenant(acme):
        assert list(Session.objects.for_organization(acme).live()) == [session]
    one = {"_selected_action": str(users[1].pk), "action": "purge_selected", "confirmed": "yes"}
    console.post(trash, one)
    with tenant(acme):
        assert User.objects.for_organization(acme).count() == 2
        assert AuditEvent.objects.for_organization(acme).filter(action="erased").count() == 1
