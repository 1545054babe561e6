"""Responses when the database or the code fails."""

from contextlib import contextmanager

import psycopg
import pytest
from django.db import OperationalError
from psycopg import errors as postgres

from accounts.errors import Invalid
from accounts.services.users import users
from agentmem_site.bulk.report import Interrupted, LoadReport, Refused, Unprepared


def failing(error):
    def fail(*args, **kwargs):
        raise error

    return fail


def caused_by(cause):
    error = OperationalError("server closed the connection at /var/run/secret")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        caused_by(psycopg.OperationalError("gone")),
        caused_by(postgres.AdminShutdown("restarting")),
        caused_by(postgres.TooManyConnections("full")),
        caused_by(postgres.QueryCanceled("timeout")),
        caused_by(postgres.DeadlockDetected("deadlock")),
    ],
    ids=lambda error: type(error.__cause__).__name__,
)
def test_a_database_that_cannot_answer_is_503(api, monkeypatch, error):
    monkeypatch.setattr(users, "create", failing(error))
    response = api.post("users", {})
    assert (response.status_code, response["Retry-After"]) == (503, "1")
    assert response.json()["code"] == "unavailable"
    assert "secret" not in response.content.decode()


def test_a_database_lost_during_authentication_is_503(api, monkeypatch):
    error = caused_by(psycopg.OperationalError("gone"))
    monkeypatch.setattr("accounts.api.authentication.authenticate_key", failing(error))
    assert api.get("users").status_code == 503


def test_a_commit_that_fails_is_503(api, monkeypatch):
    @contextmanager
    def losing(organization):
        yield
        raise caused_by(psycopg.OperationalError("gone"))

    monkeypatch.setattr("accounts.api.views.tenant", losing)
    assert api.get("me").status_code == 503


def test_a_text_beyond_what_postgresql_indexes_is_400(api, monkeypatch):
    error = caused_by(postgres.ProgramLimitExceeded("string is too long for tsvector"))
    monkeypatch.setattr(users, "create", failing(error))
    assert api.post("users", {}).json()["code"] == "too_large"


def test_a_bug_is_500_without_details(api, monkeypatch):
    monkeypatch.setattr(users, "create", failing(RuntimeError("/srv/secret.py")))
    api.raise_request_exception = False
    response = api.post("users", {})
    assert response.status_code == 500
    assert response["Content-Type"] == "application/problem+json"
    assert response.json()["request_id"] == response["X-Request-Id"]
    assert "secret" not in response.content.decode()


def test_writes_before_a_refusal_are_rolled_back(api, monkeypatch):
    create = users.create

    def create_and_refuse(**kwargs):
        create(**kwargs)
        raise Invalid("Too late.")

    monkeypatch.setattr(users, "create", create_and_refuse)
    assert api.post("users", {"external_id": "ann"}).json()["detail"] == "Too late."
    assert api.get("users").json()["results"] == []
    assert api.get("audit-events?resource_type=user").json()["results"] == []


@pytest.mark.parametrize(
    ("stopped", "code", "wait"),
    [
        (Interrupted, "unavailable", "5"),
        (Unprepared, "unavailable", None),
        (Refused, "error", None),
    ],
)
def test_a_load_that_stops_reports_what_is_committed(api, monkeypatch, stopped, code, wait):
    report = LoadReport("users", last_line=5000)
    error = stopped("server closed the connection at /var/run/secret", report)
    monkeypatch.setattr("agentmem_site.api.bulk.run_load", failing(error))
    response = api.post("users/bulk", b"{}", content_type="application/x-ndjson")
    problem = response.json()
    assert (response.status_code, problem["code"]) == (500 if stopped is Refused else 503, code)
    assert response.headers.get("Retry-After") == wait
    assert problem["report"]["last_line"] == 5000
    assert "Lines up to 5,000 are committed." in problem["detail"]
    assert "secret" not in response.content.decode()
