"""Routines are files: `migrate` creates them in the database, and `check` reports differences."""

import re
from io import StringIO

import pytest
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import ProgrammingError, connection

from accounts.tenancy import tenant
from agentmem_site.db.fields import tenant_key
from agentmem_site.db.roles import APPLICATION, as_owner
from agentmem_site.db.routines import (
    HandOver,
    Routine,
    installed_routines,
    renew_routines,
    stale_routines,
)
from memories.search.filters import MemoryFilter
from memories.search.ranking import Weights, rank

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.unguarded]

ONE = """-- probe_one(integer): the next number; for tests.

CREATE OR REPLACE FUNCTION probe_one(n integer) RETURNS integer LANGUAGE sql AS $$
    SELECT n + 1; -- ; ends nothing in here
$$;

REVOKE ALL ON FUNCTION probe_one(integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION probe_one(integer) TO agentmem_app;
"""


@pytest.fixture
def owner(db):
    """Connected as the owner; routines that a test creates are dropped after it."""
    with as_owner(connection):
        yield connection
        renew_routines(connection, installed_routines())


def routine(text, name="probe_one", app="accounts"):
    signature = re.match(r"-- (.+?\)):", text)[1]
    return Routine(app, name, signature, text)


def ask(statement):
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0]


def probes():
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT oid::regprocedure::text FROM pg_proc WHERE proname LIKE 'probe_%' ORDER BY 1"
        )
        return [name for (name,) in cursor]


def renew(connection, *texts):
    return renew_routines(connection, [*installed_routines(), *map(routine, texts)])


def test_the_database_matches_the_files(db):
    assert stale_routines(connection, installed_routines()) == []
    assert {r.name for r in installed_routines()} >= {"agentmem_search", "agentmem_uuid7"}
    call_command("check", databases=["default"])


def test_a_new_file_is_created_once_and_dropped_with_its_file(owner):
    assert renew(owner, ONE) == ["probe_one"]
    assert ask("SELECT probe_one(1)") == 2
    assert renew(owner, ONE) == []
    assert renew(owner) == ["probe_one"]
    assert probes() == []


def test_a_changed_file_is_installed_and_so_is_an_older_one(owner):
    renew(owner, ONE)
    newer = ONE.replace("n + 1", "n + 2")
    assert renew(owner, newer) == ["probe_one"]
    assert ask("SELECT probe_one(1)") == 3
    assert renew(owner, ONE) == ["probe_one"]
    assert ask("SELECT probe_one(1)") == 2


@pytest.mark.parametrize(
    ("change", "signature"),
    [
        (lambda t: t.replace("integer", "bigint"), "probe_one(bigint)"),
        (lambda t: t.replace("RETURNS integer", "RETURNS text").replace("n + 1", "'x'"), None),
        (lambda t: t.replace("(n integer)", "(m integer)").replace("n + 1", "m"), None),
    ],
    ids=["arguments", "result", "names"],
)
def test_a_changed_signature_leaves_no_second_routine(owner, change, signature):
    renew(owner, ONE)
    assert renew(owner, change(ONE)) == ["probe_one"]
    assert probes() == [signature or "probe_one(integer)"]


