"""Changes of many rows do not depend on the planner's statistics, which may be older than the rows
or their deletion. The tests check statements, plans and rows visited, never times."""

import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from django.db import connection
from psycopg import connect, sql

from accounts.errors import Unavailable
from accounts.models import AuditEvent, Organization, User
from accounts.services import dependents
from accounts.tenancy import tenant
from agentmem_site.bulk import LoadOptions
from agentmem_site.db.limits import limited
from agentmem_site.services.loads import run_load
from agentmem_site.services.sweep import sweep
from memories.models import Agent, Memory
from memories.search.filters import MemoryFilter
from memories.services.agents import agents
from memories.services.changing import delete_memories, update_memories
from memories.services.memories import memories
from sessions.models import Message, Run, Session
from sessions.services import erasing
from sessions.services.conversations import sessions
from sessions.services.erasing import count_person, erase_person, people
from tests.api.conftest import client_with
from tests.makers import TESTER, make_key, make_organization

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.unguarded]

MANY, SOME = 10_000, 1_000
_TABLES = ("agent_sessions_run", "agent_sessions_session", "memories_memory", "memories_agent")
_JOINS = {"Nested Loop", "Hash Join", "Merge Join"}


def load(organization, resource, rows):
    lines = ((n, json.dumps(row).encode(), 0) for n, row in enumerate(rows, 1))
    run_load(
        resource,
        lines,
        organization=organization,
        actor=TESTER,
        options=LoadOptions(),
        on_batch=lambda report: None,
    )


