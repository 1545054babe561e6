"""Erasing a person: nothing of theirs is left in any table, and nothing of others is deleted."""

import io
import json
import re

import pytest
from django.apps import apps
from django.core.management import CommandError, call_command
from django.db import connection

from accounts.access import authenticate_key
from accounts.console import show
from accounts.models import AuditEvent, User
from accounts.services.users import users
from accounts.tenancy import platform, tenant
from agentmem_site.bulk import LoadOptions
from agentmem_site.services.loads import run_load
from memories.models import CachedVector, Memory
from memories.services.agents import attach_block
from memories.services.memories import memories
from sessions.models import Message, Session
from tests.api.conftest import client_with
from tests.console.conftest import signed_in
from tests.console.test_pages import url
from tests.makers import (
    TESTER,
    make_agent,
    make_block,
    make_cached_vector,
    make_key,
    make_memory,
    make_message,
    make_run,
    make_session,
    make_user,
)

CANARY = "canary-7f3a"  # in each of their texts
THEIRS = {
    "message": 5,
    "memoryhistory": 5,
    "memory": 3,
    "run": 1,
    "session": 2,
    "agentblock": 1,
    "block": 1,
    "user": 1,
}


@pytest.fixture
def person(acme):
    """A person with rows of every kind, some in the trash, among rows of others."""
    user = make_user(
        acme,
        external_id=CANARY,
        name=f"Ann {CANARY}",
        email=f"{CANARY}@a.example",
        metadata={"a": CANARY},
    )
    other, agent = make_user(acme, external_id="other"), make_agent(acme)
    block = make_block(acme, user=user, value=CANARY, label=CANARY)
    session = make_session(acme, user=user, agent=agent, session_id=f"s {CANARY}", name=CANARY)
    run = make_run(session, content=CANARY, messages=[{"content": CANARY}])
    make_message(acme, session=session, text=CANARY)
    make_message(acme, session=session, run=run, user=other, text=f"Hello {CANARY}")
    make_message(acme, session=make_session(acme, user=other), user=user, text=CANARY)
    make_message(acme, user=user, agent=agent, text=CANARY)
    trashed = make_session(acme, user=user, session_id=f"t {CANARY}")
    make_message(acme, session=trashed, text=CANARY)
    changed = make_memory(acme, user=user, agent=agent, content=f"First {CANARY}")
    deleted = make_memory(acme, user=user, content=f"Then {CANARY}", speaker=CANARY)
    make_memory(acme, session_id=session.session_id, content=f"Learnt of {CANARY}")
    make_memory(acme, user=other, content="Likes tea.", session_id=session.session_id)
    make_message(acme, user=other, text="Untouched.")
    by = {"organization": acme, "actor": TESTER}
    with tenant(acme):
        attach_block(agent, block, **by)
        users.update(user, values={"name": f"Anna {CANARY}", "status": "inactive"}, **by)
        memories.update(changed, values={"content": f"Second {CANARY}"}, **by)
        memories.delete(Memory.objects.for_organization(acme).filter(pk=deleted.pk), **by)
        Session.objects.for_organization(acme).filter(pk=trashed.pk).update(
            is_deleted=True, deleted_at=trashed.created_at
        )
        kept = Memory.objects.for_organization(acme).get(content="Likes tea.")
    make_cached_vector(acme, hash=bytes(changed.hash))
    make_cached_vector(acme, hash=bytes(deleted.hash))
    make_cached_vector(acme, hash=bytes(kept.hash))
    return user


def tables_with(text):
    """The tables that contain the text, of any organization."""
    tables = []
    with platform(), connection.cursor() as cursor:
        for model in apps.get_models():
            if model._meta.app_label not in ("accounts", "memories", "agent_sessions"):
                continue
            table = model._meta.db_table
            cursor.execute(
                f"SELECT count(*) FROM {table} t WHERE to_jsonb(t)::text LIKE %s", [f"%{text}%"]
            )
            tables += [table] if cursor.fetchone()[0] else []
    return tables


def erase(*arguments, **options):
    out = io.StringIO()
    options = {"organization": "acme", "json": True, **options}
    call_command("erase_user", *arguments, stdout=out, **options)
    return json.loads(out.getvalue())


@pytest.mark.unguarded  # (tables_with looks everywhere)
def test_only_the_audit_event_of_an_erased_person_is_left(acme, person):
    assert len(tables_with(CANARY)) >= 8
    with tenant(acme):
        own = AuditEvent.objects.for_organization(acme)
        assert own.filter(resource_id=person.pk, action="updated").exists()
    assert erase(CANARY, dry_run=True) == THEIRS
    assert erase(CANARY, yes=True) == THEIRS
    assert tables_with(CANARY) == []
    assert tables_with(str(person.pk)) == ["accounts_auditevent"]
    with tenant(acme):
        event = AuditEvent.objects.for_organization(acme).get(action="erased")
        assert (event.resource_type, event.resource_id) == ("user", person.pk)
        assert event.changes == {"rows": THEIRS}
        # The rows of others are still there.
        memory = Memory.objects.for_organization(acme).get()
        assert (memory.content, memory.session_id) == ("Likes tea.", None)
        assert Message.objects.for_organization(acme).get().text == "Untouched."
        assert Session.objects.for_organization(acme).count() == 1
        assert User.objects.for_organization(acme).get().external_id == "other"
        vectors = CachedVector.objects.for_organization(acme)
        hashes = set(Memory.objects.for_organization(acme).values_list("hash", flat=True))
        assert {bytes(v.hash) for v in vectors} == {bytes(h) for h in hashes}


