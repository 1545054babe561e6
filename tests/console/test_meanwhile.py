"""A form is saved after somebody else changed the row: none of their changes is overwritten."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Event
from typing import Any
from unittest.mock import patch

import pytest
from django.contrib import admin
from django.db import connection, models

from accounts.console.inlines import LinkInline
from accounts.errors import Stale
from accounts.models import Member, Organization, User
from accounts.services.organizations import organizations
from accounts.services.seen import digest_of
from accounts.services.users import users
from accounts.tenancy import tenant
from agentmem_site.db.fields import TenantForeignKey
from memories.models import Agent, AgentBlock, AgentTool, Block, Memory
from memories.services.agents import (
    attach_block,
    attach_tool,
    detach_block,
    detach_tool,
)
from sessions.models import Message
from tests.console.cases import CASES
from tests.console.conftest import signed_in
from tests.console.sending import sent
from tests.console.test_pages import MODELS, rows, url
from tests.makers import (
    TESTER,
    make_agent,
    make_block,
    make_member,
    make_memory,
    make_message,
    make_run,
    make_session,
    make_tool,
    make_user,
)

pytestmark = pytest.mark.unguarded


def form_of(page: Any) -> Any:
    assert page.status_code == 200
    return page.context["adminform"].form


def again(row: Any) -> Any:
    with tenant(getattr(row, "organization_id", row.pk)):
        return type(row).objects.get(pk=row.pk)


def write(row: Any, **values: Any) -> None:
    """What an agent does meanwhile, through the service that the row's page uses."""
    whose = row if isinstance(row, Organization) else row.organization
    with tenant(whose):
        records = admin.site._registry[type(row)].records
        records.update(row, organization=whose, actor=TESTER, values=values)


def other_value(column: Any, row: Any, organization: Organization) -> Any:
    """A valid value of the column that differs from the row's."""
    before = getattr(row, column.attname)
    if isinstance(column, TenantForeignKey):
        make = {"user": make_user, "agent": make_agent, "session": make_session}
        if column.name == "run":
            return make_run(make_session(organization))
        return make[column.name](organization)
    if column.choices:  # (the last one: no member becomes the only owner)
        return next(value for value, _ in reversed(column.choices) if value != before)
    if isinstance(column, models.BooleanField):
        return not before
    if isinstance(column, models.JSONField):
        return {"written": ["meanwhile", 1]} if before != [] else ["meanwhile"]
    if isinstance(column, models.DateTimeField):
        return datetime(2031, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
    if isinstance(column, models.FloatField):
        return 0.75 if before == 0.25 else 0.25
    if isinstance(column, models.IntegerField):
        return before + 7
    if isinstance(column, models.EmailField):
        return "meanwhile@acme.example"
    if column.name == "tags":
        return ["meanwhile, with a comma", "b"]
    if column.name in ("settings",):
        return {"quotas": {"memories": 5}}
    if isinstance(column, models.TextField):
        return "\n  written meanwhile\n"
    return "Europe/Paris" if column.name == "timezone" else f"meanwhile-{column.name}"


def changed_by_hand(column: Any, row: Any, organization: Organization) -> dict[str, Any]:
    """What the browser sends for another value of this column."""
    value = other_value(column, row, organization)
    if isinstance(column, models.BooleanField):
        return {column.name: "on" if value else None}
    if isinstance(column, models.DateTimeField):
        return {f"{column.name}_0": "2031-05-07", f"{column.name}_1": "01:02:03"}
    if isinstance(column, models.JSONField):
        mine = ["by hand"] if isinstance(value, list) else {"by": "hand"}
        return {column.name: json.dumps(mine, indent=2).replace("\n", "\r\n")}
    if isinstance(column, models.ForeignKey):
        return {column.name: str(value.pk)}
    if column.name == "tags":
        return {"tags": "by,hand"}
    if isinstance(column, models.CharField | models.TextField) and not column.choices:
        if isinstance(column, models.EmailField):
            return {column.name: "hand@acme.example"}
        return {column.name: "UTC" if column.name == "timezone" else f"by-hand-{column.name}"}
    if isinstance(column, models.FloatField | models.IntegerField):
        return {column.name: str(value + 0.125 if isinstance(value, float) else value + 1)}
    return {column.name: str(value)}


def filled(data: dict[str, Any], typed: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**data, **typed}.items() if value is not None}