def fill(organization, agent, number):
    """An agent with that many sessions of one run, and a tenth as many memories, all of ann."""
    theirs = {"agent_id": agent, "user_id": "ann"}
    run = {"run_id": "r", "status": "completed"}
    load(
        organization,
        "sessions",
        ({"session_id": f"{agent} {n}", "runs": [run], **theirs} for n in range(number)),
    )
    load(
        organization,
        "memories",
        ({"content": f"{agent} learnt {n}.", **theirs} for n in range(number // 10)),
    )


def as_owner(*statements):
    """Each of the statements for each table."""
    settings = connection.settings_dict
    with connect(
        dbname=settings["NAME"],
        user=settings["OWNER"]["USER"],
        password=settings["OWNER"]["PASSWORD"],
        host=settings["OWNER"]["HOST"],
        port=settings["OWNER"]["PORT"],
        autocommit=True,
    ) as owner:
        for table in _TABLES:
            for statement in statements:
                owner.execute(sql.SQL(statement).format(sql.Identifier(table)))


def analyze():
    """As autovacuum would, which is off from here on."""
    as_owner("ALTER TABLE {} SET (autovacuum_enabled = false)", "ANALYZE {}")


@contextmanager
def watched():
    """Records statements, their plans and rows visited."""
    seen = SimpleNamespace(statements=0, plans=[], visited=0)

    def explain(execute, statement, parameters, many, context):
        text = statement if isinstance(statement, str) else statement.as_string(None)
        seen.statements += 1
        if text.lstrip().startswith(("SELECT", "UPDATE", "DELETE", "INSERT", "WITH")):
            with connection.connection.cursor() as cursor:
                cursor.execute("EXPLAIN (FORMAT JSON) " + text, parameters)
                seen.plans.append((text, list(_nodes(cursor.fetchone()[0][0]["Plan"]))))
        return execute(statement, parameters, many, context)

    before = _visited()
    with connection.execute_wrapper(explain):
        yield seen
    seen.visited = _visited() - before


def _nodes(plan):
    yield plan["Node Type"]
    for below in plan.get("Plans", []):
        yield from _nodes(below)


def _visited():
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_all_tables "
            "WHERE relname = ANY(%s)",
            [list(_TABLES)],
        )
        return int(cursor.fetchone()[0])


def joins(seen):
    return [text[:300] for text, nodes in seen.plans if _JOINS & set(nodes)]


def rows_of(organization, agent):
    return Agent.objects.for_organization(organization).filter(external_id=agent)


@pytest.fixture(params=["nothing in the trash", "without the organization"])
def known(request):
    """What the planner knows: the organization's rows before their deletion, or none."""
    yield request.param
    as_owner("ALTER TABLE {} RESET (autovacuum_enabled)")


def filled(known, number):
    """The agents `large`, with that many sessions, and `small`, with 10, among rows of others."""
    others, acme = make_organization("others"), make_organization("acme")
    fill(others, "theirs", number // 10)
    if known == "nothing in the trash":
        fill(acme, "large", number)
        analyze()
    else:
        analyze()
        fill(acme, "large", number)
    fill(acme, "small", 10)
    return {"organization": acme, "actor": TESTER}


@pytest.fixture
def by(known):
    return filled(known, SOME)


def test_deleting_and_restoring_an_agent_runs_a_fixed_number_of_statements(known):
    by = filled(known, MANY)
    acme = by["organization"]
    statements = {}
    for agent, number in (("small", 10), ("large", MANY)):
        whole = {"agent": 1, "session": number, "run": number, "memory": number // 10}
        rows = rows_of(acme, agent)
        for verb in (agents.delete, agents.restore, agents.delete, agents.purge):
            with tenant(acme), limited_to(20), watched() as seen:
                counts = verb(rows, **by)
            assert {name: counts[name] for name in whole} == whole
            assert joins(seen) == []
            statements.setdefault(verb.__name__, []).append(seen.statements)
            assert seen.visited <= 6 * MANY  # 2.1 rows change per session
    assert {name: set(numbers) for name, numbers in statements.items()} == {
        "delete": {16},
        "restore": {18},
        "purge": {18},
    }
    with tenant(acme):
        assert not Run.objects.for_organization(acme).exists()


@contextmanager
def limited_to(seconds):
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('statement_timeout', %s, true)", [f"{seconds}s"])
    yield


def test_counting_what_a_purge_would_delete_needs_no_join(by):
    acme = by["organization"]
    with tenant(acme):
        agents.delete(rows_of(acme, "large"), **by)
    with tenant(acme), limited_to(20), watched() as seen:
        counts = agents.count_affected(
            rows_of(acme, "large"), organization=acme, at_most=500, for_good=True
        )
    assert counts == {"agent": 1, "session": 501, "run": 501, "memory": 100, "memoryhistory": 200}
    assert joins(seen) == []
    assert seen.visited <= 10 * SOME


def test_changing_deleting_and_restoring_memories_needs_no_join(by):
    acme = by["organization"]
    with tenant(acme):
        agent = rows_of(acme, "large").get()
    memory_filter = MemoryFilter(agent_id=agent.pk)
    with tenant(acme), limited_to(20), watched() as seen:
        changed = update_memories(memory_filter=memory_filter, values={"importance": 0.25}, **by)
        assert changed.changed == SOME // 10
        assert delete_memories(memory_filter=memory_filter, **by).changed == SOME // 10
        lying = Memory.objects.for_organization(acme).deleted()
        assert memories.restore(lying, **by) == {"memory": SOME // 10}
    assert joins(seen) == []
    assert seen.visited <= 20 * SOME


def test_erasing_a_person_needs_no_join(by):
    acme = by["organization"]
    with tenant(acme):
        ann = User.objects.for_organization(acme).get(external_id="ann")
    number = SOME + 10
    whole = {"user": 1, "session": number, "run": number, "memory": number // 10}
    with tenant(acme), limited_to(20), watched() as seen:
        preview = count_person(ann, organization=acme)
        counts = erase_person(ann, **by)
    assert preview == counts == {**counts, **whole}
    joined = joins(seen)
    assert len(joined) == 1 and "memories_cachedvector" in joined[0]
    assert not any("Nested Loop" in nodes for _, nodes in seen.plans)
    assert seen.visited <= 60 * SOME


def test_sweeping_the_trash_needs_no_join(by):
    acme = by["organization"]
    with tenant(acme):
        Organization.objects.filter(pk=acme.pk).update(settings={"retention": {"trash_days": 1}})
        acme.refresh_from_db()
        agents.delete(rows_of(acme, "small"), **by)
        for model in (Run, Session, Memory, Agent):
            lying = model.objects.for_organization(acme).deleted()
            lying.update(deleted_at="2026-01-01T00:00:00Z")
    with watched() as seen:
        swept = sweep(organization=acme, actor=TESTER)
    assert swept.purged == {"run": 10, "session": 10, "memory": 1, "agent": 1}
    assert joins(seen) == []


# -- in chunks, in time ----------------------------------------------------------------------------


@pytest.fixture
def acme():
    return make_organization("acme")


@pytest.fixture
def whole(acme, monkeypatch):
    """An agent and its dependent rows, in chunks of 3."""
    monkeypatch.setattr(dependents, "CHUNK_ROWS", 3)
    monkeypatch.setattr(erasing, "CHUNK_ROWS", 3)
    fill(acme, "large", 20)
    load(
        acme,
        "messages",
        (
            {"external_id": f"m {n}", "session_id": f"large {n % 20}", "role": "user", "text": "Hi"}
            for n in range(40)
        ),
    )
    return {"agent": 1, "session": 20, "run": 20, "memory": 2, "message": 40}


def test_several_chunks_are_restored_as_the_same_set(acme, whole):
    by = {"organization": acme, "actor": TESTER}
    rows = rows_of(acme, "large")
    with tenant(acme):
        some = Session.objects.for_organization(acme).filter(session_id="large 7")
        assert sessions.delete(some, **by) == {"session": 1, "run": 1, "message": 2}
        rest = {**whole, "session": 19, "run": 19, "message": 38}
        assert agents.count_affected(rows, organization=acme, at_most=100) == rest
        assert agents.count_affected(rows, organization=acme, at_most=5) == {
            name: min(number, 6) for name, number in rest.items()
        }
        assert agents.delete(rows, **by) == rest
        assert agents.restore(rows, **by) == rest
        assert list(some.values_list("is_deleted", flat=True)) == [True]
        assert sessions.restore(some, **by) == {"session": 1, "run": 1, "message": 2}
        ann = User.objects.for_organization(acme)
        preview = people.count_affected(ann, organization=acme, at_most=100, for_good=True)
        theirs = {**whole, "user": 1, "memoryhistory": 6}
        del theirs["agent"]
        assert preview == theirs
        agents.delete(rows, **by)
        assert agents.purge(rows, **by) == {**whole, "memoryhistory": 8}
        assert agents.restore(rows.filter(pk__in=[]), **by) == {}
        for model in (Message, Run, Session, Memory, Agent):
            assert not model.objects.for_organization(acme).exists()


def test_rows_deleted_at_many_times_are_restored_at_once(acme, whole):
    by = {"organization": acme, "actor": TESTER}
    with tenant(acme):
        every = Session.objects.for_organization(acme)
        for row in every.order_by("pk")[:10]:
            sessions.delete(every.filter(pk=row.pk), **by)
        with watched() as seen:
            assert sessions.restore(every, **by) == {"session": 10, "run": 10, "message": 20}
        assert seen.statements < 100
        assert AuditEvent.objects.for_organization(acme).filter(action="restored").count() == 1


def test_a_change_that_takes_too_long_for_a_request_is_503_and_rolled_back(acme, whole, settings):
    api = client_with(make_key(acme))
    with tenant(acme):
        agent = rows_of(acme, "large").get()
    settings.CHANGE_TIMEOUT_S = 1e-6
    for refused in (api.delete(f"agents/{agent.pk}"), api.delete("users/ann?erase=true")):
        assert refused.status_code == 503
        assert refused.json()["code"] == "unavailable"
        assert "longer than a request may." in refused.json()["detail"]
    with tenant(acme):
        assert Session.objects.for_organization(acme).live().count() == 20
        assert User.objects.for_organization(acme).filter(external_id="ann").exists()
    settings.CHANGE_TIMEOUT_S = 0
    assert api.delete(f"agents/{agent.pk}").status_code == 204


def test_a_statement_that_takes_too_long_is_503_too(acme, settings):
    fill(acme, "large", 3000)
    settings.STATEMENT_TIMEOUT_MS = 5
    by = {"organization": acme, "actor": TESTER}
    with pytest.raises(Unavailable, match="nothing was changed"), limited(), tenant(acme):
        agents.delete(rows_of(acme, "large"), **by)
    with tenant(acme):
        assert Session.objects.for_organization(acme).live().count() == 3000


def test_a_long_change_reports_its_progress(acme, whole, monkeypatch, caplog):
    monkeypatch.setattr(dependents, "LOG_EVERY_S", 0)
    with tenant(acme):
        agents.delete(rows_of(acme, "large"), organization=acme, actor=TESTER)
    messages = [
        record.getMessage() for record in caplog.records if record.name == "agentmem.changes"
    ]
    assert messages[-1] == f"delete agent is done: {sum(whole.values())} rows in 0 s"
    assert messages[0].startswith("delete agent goes on: ")
    assert len(messages) > 10
