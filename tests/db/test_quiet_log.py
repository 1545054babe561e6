"""PostgreSQL's log has no data in it after ordinary errors."""

import psycopg
import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import Error, connection, transaction

from agentmem_site.checks import check_log, database_warnings
from agentmem_site.db import quiet
from tests.api.conftest import client_with
from tests.bulk.loading import load
from tests.makers import make_memory

CANARY = "canary-7f3a"
embedded = pytest.mark.skipif(
    settings.EMBEDDED_SERVER is None, reason="looks into the embedded server's log"
)


@pytest.fixture
def logged():
    """What the server has logged since the test started."""
    log = settings.EMBEDDED_SERVER.root / "server.log"
    start = log.stat().st_size

    def read() -> str:
        return log.read_bytes()[start:].decode()

    return read


def refused(statement: str, *params: object) -> None:
    with (
        pytest.raises(Error),
        transaction.atomic(),
        connection.cursor() as cursor,
    ):
        cursor.execute(statement, params)


@embedded
@pytest.mark.unguarded
@pytest.mark.django_db(transaction=True)
def test_no_data_is_logged(acme, acme_key, tmp_path, logged):
    api = client_with(acme_key)
    person = {"external_id": CANARY, "name": f"Ann {CANARY}", "email": f"{CANARY}@a.example"}
    assert api.post("users", person).status_code == 201
    assert api.post("users", person).status_code == 409
    member = {"email": f"{CANARY}@b.example", "role": "viewer", "password": f"{CANARY} {CANARY}"}
    assert api.post("members", member).status_code == 201
    assert api.post("members", member).status_code == 409
    make_memory(acme, content=CANARY)
    words = {"query": f"{CANARY} & ! ( '", "limit": 3}
    assert api.post("memories/search", words).status_code == 200
    assert api.get("memories", {"since": CANARY}).status_code == 400
    with pytest.raises(CommandError):
        load(tmp_path, "users", [{"external_id": CANARY, "nmae": CANARY}])
    # Other errors, as from a bug: even the message quotes the value.
    refused("SELECT %s::uuid", CANARY)
    refused("SELECT %s::timestamptz", CANARY)
    refused("SELECT to_tsquery(%s)", f"{CANARY} (")
    refused("SELECT * FROM generate_series(1, 3) WHERE %s::json IS NULL", CANARY)
    with (
        pytest.raises((Error, psycopg.Error), match="invalid input syntax"),
        transaction.atomic(),
        connection.cursor() as cursor,
    ):
        cursor.execute("CREATE TEMP TABLE line (n int)")
        with cursor.copy("COPY line FROM STDIN") as copy:
            copy.write(f"{CANARY}\n")
    refused("DO $$ BEGIN RAISE WARNING 'canary-7f3a'; PERFORM 1/0; END $$")
    call_command("erase_user", CANARY, organization="acme", yes=True)
    with connection.cursor() as cursor:  # so that something is logged
        cursor.execute("SELECT pg_backend_pid()")
        pid = cursor.fetchone()[0]
    other = connection.copy()
    with other.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    other.close()
    connection.close()
    assert f"[{pid}]" in logged()
    assert "terminating connection due to administrator command" in logged()
    assert CANARY not in logged()
    assert "pbkdf2" not in logged()


@embedded
def test_the_embedded_server_warns_of_nothing(client, db, settings):
    settings.DISK_LEAST_BYTES = 0
    assert database_warnings() == []
    assert client.get("/health/ready").json()["warnings"] == []


LOUD = [
    ("log_min_messages", "warning"),
    ("log_min_messages", "error"),
    ("log_min_error_statement", "error"),
    ("log_error_verbosity", "default"),
    ("log_statement", "mod"),
    ("log_min_duration_statement", "250"),
    ("log_parameter_max_length", "-1"),
    ("log_parameter_max_length_on_error", "64"),
]


@pytest.mark.parametrize(("name", "value"), LOUD)
def test_settings_that_log_data_are_named(name, value):
    assert quiet.loud({**quiet.QUIET, name: value}) == [f"{name} = {value}"]


def test_logging_only_fatal_errors_is_quiet_too():
    assert quiet.loud({**quiet.QUIET, "log_min_messages": "fatal", "log_duration": "on"}) == []


def test_a_log_with_data_is_a_warning_only(client, db, monkeypatch, settings):
    settings.DISK_LEAST_BYTES = 0
    shown = "SELECT 'warning', " + ", ".join(f"'{value}'" for value in quiet.VALUES.values())
    monkeypatch.setattr(quiet, "CURRENT_SETTINGS", shown)
    response = client.get("/health/ready")
    assert (response.status_code, response.json()["reasons"]) == (200, [])
    (warning_text,) = response.json()["warnings"]
    assert "(log_min_messages = warning)" in warning_text
    (warning,) = check_log(databases=["default"])
    assert (warning.id, warning.msg) == ("agentmem.W001", warning_text)
    assert "manage.py database stop" in warning_text
    settings.EMBEDDED_SERVER = None
    (warning,) = check_log(databases=["default"])
    assert "manage.py setup_database" in warning.msg