def boxes(page: Any, model: Any) -> list[Any]:
    """The columns that can be changed in the form."""
    columns = {column.name: column for column in model._meta.concrete_fields}
    return [columns[name] for name in form_of(page).fields if name in columns]


EDITED = [m for m in MODELS if m._meta.model_name != "auditevent"]
edited_names = [model._meta.model_name for model in EDITED]


def row_of(model: Any, acme: Organization) -> Any:
    return CASES[model].make(acme)


@pytest.mark.parametrize("model", EDITED, ids=edited_names)
def test_a_save_does_not_overwrite_fields_that_somebody_else_changed(model, console, acme):
    """Each field in turn is changed by an agent while a person changes another one."""
    row = row_of(model, acme)
    page = console.get(url(model, "change", row.pk))
    columns = boxes(page, model)
    assert columns
    for position, column in enumerate(columns):
        mine = columns[position - 1]  # (a single column would conflict: tested below)
        if mine is column:
            continue
        row = again(row)
        data = sent(console.get(url(model, "change", row.pk)))
        theirs = other_value(column, row, acme)
        typed = changed_by_hand(mine, row, acme)
        write(row, **{column.name: theirs})
        page = console.post(url(model, "change", row.pk), filled(data, typed))
        if page.status_code != 302 and mine.name == "settings":  # counts first
            page = console.post(url(model, "change", row.pk), filled(sent(page), typed))
        assert page.status_code == 302, (mine.name, form_of(page).errors)
        stored = getattr(again(row), column.attname)
        assert stored == getattr(theirs, "pk", theirs), column.name
        before, after = getattr(row, mine.attname), getattr(again(row), mine.attname)
        assert before != after, mine.name


@pytest.mark.parametrize("model", EDITED, ids=edited_names)
def test_a_conflict_in_one_field_shows_both_values_and_the_second_save_wins(model, console, acme):
    row = row_of(model, acme)
    for column in boxes(console.get(url(model, "change", row.pk)), model):
        row = again(row)
        data = sent(console.get(url(model, "change", row.pk)))
        theirs = other_value(column, row, acme)
        typed = changed_by_hand(column, row, acme)
        if isinstance(column, models.BooleanField) or column.choices:
            # Both choose the same value: no conflict.
            data = filled(data, typed)
            sent_back = changed_by_hand(column, row, acme)
            write(row, **{column.name: theirs})
            page = console.post(url(model, "change", row.pk), filled(data, sent_back))
            assert page.status_code == 302, (column.name, form_of(page).errors)
            assert getattr(again(row), column.attname) == theirs
            continue
        if column.name == "timezone":
            typed = {"timezone": "Asia/Tokyo"}
        write(row, **{column.name: theirs})
        row = again(row)
        theirs = getattr(row, column.attname)
        page = console.post(url(model, "change", row.pk), filled(data, typed))
        form = form_of(page)
        assert list(form.errors) == [column.name], column.name
        message = form.errors[column.name][0]
        assert "changed this while you had it open" in message
        assert "tester" in message or "someone" in message
        assert "Current value" in message
        assert "Your value" in message
        assert getattr(again(row), column.attname) == theirs  # nothing is written
        assert again(row).updated_at == row.updated_at

        shown = sent(page)  # the field still has what the person typed
        for name, value in typed.items():
            assert shown[name] == value
        page = console.post(url(model, "change", row.pk), shown)
        assert page.status_code == 302, (column.name, form_of(page).errors)
        assert getattr(again(row), column.attname) != theirs, column.name


@pytest.mark.parametrize("model", EDITED, ids=edited_names)
def test_a_form_submitted_unchanged_changes_nothing(model, console, acme):
    """Whatever an agent wrote: leading and trailing line breaks, commas in tags, microseconds."""
    row = row_of(model, acme)
    for column in boxes(console.get(url(model, "change", row.pk)), model):
        write(row, **{column.name: other_value(column, again(row), acme)})
    row = again(row)
    data = sent(console.get(url(model, "change", row.pk)))
    page = console.post(url(model, "change", row.pk), data)
    assert page.status_code == 302, form_of(page).errors
    assert again(row).updated_at == row.updated_at


