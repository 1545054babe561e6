"""The sweep removes what has expired, and what exceeds an organization's retention."""

import io
import json
import threading
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import connections
from django.utils import timezone

import agentmem_site.services.sweep
from accounts.actors import command_actor
from accounts.errors import Invalid
from accounts.models import AuditEvent, LoadPart, User
from accounts.organization_settings import check_settings
from accounts.services.organizations import organizations
from accounts.services.users import users
from accounts.tenancy import tenant
from agentmem_site.services.sweep import sweep
from memories.models import Agent, CachedVector, Memory, MemoryHistory
from memories.services.agents import agents
from memories.services.memories import memories
from sessions.models import Message, Run, Session
from tests.makers import (
    TESTER,
    make_agent,
    make_cached_vector,
    make_load_part,
    make_memory,
    make_message,
    make_organization,
    make_run,
    make_session,
    make_user,
)

NOTHING = {
    "expired": 0,
    "aged": 0,
    "unfound": 0,
    "purged": {},
    "cached_vectors": 0,
    "abandoned_loads": 0,
}


def days_ago(number):
    return timezone.now() - timedelta(days=number)


def keep(organization, **retention):
    with tenant(organization):
        organizations.update(
            organization,
            organization=organization,
            actor=TESTER,
            values={"settings": {"retention": retention}},
        )


def swept(organization, **options):
    """Counts of that organization."""
    out = io.StringIO()
    call_command("sweep", organization=organization.slug, json=True, stdout=out, **options)
    (counts,) = json.loads(out.getvalue())["organizations"]
    assert counts.pop("organization") == organization.slug
    return counts


def contents(organization):
    with tenant(organization):
        rows = Memory.objects.for_organization(organization).live().order_by("content")
        return list(rows.values_list("content", flat=True))


def test_expired_memories_go_to_the_trash_with_history_and_audit(acme, globex):
    for organization in (acme, globex):
        make_memory(organization, content="over", expires_at=days_ago(1))
        make_memory(organization, content="to come", expires_at=days_ago(-1))
        make_memory(organization, content="for ever")
    assert swept(acme) == {**NOTHING, "expired": 1}
    assert contents(acme) == ["for ever", "to come"]
    assert contents(globex) == ["for ever", "over", "to come"]
    with tenant(acme):
        deleted = Memory.objects.for_organization(acme).deleted().get()
        history = MemoryHistory.objects.for_organization(acme).filter(memory=deleted)
        assert [h.change_type for h in history.order_by("id")] == ["created", "deleted"]
        event = AuditEvent.objects.for_organization(acme).get(action="deleted")
        assert (event.actor_kind, event.actor_name) == ("command", "sweep")
        assert (event.resource_id, event.changes) == (deleted.pk, {"rows": {"memory": 1}})
    assert swept(acme) == NOTHING


def test_the_report_of_a_sweep_is_plain_text(acme, globex):
    make_memory(acme, expires_at=days_ago(1))
    make_cached_vector(globex, created_at=days_ago(200))

    def output(**options):
        out = io.StringIO()
        call_command("sweep", stdout=out, **options)
        return out.getvalue()

    dry_run = output(dry_run=True)
    assert "acme: 1 expired" in dry_run
    assert dry_run.endswith(" (dry run: nothing has changed)\n")
    assert sorted(output().splitlines()) == ["acme: 1 expired", "globex: 1 cached vectors"]
    assert output() == "Nothing to sweep.\n"


def test_without_settings_nothing_is_too_old(acme):
    memory = make_memory(acme, created_at=days_ago(4000), updated_at=days_ago(4000), importance=0)
    with tenant(acme):
        Memory.objects.for_organization(acme).filter(pk=memory.pk).update(
            is_deleted=True, deleted_at=days_ago(3000)
        )
    assert swept(acme) == NOTHING


def test_memories_over_the_age_go_to_the_trash(acme):
    keep(acme, memory_days=30)
    make_memory(acme, content="old", created_at=days_ago(31))
    make_memory(acme, content="young", created_at=days_ago(29))
    assert swept(acme) == {**NOTHING, "aged": 1}
    assert contents(acme) == ["young"]


def test_unimportant_memories_that_nobody_finds_go_to_the_trash(acme):
    keep(acme, unfound_days=90, unfound_below_importance=0.5)
    old = {"created_at": days_ago(100), "updated_at": days_ago(100)}
    make_memory(acme, content="forgotten", importance=0.4, **old)
    make_memory(acme, content="found long ago", importance=0.4, last_accessed=days_ago(91), **old)
    make_memory(acme, content="found lately", importance=0.4, last_accessed=days_ago(1), **old)
    make_memory(acme, content="important", importance=0.5, **old)
    make_memory(acme, content="imported lately", importance=0.4, created_at=days_ago(100))
    make_memory(acme, content="new", importance=0.4)
    assert swept(acme) == {**NOTHING, "unfound": 2}
    assert contents(acme) == ["found lately", "important", "imported lately", "new"]


