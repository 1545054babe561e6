"""The second wall: which rows the database itself shows, to whom, in which context."""

from uuid import uuid4

import psycopg
import pytest
from django.db import DatabaseError, OperationalError, connection, transaction

from accounts.models import AuditEvent, Organization, User
from accounts.services.audit import record_event
from accounts.tenancy import platform, tenant
from agentmem_site.db.fields import TenantForeignKey
from agentmem_site.db.roles import ADMIN
from memories.models import Agent
from sessions.models import Session
from tests.makers import TESTER, make_organization, make_user
from tests.schema import catalog
from tests.schema.rows import populate

# The wall must hold if a query forgets the organization. These statements do.
pytestmark = [pytest.mark.django_db, pytest.mark.unguarded]

DATA_PLANE = catalog.data_plane()
WALLED = catalog.walled()
REFERENCES = [
    (model, field)
    for model in DATA_PLANE.values()
    for field in model._meta.local_fields
    if isinstance(field, TenantForeignKey)
]


@pytest.fixture
def both(acme, globex) -> tuple[Organization, Organization]:
    """acme and globex with rows in every table."""
    populate(acme, globex)
    return acme, globex


def fetch(statement, *parameters):
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return cursor.fetchall()


def change(statement, *parameters) -> int:
    """The number of rows that the statement changed."""
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return cursor.rowcount


def visible() -> dict[str, set]:
    """The organizations with visible rows, by table. Tables without visible rows are left out."""
    found = {t: {o for (o,) in fetch(f'SELECT organization_id FROM "{t}"')} for t in WALLED}
    return {table: organizations for table, organizations in found.items() if organizations}


def refusal(statement, *parameters) -> psycopg.Error:
    """The database's error for the statement."""
    with pytest.raises(DatabaseError) as caught, transaction.atomic():
        change(statement, *parameters)
    return caught.value.__cause__


# -- reading ------------------------------------------------------------------------------------


def test_without_a_context_nothing_is_visible(both):
    assert visible() == {}
    for model in WALLED.values():
        assert not model._base_manager.exists()


def test_an_organization_sees_only_its_own_rows(both):
    for organization in both:
        with tenant(organization):
            assert visible() == {table: {organization.pk} for table in WALLED}


def test_the_context_of_an_unknown_organization_is_empty(both):
    with tenant(uuid4()):
        assert visible() == {}


def test_the_context_takes_one_organization_by_its_id(both):
    acme, _ = both
    with tenant(acme.pk):
        assert visible() == {table: {acme.pk} for table in WALLED}


def test_platform_sees_all(both):
    everyone = {organization.pk for organization in both}
    with platform():
        assert {table: seen & everyone for table, seen in visible().items()} == dict.fromkeys(
            WALLED, everyone
        )
        assert fetch("SELECT current_user") == [(ADMIN,)]
    assert visible() == {}


def test_row_security_is_active_for_the_application_in_every_table(both):
    assert [
        table for table in WALLED if not fetch("SELECT row_security_active(%s)", table)[0][0]
    ] == []


def test_copy_out_shows_no_more_than_select(both):
    acme, _ = both
    for table in WALLED:
        with tenant(acme), connection.cursor() as cursor:
            (own,) = fetch(f'SELECT count(*) FROM "{table}"')[0]
            with cursor.copy(f'COPY "{table}" (id) TO STDOUT') as copy:
                assert sum(1 for _ in copy.rows()) == own > 0


def test_subqueries_and_joins_by_id_do_not_cross_organizations(both):
    acme, globex = both
    with tenant(globex):
        theirs = Session.objects.for_organization(globex).get()
    with tenant(acme):
        assert not Session.objects.filter(pk=theirs.pk).exists()
        assert not Agent.objects.filter(sessions=theirs.pk).exists()
        assert not Session.objects.filter(agent__in=[theirs.agent_id]).exists()


# -- writing ------------------------------------------------------------------------------------


def test_nothing_of_another_organization_can_be_changed(both):
    acme, globex = both
    for table, model in DATA_PLANE.items():
        with tenant(acme):
            statement = f'UPDATE "{table}" SET updated_at = now()'
            assert change(f"{statement} WHERE organization_id = %s", globex.pk) == 0
            own = model._base_manager.count()
            assert change(statement) == own > 0, table  # of all rows in the table