def test_the_page_of_a_conflict_has_both_texts_and_current_other_values(console, acme):
    memory = make_memory(acme, content="Likes tea", speaker="Ada", importance=0.5)
    data = sent(console.get(url(Memory, "change", memory.pk)))
    write(memory, content="Likes <b>coffee</b>", speaker="Grace")
    page = console.post(
        url(Memory, "change", memory.pk), data | {"content": "Likes cocoa", "importance": "0.9"}
    )
    html = page.content.decode()
    assert "Likes &lt;b&gt;coffee&lt;/b&gt;" in form_of(page).errors["content"][0]
    assert "Likes cocoa" in form_of(page).errors["content"][0]
    assert "<b>coffee</b>" not in html
    shown = sent(page)
    assert (shown["content"], shown["importance"]) == ("Likes cocoa", "0.9")
    assert shown["speaker"] == "Grace"  # which was not changed here
    stored = again(memory)
    assert (stored.content, stored.speaker, stored.importance) == (
        "Likes <b>coffee</b>",
        "Grace",
        0.5,
    )

    # Changed again before the second save: refused again.
    write(memory, content="Likes water")
    page = console.post(url(Memory, "change", memory.pk), shown)
    assert "Likes water" in form_of(page).errors["content"][0]
    assert console.post(url(Memory, "change", memory.pk), sent(page)).status_code == 302
    stored = again(memory)
    assert (stored.content, stored.speaker, stored.importance) == ("Likes cocoa", "Grace", 0.9)


def test_an_error_in_one_field_keeps_the_digests_of_the_others(console, acme):
    block = make_block(acme, value="I am helpful.", limit=100)
    data = sent(console.get(url(Block, "change", block.pk)))
    page = console.post(
        url(Block, "change", block.pk), data | {"value": "I am brief.", "limit": "x"}
    )
    assert list(form_of(page).errors) == ["limit"]
    write(block, value="I am an agent's.")
    page = console.post(url(Block, "change", block.pk), sent(page) | {"limit": "90"})
    assert list(form_of(page).errors) == ["value"]
    assert again(block).value == "I am an agent's."


def test_an_unchanged_text_is_not_checked_against_a_new_limit(console, acme):
    """The limit is checked against the current value, not the one that was shown."""
    block = make_block(acme, value="long " * 10, limit=100)
    data = sent(console.get(url(Block, "change", block.pk)))
    write(block, value="short")
    page = console.post(url(Block, "change", block.pk), data | {"limit": "10"})
    assert page.status_code == 302, form_of(page).errors
    assert (again(block).value, again(block).limit) == ("short", 10)


def test_the_same_change_by_both_is_no_conflict(console, acme):
    user = make_user(acme, name="Ada")
    data = sent(console.get(url(User, "change", user.pk)))
    write(user, name="Ada Lovelace")
    page = console.post(url(User, "change", user.pk), data | {"name": "Ada Lovelace"})
    assert page.status_code == 302


@pytest.mark.parametrize("carried", ["", "made:up", "another row's"])
def test_a_form_without_digests_conflicts_with_every_change(carried, console, acme):
    user, other = make_user(acme, name="Ada"), make_user(acme, name="Grace")
    data = sent(console.get(url(User, "change", user.pk)))
    if carried == "another row's":
        carried = sent(console.get(url(User, "change", other.pk)))["as_shown"]
    write(user, email="ada@acme.example")
    stale = data | {"name": "Ada Lovelace", "as_shown": carried}
    page = console.post(url(User, "change", user.pk), stale)
    assert set(form_of(page).errors) == {"name", "email"}
    assert (again(user).name, again(user).email) == ("Ada", "ada@acme.example")


def test_a_change_between_the_comparison_and_the_lock_is_refused_too(console, acme):
    """Only the service locks the row; by then, what the form compared may be outdated."""
    user = make_user(acme, name="Ada")
    data = sent(console.get(url(User, "change", user.pk)))
    page_of = admin.site._registry[User]
    update, calls = page_of.records.update, []

    def late(record: Any, **kwargs: Any) -> Any:
        if not calls:
            calls.append(record)
            users.update(
                record, organization=acme, actor=TESTER, values={"name": "Grace", "timezone": "UTC"}
            )
        return update(record, **kwargs)

    with patch.object(page_of.records, "update", late):
        page = console.post(url(User, "change", user.pk), data | {"name": "Ada L."})
    # The refused save rolled back what `late` wrote, in the same transaction.
    assert form_of(page).errors == {"name": ["Somebody else has changed this in the meantime."]}
    assert again(user).name == "Ada"