def test_rows_too_long_in_the_trash_are_purged_with_their_dependent_rows(acme):
    keep(acme, trash_days=30)
    agent, user = make_agent(acme), make_user(acme)
    session = make_session(acme, agent=agent)
    run = make_run(session)
    make_message(acme, session=session, run=run)
    make_memory(acme, agent=agent, content="old trash")
    lately = make_memory(acme, content="new trash")
    make_memory(acme, content="live")
    with tenant(acme):
        of_acme = {m: m.objects.for_organization(acme) for m in (Agent, User, Memory, Session, Run)}
        agents.delete(of_acme[Agent].filter(pk=agent.pk), organization=acme, actor=TESTER)
        users.delete(of_acme[User].filter(pk=user.pk), organization=acme, actor=TESTER)
        for model in (*of_acme, Message):
            rows = model.objects.for_organization(acme).deleted()
            rows.update(deleted_at=days_ago(31))
        own = of_acme[Memory].filter(pk=lately.pk)
        memories.delete(own, organization=acme, actor=TESTER)
    purged = {"message": 1, "run": 1, "session": 1, "memory": 1, "agent": 1, "user": 1}
    assert swept(acme, dry_run=True) == {**NOTHING, "purged": purged}
    assert swept(acme) == {**NOTHING, "purged": purged}
    with tenant(acme):
        for model in (Agent, User, Session, Run, Message):
            assert not model.objects.for_organization(acme).exists()
        left = Memory.objects.for_organization(acme).values_list("content", flat=True)
        assert sorted(left) == ["live", "new trash"]
        events = AuditEvent.objects.for_organization(acme).filter(action="purged")
        assert {e.resource_type for e in events} == set(purged)
    assert swept(acme) == NOTHING


def test_the_checkpoint_of_an_abandoned_load_is_deleted_after_30_days(acme):
    make_load_part(acme, created_at=days_ago(31))
    make_load_part(acme, created_at=days_ago(31), updated_at=days_ago(31))
    assert swept(acme) == {**NOTHING, "abandoned_loads": 1}
    with tenant(acme):
        assert LoadPart.objects.for_organization(acme).count() == 1


def test_cached_vectors_are_kept_for_180_days_or_as_set(acme):
    for age in (200, 150, 10):
        make_cached_vector(acme, created_at=days_ago(age))
    assert swept(acme) == {**NOTHING, "cached_vectors": 1}
    keep(acme, cached_vector_days=30)
    assert swept(acme) == {**NOTHING, "cached_vectors": 1}
    with tenant(acme):
        assert CachedVector.objects.for_organization(acme).count() == 1


def test_a_dry_run_has_the_counts_of_a_run_and_changes_nothing(acme):
    keep(acme, memory_days=60, unfound_days=30, unfound_below_importance=0.9, trash_days=1)
    old = {"created_at": days_ago(100), "updated_at": days_ago(100)}
    make_memory(acme, expires_at=days_ago(1), **old)  # by all three rules
    make_memory(acme, **old)  # by two
    make_memory(acme, created_at=days_ago(40), updated_at=days_ago(40))
    make_memory(acme)
    make_cached_vector(acme, created_at=days_ago(200))
    preview = swept(acme, dry_run=True)
    assert preview == {**NOTHING, "expired": 1, "aged": 1, "unfound": 1, "cached_vectors": 1}
    assert len(contents(acme)) == 4
    assert swept(acme) == preview
    assert len(contents(acme)) == 1


def test_rows_are_removed_in_batches(acme, monkeypatch, django_assert_max_num_queries):
    monkeypatch.setattr(agentmem_site.services.sweep, "BATCH_SIZE", 2)
    for _ in range(5):
        make_memory(acme, expires_at=days_ago(1))
    assert swept(acme)["expired"] == 5
    with tenant(acme):
        events = AuditEvent.objects.for_organization(acme).filter(action="deleted")
        assert sorted(e.changes["rows"]["memory"] for e in events) == [1, 2, 2]
        versions = MemoryHistory.objects.for_organization(acme).filter(change_type="deleted")
        assert versions.values("memory").distinct().count() == versions.count() == 5


@pytest.mark.django_db(transaction=True)
def test_concurrent_sweeps_do_what_one_does(monkeypatch):
    monkeypatch.setattr(agentmem_site.services.sweep, "BATCH_SIZE", 3)
    acme = make_organization("acme")
    for _ in range(40):
        make_memory(acme, expires_at=days_ago(1))
    start, counts, faults = threading.Barrier(2), [], []

    def one():
        try:
            start.wait()
            counts.append(sweep(organization=acme, actor=command_actor("sweep")).expired)
        except Exception as error:
            faults.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert sum(counts) == 40
    with tenant(acme):
        history = MemoryHistory.objects.for_organization(acme).filter(change_type="deleted")
        assert history.count() == 40


@pytest.mark.parametrize(
    ("retention", "message"),
    [
        ([], "settings.retention is an object of memory_days, unfound_days"),
        ({"days": 1}, "settings.retention has memory_days, .*; not 'days'"),
        ({"memory_days": 0}, "settings.retention.memory_days is a whole number of days, 1 to 36"),
        ({"memory_days": True}, "memory_days is a whole number of days"),
        ({"trash_days": "30"}, "trash_days is a whole number of days"),
        ({"cached_vector_days": None}, "cached_vector_days is a whole number of days"),
        (
            {"unfound_days": 9, "unfound_below_importance": 2},
            "unfound_below_importance is a number above 0, at most 1",
        ),
        ({"unfound_days": 9}, "unfound_days and unfound_below_importance together, or neither"),
    ],
)
def test_invalid_retention_settings_are_refused(retention, message):
    with pytest.raises(Invalid, match=message):
        check_settings({"retention": retention})


def test_invalid_settings_do_not_stop_the_sweep_of_other_organizations(acme, globex):
    acme.settings = {"retention": {"memory_days": "ten"}}
    acme.save()
    make_memory(globex, expires_at=days_ago(1))
    with pytest.raises(CommandError, match=r"acme: settings\.retention\.memory_days is") as refusal:
        call_command("sweep", stdout=io.StringIO())
    assert refusal.value.returncode == 65
    assert contents(globex) == []