@pytest.mark.unguarded
def test_purging_a_user_in_the_console_erases_them(acme, person, alice, settings):
    settings.WHITENOISE_AUTOREFRESH = True
    console = signed_in(alice)
    console.post(url(User, "delete", person.pk))
    page = console.get(url(User, "purge", person.pk)).content.decode()
    assert "Everything of theirs goes" in page
    # (One version more: the memory that lay in the trash with its user.)
    rows = {**THEIRS, "memoryhistory": 6}
    (counts,) = re.findall("This affects (.*?)[.]<", page)
    assert set(counts.split(", ")) == set(show.counted(rows, at_most=10**9).split(", "))
    assert tables_with(CANARY)
    console.post(url(User, "purge", person.pk))
    assert tables_with(CANARY) == []
    assert tables_with(str(person.pk)) == ["accounts_auditevent"]
    with tenant(acme):
        event = AuditEvent.objects.for_organization(acme).get(action="erased")
        assert (event.actor_id, event.changes) == (alice.pk, {"rows": rows})


def test_a_preview_changes_nothing(acme, person):
    api = client_with(make_key(acme))
    preview = api.delete(f"users/{CANARY}?erase=preview")
    assert (preview.status_code, preview.json()) == (200, {"erased": False, "rows": THEIRS})
    assert erase(str(person.pk), dry_run=True) == THEIRS
    with tenant(acme):
        assert not AuditEvent.objects.for_organization(acme).filter(action="erased").exists()
    assert api.get(f"users/{CANARY}").status_code == 200


def test_the_api_erases_a_person_from_the_trash_too(acme, person):
    key = make_key(acme, ["user:delete"])
    api = client_with(key)
    assert api.delete(f"users/{CANARY}").status_code == 204
    assert api.delete(f"users/{CANARY}").status_code == 404
    erased = api.delete(f"users/{CANARY}?erase=true")
    # (One version more: the memory that lay in the trash with its user.)
    rows = {**THEIRS, "memoryhistory": 6}
    assert (erased.status_code, erased.json()) == (200, {"erased": True, "rows": rows})
    assert api.delete(f"users/{CANARY}?erase=true").status_code == 404
    with tenant(acme):
        event = AuditEvent.objects.for_organization(acme).get(action="erased")
    assert event.actor_id == authenticate_key(key).actor.id


def test_erasing_requires_the_delete_scope(acme, person):
    api = client_with(make_key(acme, ["user:read", "user:write", "memory:delete"]))
    for value in ("true", "preview"):
        refused = api.delete(f"users/{CANARY}?erase={value}")
        assert refused.status_code == 403
        assert refused.json()["detail"] == "This key does not hold the scope user:delete."


def test_a_person_of_another_organization_is_not_found(acme, globex, person):
    api = client_with(make_key(globex))
    for name in (CANARY, str(person.pk)):
        assert api.delete(f"users/{name}?erase=true").status_code == 404
        with pytest.raises(CommandError, match="There is no user") as refused:
            erase(name, organization="globex", yes=True)
        assert refused.value.returncode == 77
    assert erase(CANARY, dry_run=True) == THEIRS


def test_a_person_with_the_same_key_in_another_organization_is_kept(acme, globex, person):
    make_memory(globex, user=make_user(globex, external_id=CANARY), content=f"First {CANARY}")
    erase(CANARY, yes=True)
    assert erase(CANARY, organization="globex", dry_run=True) == {
        "memoryhistory": 1,
        "memory": 1,
        "user": 1,
    }


@pytest.mark.parametrize("value", ["yes", "", "TRUE"])
def test_an_invalid_value_of_erase_is_refused(acme, person, value):
    refused = client_with(make_key(acme)).delete(f"users/{CANARY}?erase={value}")
    assert refused.status_code == 400
    assert refused.json()["errors"][0]["field"] == "erase"
    assert erase(CANARY, dry_run=True) == THEIRS


def test_the_command_requires_yes_or_dry_run(acme, person):
    with pytest.raises(CommandError, match="--dry-run --yes is required"):
        call_command("erase_user", CANARY, "--organization", "acme")
    out = io.StringIO()
    call_command("erase_user", CANARY, "--organization", "acme", "--dry-run", stdout=out)
    assert out.getvalue().startswith("Would erase: 5 message, 5 memoryhistory, 3 memory")


def test_erasing_many_memories_runs_few_statements(acme, django_assert_max_num_queries):
    lines = (
        (n, json.dumps({"content": f"Fact {n}", "user_id": "ann"}).encode(), 0)
        for n in range(1, 20_001)
    )
    run_load(
        "memories",
        lines,
        organization=acme,
        actor=TESTER,
        options=LoadOptions(),
        on_batch=lambda report: None,
    )
    with django_assert_max_num_queries(30):
        assert erase("ann", yes=True) == {"memoryhistory": 20_000, "memory": 20_000, "user": 1}