def test_nothing_of_another_organization_can_be_removed(both):
    acme, globex = both
    with tenant(acme):
        for table in DATA_PLANE:
            assert change(f'DELETE FROM "{table}" WHERE organization_id = %s', globex.pk) == 0
    with platform():
        for table, model in DATA_PLANE.items():
            assert model._base_manager.filter(organization=globex).exists(), table


def test_without_a_context_nothing_can_be_changed_or_removed(both):
    for table in DATA_PLANE:
        assert change(f'UPDATE "{table}" SET updated_at = now()') == 0
        assert change(f'DELETE FROM "{table}"') == 0


def copy_row(model, organization) -> tuple[str, list]:
    """An INSERT that copies one of the visible rows into that organization."""
    names = [f.column for f in model._meta.local_concrete_fields if not f.generated]
    values = {"id": "%s", "organization_id": "%s"}
    order = sorted(names, key=lambda name: (name != "id", name != "organization_id"))
    columns = ", ".join(f'"{name}"' for name in order)
    chosen = ", ".join(values.get(name, f'"{name}"') for name in order)
    table = model._meta.db_table
    return (
        f'INSERT INTO "{table}" ({columns}) SELECT {chosen} FROM "{table}" LIMIT 1',
        [uuid4(), organization.pk],
    )


def test_no_row_can_be_inserted_into_another_organization(both):
    acme, globex = both
    with tenant(acme):
        for table, model in WALLED.items():
            statement, parameters = copy_row(model, globex)
            error = refusal(statement, *parameters)
            assert isinstance(error, psycopg.errors.InsufficientPrivilege), table
            assert f'new row violates row-level security policy for table "{table}"' in str(error)


def test_no_row_can_be_moved_to_another_organization(both):
    acme, globex = both
    with tenant(acme):
        for table in DATA_PLANE:
            error = refusal(f'UPDATE "{table}" SET organization_id = %s', globex.pk)
            assert "row-level security" in str(error), table


def test_without_a_context_no_row_can_be_inserted(acme):
    user = {"id": uuid4(), "organization": acme}
    with pytest.raises(DatabaseError, match="row-level security"), transaction.atomic():
        User.objects.bulk_create([User(**user)])


def test_copy_into_a_walled_table_is_refused(both):
    acme, _ = both
    for table in WALLED:
        with (
            tenant(acme),
            pytest.raises(psycopg.errors.FeatureNotSupported),
            transaction.atomic(),
            connection.cursor() as cursor,
            cursor.copy(f'COPY "{table}" (id) FROM STDIN'),
        ):
            pass


# -- references ---------------------------------------------------------------------------------


def test_no_row_refers_to_another_organization(both):
    """Row-level security alone would accept it: foreign key checks see all rows."""
    acme, globex = both
    assert len(REFERENCES) >= 15
    for model, field in REFERENCES:
        with tenant(globex):
            foreign = field.related_model._base_manager.filter(organization=globex).first().pk
        with tenant(acme):
            statement = f'UPDATE "{model._meta.db_table}" SET "{field.column}" = %s'
            error = refusal(statement, foreign)
            assert isinstance(error, psycopg.errors.ForeignKeyViolation), (model, field)
            # It cannot be distinguished from an id that does not exist.
            assert str(error) == str(refusal(statement, uuid4())), (model, field)


def test_platform_cannot_mix_organizations(both):
    acme, globex = both
    with platform():
        foreign = Agent.objects.for_organization(globex).first()
        error = refusal(
            "UPDATE agent_sessions_session SET agent_id = %s WHERE organization_id = %s",
            foreign.pk,
            acme.pk,
        )
        assert isinstance(error, psycopg.errors.ForeignKeyViolation)


# -- the audit log ------------------------------------------------------------------------------


def test_an_event_without_an_organization_can_be_written_but_not_read(acme):
    record_event(organization=None, actor=TESTER, action="sign_in_failed", resource_type="member")
    with tenant(acme):
        record_event(organization=None, actor=TESTER, action="sign_in_failed", resource_type="x")
        assert not AuditEvent.objects.filter(action="sign_in_failed").exists()
    assert not AuditEvent.objects.exists()
    with platform():
        assert AuditEvent.objects.filter(action="sign_in_failed").count() == 2


