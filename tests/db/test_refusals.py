"""Each door and command says why the database cannot be used."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from django.db import OperationalError, connection
from psycopg import sql

from agentmem_site.db import refusals, setup
from agentmem_site.db.outages import DISK_FULL, outage_of
from agentmem_site.db.refusals import (
    CannotConnect,
    cannot_connect,
    connection_failure,
    outage_message,
)
from agentmem_site.db.urls import connection_parameters
from tests.api.conftest import client_with

ROOT = Path(__file__).resolve().parents[2]
SECRET = "s3cr3t"
PLACE = {"USER": "u", "PASSWORD": SECRET, "HOST": "h", "PORT": "1", "NAME": "d"}
BEFORE = "connection failed: connection to server at "


@pytest.fixture(autouse=True)
def roles(db):
    """The roles of the tests' server."""


def url_of(place, **other):
    place = {**place, **other}
    host = quote(place["HOST"], safe="@")
    port = f":{place['PORT']}" if place["PORT"] else ""
    return f"postgres://{place['USER']}:{place['PASSWORD']}@{host}{port}/{place['NAME']}"


def application(**other):
    return url_of(connection.settings_dict, **other)


def owner(**other):
    own = connection.settings_dict["OWNER"]
    return url_of({**own, "NAME": connection.settings_dict["NAME"]}, **other)


def run(command, database_url, owner_url):
    return subprocess.run(
        [sys.executable, "manage.py", *command],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": database_url, "DATABASE_OWNER_URL": owner_url},
        capture_output=True,
        text=True,
        check=False,
    )


DOWN = {"HOST": "127.0.0.1", "PORT": "1"}
WRONG, NOBODY, NOWHERE = {"PASSWORD": SECRET}, {"USER": "nobody"}, {"NAME": "nowhere"}


@pytest.mark.parametrize(
    ("command", "of_application", "of_owner", "message"),
    [
        ("sweep", WRONG, {}, "DATABASE_URL: {at} refuses the password of the role"),
        ("serve", NOBODY, {}, "DATABASE_URL: {at} has no role nobody"),
        ("sweep", {**NOBODY, **WRONG}, WRONG, "or has no such role"),
        ("serve", NOWHERE, NOWHERE, "DATABASE_URL: {at} has no database nowhere"),
        ("serve", DOWN, DOWN, "at 127.0.0.1, port 1, cannot be reached: start PostgreSQL"),
        ("migrate", {}, WRONG, "DATABASE_OWNER_URL: {at} refuses the password of the role"),
        ("migrate", {}, NOBODY, "DATABASE_OWNER_URL: {at} has no role nobody"),
        ("migrate", NOWHERE, NOWHERE, "DATABASE_OWNER_URL: {at} has no database nowhere"),
    ],
)
def test_each_command_says_why(command, of_application, of_owner, message):
    ended = run([command], application(**of_application), owner(**of_owner))
    place = connection.settings_dict
    at = f"PostgreSQL at {place['HOST']}, port {place['PORT']},"
    assert message.format(at=at) in ended.stderr
    assert ended.stderr.splitlines()[0].endswith(".") and "Traceback" not in ended.stderr
    assert ended.returncode == (1 if command == "serve" else 75)
    assert SECRET not in ended.stderr + ended.stdout
    assert connection.settings_dict["PASSWORD"] not in ended.stderr + ended.stdout


@contextmanager
def database_without_vectors():
    name = f"{connection.settings_dict['NAME']}_bare"
    place = {**connection.settings_dict["OWNER"], "NAME": connection.settings_dict["NAME"]}
    drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
    with psycopg.connect(**connection_parameters(place), autocommit=True) as superuser:
        superuser.execute(drop)
        make = sql.SQL("CREATE DATABASE {} TEMPLATE template0")
        superuser.execute(make.format(sql.Identifier(name)))
        try:
            yield name
        finally:
            superuser.execute(drop)


@pytest.mark.parametrize("command", ["migrate", "serve"])
def test_a_database_without_pgvector_is_reported(command):
    with database_without_vectors() as name:
        ended = run([command], application(NAME=name), owner(NAME=name))
    assert ended.returncode == 1
    assert ended.stderr == (
        "CommandError: The database has no pgvector: run `manage.py setup_database`, or in it, as "
        "a superuser, CREATE EXTENSION vector.\n"
    )


@pytest.mark.parametrize(
    ("version", "available", "message"),
    [
        (None, None, "PostgreSQL has no pgvector: install version 0.8 or newer on its machine"),
        (None, "0.8.1", "The database has no pgvector: run"),
        ("0.7.4", "0.8.1", "The database has pgvector 0.7.4, and AgentMem needs 0.8"),
    ],
)
def test_what_is_wrong_with_pgvector(version, available, message):
    assert message in setup._fault_of(version, available)
    assert setup._fault_of("0.10.0", None) is None