@pytest.mark.parametrize(
    "by_hand",
    [
        "CREATE OR REPLACE FUNCTION agentmem_uuid7() RETURNS uuid LANGUAGE sql AS "
        "'SELECT gen_random_uuid()'",
        "GRANT EXECUTE ON FUNCTION agentmem_analyze(regclass) TO PUBLIC",
        "DROP FUNCTION agentmem_find_api_key(bytea)",
        "CREATE FUNCTION agentmem_uuid7(integer) RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    ],
    ids=["replaced", "granted", "dropped", "overloaded"],
)
def test_a_change_by_hand_is_reported_and_undone(owner, by_hand):
    with owner.cursor() as cursor:
        cursor.execute(by_hand)
    (name,) = stale_routines(owner, installed_routines())
    with pytest.raises(SystemExit):
        call_command("migrate", check_unapplied=True, verbosity=0, stdout=StringIO())
    assert renew(owner) == [name]
    assert stale_routines(owner, installed_routines()) == []


def test_check_names_what_differs(owner):
    with owner.cursor() as cursor:
        cursor.execute("GRANT EXECUTE ON FUNCTION agentmem_analyze(regclass) TO PUBLIC")
    with pytest.raises(CommandError, match="as in its file: agentmem_analyze"):
        call_command("check", databases=["default"])


def test_reversed_migrations_create_their_routines_again(owner):
    later = routine(ONE.replace("probe_one", "probe_two"), name="probe_two")
    renew_routines(owner, [*installed_routines(), routine(ONE), later])
    HandOver({"probe_one": ONE}).database_backwards("accounts", Editor(owner), None, None)
    assert probes() == ["probe_one(integer)"]
    assert ask("SELECT count(*) FROM agentmem_routine WHERE app = 'accounts'") == 0
    renew(owner, ONE)  # as a file again
    assert renew(owner) == ["probe_one"]


class Editor:
    def __init__(self, connection):
        self.connection = connection


def test_a_file_that_creates_another_name_is_refused(tmp_path, monkeypatch):
    (tmp_path / "sql").mkdir()
    (tmp_path / "sql" / "other.sql").write_text(ONE)
    monkeypatch.setattr(apps.get_app_config("accounts"), "path", str(tmp_path))
    with pytest.raises(ImproperlyConfigured, match=r"other\.sql: its first line must be"):
        installed_routines()


def test_a_header_with_other_arguments_is_refused(owner):
    text = ONE.replace("-- probe_one(integer)", "-- probe_one(text)")
    with pytest.raises(ImproperlyConfigured, match=r"does not create probe_one\(text\)"):
        renew(owner, text)
    assert probes() == []


def test_the_application_cannot_change_the_record(db):
    assert not ask("SELECT has_table_privilege('agentmem_routine', 'INSERT, UPDATE, DELETE')")


def test_the_filter_of_a_search_is_inlined(owner):
    with owner.cursor() as cursor:
        cursor.execute(
            "EXPLAIN SELECT FROM memories_memory m WHERE agentmem_passes("
            "NULL, m.is_deleted, m.deleted_at, m.created_at, m.expires_at, m.agent_id, m.user_id, "
            "m.session_id, m.memory_type, m.scope, m.level, m.importance, m.metadata)"
        )
        plan = str(cursor.fetchall())
    assert "NOT is_deleted" in plan
    assert "agentmem_passes" not in plan
    assert "agent_id" not in plan  # what the filter leaves out


# -- privileges ------------------------------------------------------------------------------------


def body(one):
    return "".join(one.text.split("$$")[1::2])


def is_called_by_another(one):
    others = (body(other) for other in installed_routines() if other != one)
    return any(re.search(rf"\b{one.name}\(", text) for text in others)


@pytest.mark.parametrize("one", installed_routines(), ids=lambda r: r.name)
def test_a_routine_is_for_the_application_or_is_called_by_another_one(one):
    if ask(f"SELECT has_function_privilege('{APPLICATION}', '{one.signature}', 'EXECUTE')"):
        return
    assert is_called_by_another(one)


# -- what a cluster cannot run ---------------------------------------------------------------------


def tables():
    return [m._meta.db_table for m in apps.get_models() if tenant_key(m)]


def names_tenant_table(one):
    return any(
        re.search(rf"\b(FROM|JOIN|UPDATE|INTO)\s+{table}\b", body(one)) for table in tables()
    )


@pytest.mark.parametrize("one", installed_routines(), ids=lambda r: r.name)
def test_a_routine_over_tenant_tables_takes_the_organization_first(one):
    if not names_tenant_table(one):
        return
    if one.name == "agentmem_find_api_key":  # called before the organization is known
        return
    assert re.search(rf"FUNCTION {one.name}\(\s*organization uuid\b", one.text)


@pytest.mark.parametrize("one", installed_routines(), ids=lambda r: r.name)
def test_a_routine_that_others_call_reads_no_tenant_table_in_sql(one):
    """Citus refuses a parameterized call of an SQL function over a distributed table."""
    is_sql = "LANGUAGE sql" in one.text
    assert not (is_sql and names_tenant_table(one) and is_called_by_another(one))


@pytest.mark.parametrize("one", installed_routines(), ids=lambda r: r.name)
def test_a_routine_holds_nothing_that_a_cluster_refuses(one):
    assert not re.search(r"\bpg_notify\b|^\s*NOTIFY\b", one.text, re.MULTILINE)
    assert not re.search(r"\bLATERAL\s*\([^;]*\bLIMIT\b", one.text)
    assert all(";" not in statement.split("$$")[0] for statement in one.statements())


def test_a_search_of_another_organization_is_refused(acme, globex):
    with tenant(acme), pytest.raises(ProgrammingError, match="not the one at hand"):
        rank(
            organization=globex,
            query="x",
            language="english",
            memory_filter=MemoryFilter(),
            vectors=[],
            weights=Weights(),
            limit=1,
        )
