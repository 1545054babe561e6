"""The backend and its fields: migrations, keys, joins, ids."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from io import StringIO
from typing import Any
from uuid import UUID

import psycopg
import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import DatabaseError, connection, migrations, models, transaction
from django.db.migrations.state import ProjectState
from django.db.models import Count, Prefetch
from django.test.utils import CaptureQueriesContext
from psycopg import sql

from accounts.models import Organization, User
from accounts.tenancy import platform, tenant
from agentmem_site.checks import database_faults
from agentmem_site.db.fields import OrganizationKey, TenantForeignKey
from agentmem_site.db.ids import uuid7, uuid7_among, uuid7_at
from agentmem_site.db.roles import APPLICATION, as_owner
from agentmem_site.db.urls import connection_parameters
from agentmem_site.db.walls import TenantWall
from memories.models import Agent, Memory
from sessions.models import Message, Session
from tests.makers import (
    make_agent,
    make_memory,
    make_message,
    make_organization,
    make_run,
    make_session,
    make_user,
)
from tests.schema import catalog
from tests.schema.rows import populate

# -- migrations ---------------------------------------------------------------------------------

Scratch = Callable[[], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def scratch(django_db_setup: None, django_db_blocker: Any) -> Iterator[Scratch]:
    """Within `scratch()` the connection is to a separate, migrated database."""
    settings = connection.settings_dict
    name = f"{settings['NAME']}_scratch"
    template = settings["TEST"]["TEMPLATE"]
    make = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*map(sql.Identifier, (name, template)))
    quick = sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(sql.Identifier(name))
    drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))

    @contextmanager
    def use() -> Iterator[None]:
        kept = settings["NAME"]
        connection.close()
        settings["NAME"] = name
        try:
            with django_db_blocker.unblock():
                yield
        finally:
            connection.close()
            settings["NAME"] = kept

    signing_in = connection_parameters({**settings["OWNER"], "NAME": settings["NAME"]})
    with psycopg.connect(**signing_in, autocommit=True) as owner:
        owner.execute(drop)
        owner.execute(make)
        owner.execute(quick)
        with use():
            call_command("migrate", verbosity=0)
        yield use
        owner.execute(drop)


def violations() -> list[str]:
    with connection.cursor() as cursor:
        return catalog.violations(cursor)


def test_the_migrations_match_the_models(db):
    call_command("makemigrations", check=True, dry_run=True, verbosity=0)


def test_to_zero_and_back_with_data(scratch):
    def walls_hold(*slugs: str) -> None:
        assert violations() == []
        assert database_faults() == []
        acme, globex = map(make_organization, slugs)
        populate(acme, globex)
        with tenant(acme):
            assert {m.organization_id for m in Memory._base_manager.all()} == {acme.pk}
        assert not Memory._base_manager.exists()

    with scratch():
        walls_hold("acme", "globex")
        call_command("migrate", "accounts", "zero", verbosity=0)
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT relname FROM pg_class WHERE relname ~ '^(accounts|memories|agent_)'"
                " UNION ALL SELECT proname FROM pg_proc WHERE proname ~ '^agentmem'"
            )
            assert cursor.fetchall() == []
        assert any("run `manage.py migrate`" in fault for fault in database_faults())
        call_command("migrate", verbosity=0)
        walls_hold("acme", "globex")


def test_the_application_can_neither_migrate_nor_truncate(scratch):
    with scratch():
        for statement in (
            "TRUNCATE memories_memory",
            "CREATE TABLE t ()",
            "DROP TABLE memories_memory",
        ):
            with pytest.raises(DatabaseError, match=r"permission denied|must be owner"):
                connection.cursor().execute(statement)


def test_the_database_check_runs_only_on_request(scratch):
    with scratch():
        call_command("check", databases=["default"], stdout=StringIO())
        with as_owner(connection), connection.cursor() as cursor:
            cursor.execute("ALTER TABLE memories_memory DISABLE ROW LEVEL SECURITY")
        try:
            with pytest.raises(Exception, match="The wall of memories_memory is open"):
                call_command("check", databases=["default"], stdout=StringIO())
            call_command("check", stdout=StringIO())  # without --database it does not run
        finally:
            with as_owner(connection), connection.cursor() as cursor:
                cursor.execute("ALTER TABLE memories_memory ENABLE ROW LEVEL SECURITY")


# -- the schema editor --------------------------------------------------------------------------


@pytest.fixture
def migrate_as_owner(scratch: Scratch) -> Iterator[Callable[..., None]]:
    """Applies operations to the app `memories`, one migration each; reverses them at the end."""
    state = ProjectState.from_apps(apps)

    def apply(*operations: Any) -> None:
        nonlocal state
        for operation in operations:
            before, state = state, state.clone()
            operation.state_forwards("memories", state)
            with connection.schema_editor() as editor:
                operation.database_forwards("memories", editor, before, state)

    with scratch(), as_owner(connection), transaction.atomic():
        yield apply
        transaction.set_rollback(True)


NOTE = [
    ("text", models.TextField(default="")),
    (
        "shout",
        models.GeneratedField(
            expression=models.functions.Upper("text"),
            output_field=models.TextField(),
            db_persist=True,
        ),
    ),
    ("organization", OrganizationKey()),
    ("agent", TenantForeignKey("memories.Agent", models.CASCADE, related_name="+")),
    ("id", models.UUIDField(primary_key=True, default=uuid7)),
]


def make_note() -> migrations.CreateModel:
    wall = TenantWall(name="memories_note_wall")
    return migrations.CreateModel("Note", NOTE, options={"constraints": [wall]})


def foreign_keys(table: str) -> set[str]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE conrelid = to_regclass(%s) AND contype = 'f'",
            [table],
        )
        return {definition for (definition,) in cursor.fetchall()}


def composite(column: str, table: str) -> str:
    key = f"({column}, organization_id) REFERENCES {table}(id, organization_id)"
    return f"FOREIGN KEY {key} DEFERRABLE"


TO_ORGANIZATION = (
    "FOREIGN KEY (organization_id) REFERENCES accounts_organization(id)"
    " DEFERRABLE INITIALLY DEFERRED"
)


def test_a_new_table_has_column_order_key_and_wall(migrate_as_owner):
    migrate_as_owner(make_note())
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = 'memories_note'::regclass"
            " AND attnum > 0 ORDER BY attnum"
        )
        names = [name for (name,) in cursor.fetchall()]
        assert names == ["id", "organization_id", "text", "agent_id", "shout"]
        cursor.execute(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE conrelid = 'memories_note'::regclass AND contype = 'p'"
        )
        assert cursor.fetchall() == [("PRIMARY KEY (id, organization_id)",)]
        cursor.execute(
            "SELECT relrowsecurity, (SELECT count(*) FROM pg_policy WHERE polrelid = c.oid)"
            " FROM pg_class c WHERE oid = 'memories_note'::regclass"
        )
        assert cursor.fetchall() == [(True, 2)]
    assert foreign_keys("memories_note") == {
        composite("agent_id", "memories_agent"),
        TO_ORGANIZATION,
    }


def test_a_foreign_key_added_later_is_composite_and_dropped_with_its_column(migrate_as_owner):
    later = TenantForeignKey("memories.Tool", models.CASCADE, null=True, related_name="+")
    migrate_as_owner(make_note(), migrations.AddField("note", "tool", later))
    assert composite("tool_id", "memories_tool") in foreign_keys("memories_note")
    migrate_as_owner(migrations.RemoveField("note", "tool"))
    assert foreign_keys("memories_note") == {
        composite("agent_id", "memories_agent"),
        TO_ORGANIZATION,
    }


def test_a_changed_foreign_key_stays_composite_and_follows_its_target(migrate_as_owner):
    def agent(to: str, **options: Any) -> migrations.AlterField:
        field = TenantForeignKey(to, models.CASCADE, related_name="+", **options)
        return migrations.AlterField("note", "agent", field)

    migrate_as_owner(make_note(), agent("memories.Agent", null=True))
    assert composite("agent_id", "memories_agent") in foreign_keys("memories_note")
    migrate_as_owner(agent("memories.Tool", null=True))
    assert foreign_keys("memories_note") == {
        composite("agent_id", "memories_tool"),
        TO_ORGANIZATION,
    }
    migrate_as_owner(agent("memories.Tool", null=True, db_constraint=False))
    assert foreign_keys("memories_note") == {TO_ORGANIZATION}


def test_renaming_keeps_key_and_wall(migrate_as_owner):
    migrate_as_owner(
        make_note(),
        migrations.RenameField("note", "agent", "author"),
        migrations.RenameModel("Note", "Remark"),
    )
    assert composite("author_id", "memories_agent") in foreign_keys("memories_remark")
    with connection.cursor() as cursor:
        cursor.execute("SELECT relrowsecurity FROM pg_class WHERE relname = 'memories_remark'")
        assert cursor.fetchall() == [(True,)]


def test_a_wall_is_added_to_a_table_and_taken_from_it(migrate_as_owner):
    bare = migrations.CreateModel("Note", NOTE)
    wall = TenantWall(name="memories_note_wall", admits_orphans=True)

    def policies() -> list[Any]:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT polname FROM pg_policy WHERE polrelid = 'memories_note'::regclass"
            )
            names = sorted(name for (name,) in cursor.fetchall())
            cursor.execute("SELECT relrowsecurity FROM pg_class WHERE relname = 'memories_note'")
            return [names, *cursor.fetchone()]

    migrate_as_owner(bare)
    assert policies() == [[], False]
    migrate_as_owner(migrations.AddConstraint("note", wall))
    name = "memories_note_wall"
    assert policies() == [[name, f"{name}_admin", f"{name}_orphans"], True]
    migrate_as_owner(migrations.RemoveConstraint("note", name))
    assert policies() == [[], False]


def test_the_autodetector_notices_a_changed_wall():
    wall = TenantWall(name="w")
    assert wall == TenantWall(name="w") != TenantWall(name="v")
    assert wall != TenantWall(name="w", admits_orphans=True)
    path, args, kwargs = TenantWall(name="w", admits_orphans=True).deconstruct()
    assert (path, args) == ("agentmem_site.db.walls.TenantWall", ())
    assert kwargs == {"name": "w", "admits_orphans": True}


def test_as_owner_switches_back_to_the_application(scratch):
    def session_user() -> str:
        with connection.cursor() as cursor:
            cursor.execute("SELECT session_user")
            return cursor.fetchone()[0]

    with scratch():
        application, owner = (connection.settings_dict[k] for k in ("USER", "OWNER"))
        with pytest.raises(ZeroDivisionError), as_owner(connection):
            assert session_user() == owner["USER"]
            with as_owner(connection):
                assert session_user() == owner["USER"]
            assert session_user() == owner["USER"]
            raise ZeroDivisionError
        assert session_user() == application == APPLICATION


# -- queries: the organization in every one -------------------------------------------------------
# (The guard of tests/guard.py fails a statement without one. These check that it is the right one.)


@pytest.fixture
def talk(acme: Organization) -> Session:
    agent, user = make_agent(acme), make_user(acme)
    session = make_session(acme, agent=agent, user=user)
    run = make_run(session)
    for _ in range(3):
        make_message(acme, session=session, run=run, agent=agent, user=user)
    return session


def statements_of(read: Callable[[], Any]) -> tuple[Any, list[str]]:
    with CaptureQueriesContext(connection) as captured:
        answer = read()
    return answer, [query["sql"] for query in captured.captured_queries]


def test_counts_are_grouped_by_row(acme, talk):
    other = make_agent(acme)
    with tenant(acme):
        rows = Agent.objects.for_organization(acme).annotate(
            said=Count("messages", distinct=True), talks=Count("sessions", distinct=True)
        )
        assert {a.pk: (a.said, a.talks) for a in rows} == {talk.agent_id: (3, 1), other.pk: (0, 0)}
        totals = Message.objects.for_organization(acme).values("session").annotate(n=Count("id"))
        assert list(totals) == [{"session": talk.pk, "n": 3}]


def test_joins_compare_the_organizations(acme, talk):
    with tenant(acme):
        (message, *_), (statement,) = statements_of(
            lambda: list(
                Message.objects.for_organization(acme).select_related("session__agent", "run")
            )
        )
        assert message.session.agent_id == talk.agent_id
        for join in (
            'message"."organization_id" = ("agent_sessions_session"."organization_id")',
            'session"."organization_id" = ("memories_agent"."organization_id")',
            'message"."organization_id" = ("agent_sessions_run"."organization_id")',
        ):
            assert join in statement

        agents, (statement,) = statements_of(
            lambda: list(
                Agent.objects.for_organization(acme).filter(sessions__runs__status="completed")
            )
        )
        assert [agent.pk for agent in agents] == [talk.agent_id]
        for join in (
            '"agent_sessions_session"."organization_id" = ("memories_agent"."organization_id")',
            '"agent_sessions_run"."organization_id" = ("agent_sessions_session"."organization_id")',
        ):
            assert join in statement


def test_exclude_over_children_compares_the_organizations(acme, talk):
    silent = make_agent(acme)
    with tenant(acme):
        for condition in (
            {"sessions__session_id": talk.session_id},
            {"sessions__runs__status": "completed"},
            {"sessions__user__external_id": talk.user.external_id},
        ):
            rows = Agent.objects.for_organization(acme).exclude(**condition)
            agents, (statement,) = statements_of(lambda rows=rows: list(rows))
            assert agents == [silent]
            assert 'U1."organization_id" = ("memories_agent"."organization_id")' in statement


def test_lazy_loads_carry_the_organization(acme, talk):
    wanted = f"\"organization_id\" = '{acme.pk.hex}'::uuid"
    with tenant(acme):
        session = Session.objects.for_organization(acme).get()
        for read in (
            lambda: session.agent,
            lambda: list(session.messages.all()),
            session.messages.count,
            lambda: session.runs.filter(status="completed").exists(),
            session.refresh_from_db,
        ):
            _, (statement,) = statements_of(read)
            assert wanted in statement


def test_prefetches_carry_the_organization(acme, talk):
    wanted = f"\"organization_id\" IN ('{acme.pk.hex}'::uuid)"
    few = Message.objects.order_by("created_at")
    with tenant(acme):
        for lookup in ("agent", "messages", Prefetch("messages", few, to_attr="said")):
            rows = Session.objects.for_organization(acme).prefetch_related(lookup)
            (session,), (_, statement) = statements_of(lambda rows=rows: list(rows))
            assert wanted in statement
        assert len(session.said) == 3
        two = Message.objects.for_organization(acme).order_by("created_at")[:2]
        rows = Session.objects.for_organization(acme).prefetch_related(
            Prefetch("messages", two, to_attr="first")
        )
        assert [len(session.first) for session in rows] == [2]


def test_deferred_columns_carry_the_organization(acme):
    memory = make_memory(acme, content="Paris is nice.")
    with tenant(acme):
        memory = Memory.objects.for_organization(acme).get()
        document, (statement,) = statements_of(lambda: memory.document)
        assert "pari" in document
        assert f"\"organization_id\" = '{acme.pk.hex}'::uuid" in statement


@pytest.mark.unguarded  # the organization itself is what is loaded, by id
def test_a_deferred_organization_is_loaded(acme):
    make_user(acme)
    with tenant(acme):
        user = User.objects.for_organization(acme).only("name").get()
        assert user.organization_id == acme.pk


def test_saving_filters_by_the_organization_and_never_sets_it(acme):
    user = make_user(acme)
    with tenant(acme):
        user.name = "Ann"
        for read in (user.save, lambda: user.save(update_fields=["name", "updated_at"])):
            _, (statement,) = statements_of(read)
            setting, where = statement.split(" WHERE ")
            assert statement.startswith("UPDATE")
            assert "organization_id" not in setting
            assert f"\"organization_id\" = '{acme.pk.hex}'::uuid" in where


@pytest.mark.parametrize("door", [tenant, lambda _: platform()], ids=["tenant", "platform"])
def test_saving_with_another_organization_creates_no_second_row(acme, globex, door):
    user = make_user(acme)
    with pytest.raises(DatabaseError, match="is not a row of"), door(acme):
        user.organization = globex
        user.save()
    with platform():
        assert [u.organization for u in User.objects.filter(organization__in=[acme, globex])] == [
            acme
        ]


def test_saving_a_row_that_was_removed_does_not_bring_it_back(acme):
    user = make_user(acme)
    with tenant(acme):
        User.objects.for_organization(acme)._raw_delete("default")
    with pytest.raises(DatabaseError, match="is not a row of"), tenant(acme):
        user.save()


# -- ids ----------------------------------------------------------------------------------------


def milliseconds(value: UUID) -> int:
    return value.int >> 80


def test_ids_are_version_7_and_in_order():
    before = time.time_ns() // 1_000_000
    ids = [uuid7() for _ in range(2000)]
    after = time.time_ns() // 1_000_000
    assert {(i.version, i.variant) for i in ids} == {(7, "specified in RFC 4122")}
    assert all(before <= milliseconds(i) <= after for i in ids)
    assert ids == sorted(ids)
    assert len({i.int & (1 << 62) - 1 for i in ids}) == len(ids)  # the random part alone


def test_ids_sort_by_their_time():
    start_us, most = 1_800_000_000_000_000, 2**64 - 1
    # A microsecond apart, across a millisecond; the random part does not matter.
    ids = [UUID(bytes=uuid7_at(start_us + n, (n * 977 << 50) & most)) for n in range(5000)]
    assert ids == sorted(ids)
    assert {(i.version, i.variant) for i in ids} == {(7, "specified in RFC 4122")}
    assert [milliseconds(i) * 1000 - start_us for i in (ids[0], ids[999], ids[1000])] == [
        0,
        0,
        1000,
    ]
    assert uuid7_at(start_us, 1) != uuid7_at(start_us, 2)


def test_ids_with_the_same_time_sort_by_place():
    at_us, most = 1_800_000_000_000_000, 2**64 - 1
    ids = [UUID(bytes=uuid7_among(at_us, n, most - n)) for n in (0, 1, 2, 40_000, 2**24 - 1)]
    assert ids == sorted(ids)
    assert ids[-1] < UUID(bytes=uuid7_among(at_us + 1, 0, 0))
    assert {(i.version, i.variant) for i in ids} == {(7, "specified in RFC 4122")}
    assert uuid7_among(at_us, 7, 1) != uuid7_among(at_us, 7, 2)


def test_ids_made_in_sql(db):
    before = time.time_ns() // 1_000_000
    with connection.cursor() as cursor:
        cursor.execute("SELECT agentmem_uuid7() FROM generate_series(1, 1000)")
        ids = [i for (i,) in cursor.fetchall()]
    after = time.time_ns() // 1_000_000
    assert {(i.version, i.variant) for i in ids} == {(7, "specified in RFC 4122")}
    assert len(set(ids)) == 1000
    # Rounded to a millisecond; the server's clock is this machine's.
    assert all(before - 1 <= milliseconds(i) <= after + 1 for i in ids)