def test_setup_says_which_sign_in_failed():
    ended = run(
        ["setup_database", "--superuser-url", url_of(PLACE, **DOWN)], application(), owner()
    )
    assert ended.stderr == (
        "CommandError: The superuser's sign-in: PostgreSQL at 127.0.0.1, port 1, cannot be "
        "reached: start PostgreSQL there, or correct host and port in the URL.\n"
    )


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (
            '"h", port 1 failed: FATAL:  password authentication failed for user "u"',
            "PASSWORD_OR_ROLE",
        ),
        ("fe_sendauth: no password supplied", "PASSWORD_OR_ROLE"),
        ('FATAL:  role "u" does not exist', "ROLE"),
        ('FATAL:  database "d" does not exist', "DATABASE"),
        ('FATAL:  no pg_hba.conf entry for host "::1", user "u", no encryption', "NOT_ADMITTED"),
        ("FATAL:  the database system is starting up", "STARTING"),
        ("FATAL:  the database system is not yet accepting connections", "STARTING"),
        ("FATAL:  sorry, too many clients already", "CROWDED"),
        ("FATAL:  remaining connection slots are reserved for roles with the SUPERUSER", "CROWDED"),
        ("SSL error: certificate verify failed", "TLS"),
        ("server does not support SSL, but SSL was required", "TLS"),
        ("failed to resolve host 'h': [Errno -2] Name or service not known", "NO_HOST"),
        ("Connection refused\n\tIs the server running on that host", "DOWN"),
        ("connection timeout expired", "DOWN"),
    ],
)
def test_messages_of_the_server_are_recognized(words, refusal):
    error = cannot_connect(psycopg.OperationalError(BEFORE + words), PLACE, "X")
    assert isinstance(error, CannotConnect)
    assert error.refusal is getattr(refusals, refusal)
    assert "PostgreSQL at h, port 1," in str(error)
    assert SECRET not in str(error) and str(error).count("\n") == 0


def test_the_embedded_server_is_named(settings):
    settings.EMBEDDED_SERVER = object()
    raw = psycopg.OperationalError("password authentication failed")
    assert str(cannot_connect(raw, PLACE)) == (
        "The embedded server: PostgreSQL at h, port 1, refuses the password of the role u: restore "
        "secrets.json in its folder from a backup."
    )


def test_tls_says_what_libpq_says():
    raw = psycopg.OperationalError(f"{BEFORE} failed: SSL error: certificate verify failed\nMore")
    assert "failed (certificate verify failed): check" in str(cannot_connect(raw, PLACE, "X"))


def test_unknown_messages_are_passed_on():
    error = psycopg.OperationalError("FATAL:  etwas\n\tanderes")
    assert cannot_connect(error, PLACE) is error
    assert outage_message(OperationalError(*error.args)) == "No database: FATAL: etwas anderes"
    full = psycopg.OperationalError(
        "FATAL: could not write: No space left on device; Connection refused"
    )
    assert cannot_connect(full, PLACE) is full
    assert outage_of(full) is DISK_FULL


def test_ready_says_why_without_names(client, monkeypatch):
    raw = psycopg.OperationalError('FATAL:  database "d" does not exist')
    refused = cannot_connect(raw, PLACE, "DATABASE_URL")

    def fail(*args, **kwargs):
        raise OperationalError(*refused.args) from refused

    with monkeypatch.context() as patch:
        patch.setattr(connection, "cursor", fail)
        answer = client.get("/health/ready")
    assert answer.status_code == 503
    assert answer.json()["reasons"] == ["The server has no database of that name."]


def test_the_log_says_why(acme_key, monkeypatch, caplog):
    refused = cannot_connect(psycopg.OperationalError("Connection refused"), PLACE, "X")

    def fail(*args, **kwargs):
        raise OperationalError(*refused.args) from refused

    monkeypatch.setattr("accounts.api.authentication.authenticate_key", fail)
    assert client_with(acme_key).get("me").status_code == 503
    assert "(The database cannot be reached)" in caplog.text


def test_a_missing_role_is_distinguished_from_a_wrong_password():
    raw = psycopg.OperationalError("password authentication failed")
    for role, wanted in [("agentmem_owner", refusals.PASSWORD), ("nobody", refusals.ROLE)]:
        error = cannot_connect(raw, {**PLACE, "USER": role}, "X")
        assert connection_failure(error).refusal is wanted