def test_the_service_compares_under_its_lock(acme):
    user = make_user(acme, name="Ada", timezone="UTC")
    seen = {"name": digest_of(user, "name"), "timezone": digest_of(user, "timezone")}
    by = {"organization": acme, "actor": TESTER}
    with tenant(acme):
        users.update(user, values={"name": "Grace"}, **by)
        with pytest.raises(Stale) as refused:
            users.update(user, values={"name": "Ada L.", "timezone": "CET"}, seen=seen, **by)
        assert refused.value.field == "name"
        users.update(user, values={"timezone": "CET"}, seen=seen, **by)
        users.update(user, values={"name": "Grace"}, seen=seen, **by)  # it already has that value
        users.update(user, values={"name": "Ada L."}, **by)  # without `seen` nothing is compared
    assert (again(user).name, again(user).timezone) == ("Ada L.", "CET")


@pytest.mark.django_db(transaction=True)
def test_a_save_that_waited_for_the_lock_compares_the_new_values(acme):
    user = make_user(acme, name="Ada")
    seen = {"name": digest_of(user, "name")}
    by = {"organization": acme, "actor": TESTER}
    has_begun = Event()

    def save() -> None:
        try:
            with tenant(acme):
                has_begun.set()
                users.update(user, values={"name": "Ada L."}, seen=seen, **by)
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as thread:
        with tenant(acme):
            users.update(user, values={"name": "Grace"}, **by)
            saved = thread.submit(save)
            assert has_begun.wait(10)
            time.sleep(0.3)
            assert not saved.done()
        with pytest.raises(Stale):
            saved.result(10)
    assert again(user).name == "Grace"


@pytest.mark.parametrize("model", EDITED, ids=edited_names)
def test_a_row_that_was_deleted_meanwhile(model, console, platform_console, acme):
    row = row_of(model, acme)
    client = platform_console if model is Organization else console
    data = sent(client.get(url(model, "change", row.pk)))
    client.post(url(model, "delete", row.pk))
    column = next(c for c in boxes(client.get(url(model, "add")), model) if c.name in data)
    page = client.post(url(model, "change", row.pk), data | {column.name: "typed-by-hand"})
    assert page.status_code == 409
    html = page.content.decode()
    assert f"moved this {model._meta.verbose_name} to the trash while you had it open" in html
    assert page.context["typed"] == [(str(column.verbose_name), "typed-by-hand")]
    assert "typed-by-hand" in html
    assert getattr(again(row), column.attname) != "typed-by-hand"


@pytest.mark.parametrize("model", [m for m in EDITED if admin.site._registry[m].can_purge])
def test_a_row_that_was_purged_meanwhile(model, console, acme):
    row = row_of(model, acme)
    data = sent(console.get(url(model, "change", row.pk)))
    console.post(url(model, "delete", row.pk))
    console.post(url(model, "purge", row.pk))
    page = console.post(url(model, "change", row.pk), data)
    assert page.status_code == 409
    assert "for good while you had it open" in page.content.decode()
    assert page.context["typed"] == []


def test_a_save_without_permission_reveals_nothing(viewer, acme):
    user = make_user(acme)
    page = viewer.post(url(User, "change", user.pk), {"name": "x"})
    assert page.status_code == 403
    missing = viewer.post(url(User, "change", make_agent(acme).pk), {"name": "x"})
    assert missing.status_code == 403


def test_a_row_in_the_trash_cannot_be_changed(acme):
    user = make_user(acme)
    with tenant(acme):
        users.delete(rows(User, acme), organization=acme, actor=TESTER)
        with pytest.raises(Exception, match="It is in the trash"):
            users.update(user, organization=acme, actor=TESTER, values={"name": "x"})


