"""What `manage.py` says about a database that no command can use."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import django.core.management
import psycopg
import pytest
from django.core.management import CommandError
from django.db import InternalError, OperationalError, ProgrammingError, connection, transaction

import manage
from accounts.management import ending


def run(monkeypatch, act, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["manage.py", "sweep", *arguments])
    monkeypatch.setattr(django.core.management, "execute_from_command_line", lambda argv: act())
    manage.main()


def ask(statement: str) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)


def test_missing_tables_are_reported_in_one_line(db, monkeypatch):
    for statement in ("SELECT 1 FROM nowhere", "SELECT nothing FROM accounts_organization"):
        with pytest.raises(SystemExit) as exited:
            run(monkeypatch, functools.partial(ask, statement))
        assert exited.value.code == (
            "Error: The database lacks a table or a column: run `manage.py migrate`."
        )


def test_other_statement_errors_keep_their_traceback(db, monkeypatch):
    with pytest.raises(ProgrammingError):
        run(monkeypatch, functools.partial(ask, "SELECT FROM FROM"))


def test_a_missing_database_is_reported_in_one_line(monkeypatch, capsys):
    def fail() -> None:
        raise OperationalError("connection refused") from psycopg.OperationalError()

    with pytest.raises(SystemExit) as exited:
        run(monkeypatch, fail)
    assert exited.value.code == 75
    assert capsys.readouterr().err == "Error: No database: connection refused\n"
    with pytest.raises(OperationalError):
        run(monkeypatch, fail, "--traceback")


@pytest.mark.parametrize(
    ("kind", "cause", "message"),
    [
        (OperationalError, psycopg.errors.DiskFull, "Error: The server's disk is full: nothing"),
        (InternalError, psycopg.errors.ReadOnlySqlTransaction, "Error: The database is read-only"),
    ],
)
def test_a_write_outage_is_reported_in_one_line(kind, cause, message, monkeypatch, capsys):
    def refused() -> None:
        raise kind("refused") from cause()

    with pytest.raises(SystemExit) as exited:
        run(monkeypatch, refused)
    assert exited.value.code == 75
    assert capsys.readouterr().err.startswith(message)
    with (
        pytest.raises(CommandError, match=message.removeprefix("Error: ")),
        ending.command_errors("Not done."),
    ):
        refused()


def test_other_database_errors_keep_their_traceback(monkeypatch):
    def broken() -> None:
        raise InternalError("corrupt") from psycopg.errors.DataCorrupted()

    with pytest.raises(InternalError):
        run(monkeypatch, broken)


def test_database_url_alone_warns_of_nothing():
    environment = {**os.environ, "DATABASE_URL": "postgres://agentmem_app:x@127.0.0.1:1/agentmem"}
    environment.pop("DATABASE_OWNER_URL", None)
    out = subprocess.run(
        [sys.executable, "manage.py", "check"],
        cwd=Path(__file__).resolve().parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stderr == ""