@pytest.mark.parametrize("statement", ["UPDATE {} SET action = 'x'", "DELETE FROM {}"])
def test_the_audit_log_is_append_only(both, statement):
    acme, _ = both
    for context in (tenant(acme), platform()):
        with context:
            error = refusal(statement.format("accounts_auditevent"))
            assert "permission denied for table accounts_auditevent" in str(error)


# -- the context --------------------------------------------------------------------------------


def test_contexts_do_not_nest(acme, globex):
    for outer in (tenant(acme), platform()):
        with outer:
            for inner in (tenant(globex), tenant(acme), platform()):
                with pytest.raises(RuntimeError, match="durable"), inner:
                    pass


def test_a_context_is_never_entered_within_a_transaction(acme):
    with transaction.atomic():
        for context in (tenant(acme), platform()):
            with pytest.raises(RuntimeError, match="durable"), context:
                pass


def test_an_error_in_a_savepoint_leaves_the_context(both):
    acme, _ = both
    with tenant(acme):
        with pytest.raises(DatabaseError), transaction.atomic():
            fetch("SELECT 1 / 0")
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            raise ZeroDivisionError
        with transaction.atomic():
            transaction.set_rollback(True)
        assert visible() == {table: {acme.pk} for table in WALLED}


def test_a_failed_context_leaves_nothing_even_in_a_test(both):
    acme, _ = both
    for context in (tenant, lambda _: platform()):
        for error in ("SELECT 1 / 0", "SELECT nonsense"):
            with pytest.raises(DatabaseError), context(acme):
                fetch(error)
            assert visible() == {}
    with tenant(acme):
        transaction.set_rollback(True)
    assert visible() == {}


def state() -> tuple:
    """The role, the context and what is visible, in a separate transaction."""
    seen = User._base_manager.count()
    role, matches = fetch("SELECT current_user, current_user = session_user")[0]
    assert matches, role
    return (fetch("SELECT coalesce(current_setting('app.organization_id', true), '')")[0][0], seen)


@pytest.mark.django_db(transaction=True)
def test_the_context_ends_with_its_transaction():
    acme, globex = make_organization("acme"), make_organization("globex")
    make_user(acme), make_user(globex)
    pid = fetch("SELECT pg_backend_pid()")

    for context in (tenant(acme), platform()):
        with context:
            assert User._base_manager.exists()
        assert state() == ("", 0)
    for context in (tenant(acme), platform()):
        with pytest.raises(ZeroDivisionError), context:
            raise ZeroDivisionError
        assert state() == ("", 0)
    for context in (tenant(acme), platform()):
        with pytest.raises(DatabaseError), context:
            fetch("SELECT 1 / 0")
        assert state() == ("", 0)
    for context in (tenant(acme), platform()):
        with context:
            transaction.set_rollback(True)
        assert state() == ("", 0)
    with transaction.atomic():
        assert state() == ("", 0)
    assert fetch("SELECT pg_backend_pid()") == pid  # all on one connection

    with tenant(globex):
        assert [user.organization_id for user in User._base_manager.all()] == [globex.pk]


@pytest.mark.django_db(transaction=True)
def test_a_lost_connection_leaves_no_context():
    acme = make_organization("acme")
    make_user(acme)
    with pytest.raises(OperationalError), tenant(acme):
        fetch("SELECT pg_terminate_backend(pg_backend_pid())")
    assert state() == ("", 0)
    with tenant(acme):
        assert User._base_manager.count() == 1


@pytest.mark.django_db(transaction=True)
def test_a_deferred_mix_of_organizations_is_refused_too():
    """INITIALLY IMMEDIATE constraints can be deferred: then the COMMIT fails."""
    acme, globex = make_organization("acme"), make_organization("globex")
    populate(acme, globex)
    with tenant(globex):
        foreign = Agent.objects.for_organization(globex).first().pk
    with pytest.raises(DatabaseError, match="foreign key"), tenant(acme):
        change("SET CONSTRAINTS ALL DEFERRED")
        assert change("UPDATE agent_sessions_session SET agent_id = %s", foreign) == 1
    with tenant(acme):
        assert Session.objects.for_organization(acme).get().agent_id != foreign