def test_links_that_were_added_and_removed_meanwhile(console, acme):
    agent, by = make_agent(acme), {"organization": acme, "actor": TESTER}
    first, second, third = (make_block(acme) for _ in range(3))
    hammer, saw, file = (make_tool(acme) for _ in range(3))
    with tenant(acme):
        for block in (first, second):
            attach_block(agent, block, **by)
        for tool in (hammer, saw):
            attach_tool(agent, tool, **by)
    data = sent(console.get(url(Agent, "change", agent.pk)))
    with tenant(acme):
        detach_block(agent, first, **by)
        attach_block(agent, third, **by)
        detach_tool(agent, hammer, **by)
        attach_tool(agent, file, **by)
    # The person detaches both blocks, of which one was deleted, and the deleted tool.
    changes = {"block_links-0-DELETE": "on", "block_links-1-DELETE": "on"}
    changes |= {"tool_links-0-DELETE": "on", "topic": "parcels"}
    page = console.post(url(Agent, "change", agent.pk), data | changes)
    assert page.status_code == 302, page.context["adminform"].form.errors
    with tenant(acme):
        links = AgentBlock.objects.for_organization(acme)
        assert list(links.values_list("block", flat=True)) == [third.pk]
        links = AgentTool.objects.for_organization(acme).order_by("created_at")
        assert list(links.values_list("tool", flat=True)) == [saw.pk, file.pk]


def test_removed_links_are_left_out_of_a_form_that_is_shown_again(console, acme):
    agent, by = make_agent(acme), {"organization": acme, "actor": TESTER}
    first, second = make_block(acme), make_block(acme)
    with tenant(acme):
        for block in (first, second):
            attach_block(agent, block, **by)
    data = sent(console.get(url(Agent, "change", agent.pk)))
    with tenant(acme):
        detach_block(agent, first, **by)
        link = AgentBlock.objects.for_organization(acme).get()
    page = console.post(url(Agent, "change", agent.pk), data | {"metadata": "{"})
    shown = sent(page)
    assert "block_links-0-id" not in shown
    assert shown["block_links-1-id"] == str(link.pk)
    fixed = shown | {"metadata": "{}", "block_links-1-DELETE": "on"}
    page = console.post(url(Agent, "change", agent.pk), fixed)
    assert page.status_code == 302, page.context["adminform"].form.errors
    with tenant(acme):
        assert not AgentBlock.objects.for_organization(acme).exists()


def test_an_unchanged_reference_to_a_purged_row_does_not_prevent_a_save(console, acme):
    ada, grace = make_user(acme), make_user(acme)
    message = make_message(acme, user=ada, text="Hello")
    data = sent(console.get(url(Message, "change", message.pk)))
    write(message, user=grace)
    console.post(url(User, "delete", ada.pk))
    page = console.post(url(Message, "change", message.pk), data | {"text": "Good morning"})
    assert page.status_code == 302, form_of(page).errors
    assert (again(message).text, again(message).user_id) == ("Good morning", grace.pk)


def test_a_member_who_became_admin_meanwhile_stays_admin(acme):
    boss = signed_in(make_member(acme, "olga", role="owner"))
    bob = make_member(acme, "bob", role="viewer")
    data = sent(boss.get(url(Member, "change", bob.pk)))
    write(bob, role="admin", is_active=False)
    typed = {"name": "Robert", "password1": "a longer pass phrase"}
    typed["password2"] = typed["password1"]
    assert boss.post(url(Member, "change", bob.pk), data | typed).status_code == 302
    bob.refresh_from_db()
    assert (bob.name, bob.role, bob.is_active) == ("Robert", "admin", False)
    assert bob.check_password(typed["password1"])


def test_settings_that_both_changed(console, acme):
    data = sent(console.get(url(Organization, "change", acme.pk)))
    with tenant(acme):
        organizations.update(
            acme, organization=acme, actor=TESTER, values={"settings": {"language": "german"}}
        )
    typed = {"settings": '{"quotas": {"memories": 5}}'}
    page = console.post(url(Organization, "change", acme.pk), data | typed)
    assert "german" in form_of(page).errors["settings"][0]
    assert again(acme).settings == {"language": "german"}
    assert console.post(url(Organization, "change", acme.pk), sent(page)).status_code == 302
    assert again(acme).settings == {"quotas": {"memories": 5}}


def test_no_list_is_edited_in_place_and_no_inline_changes_a_row():
    """Both would write without the comparison of forms."""
    for page in admin.site._registry.values():
        assert not page.list_editable
        assert all(issubclass(inline, LinkInline) for inline in page.inlines)
