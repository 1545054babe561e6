"""What the log contains about requests and loads, and what it never does."""

import json
import logging
import sys

import pytest
from django.conf import settings as site
from django.core.management import CommandError
from django.db import DataError, connection

from accounts.models import User
from accounts.tenancy import tenant
from agentmem_site.logs import JsonFormatter, template_of
from agentmem_site.services import loads
from memories.api.views import AgentViewSet
from sessions.api.people import PeopleViewSet
from tests.api.conftest import client_with
from tests.bulk.loading import load

SECRET = "what-ann-said"


class Lines(logging.Handler):
    """The lines as they are written."""

    def __init__(self):
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.all = []

    def emit(self, record):
        self.all.append(json.loads(self.format(record)))

    def of(self, logger):
        return [line for line in self.all if line["logger"] == logger]


@pytest.fixture
def lines():
    handler = Lines()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


def accesses(lines):
    return lines.of("agentmem.access")


# -- requests -------------------------------------------------------------------------------------


def test_a_request_is_one_line(api, acme, lines):
    answer = api.get("agents", HTTP_X_REQUEST_ID="mine")
    (line,) = accesses(lines)
    assert line["level"] == "INFO"
    assert line["duration_ms"] > 0
    names = ["method", "route", "status", "bytes", "organization_id", "member_id", "request_id"]
    assert [line[name] for name in names] == [
        "GET",
        "/api/v1/agents",
        200,
        len(answer.content),
        str(acme.pk),
        None,
        "mine",
    ]
    assert line["key_id"] == api.get("api-keys").json()["results"][0]["id"]


@pytest.mark.parametrize(
    ("path", "route", "status"),
    [
        (f"users/{SECRET}", "/api/v1/users/{id}", 404),
        (f"agents/{SECRET}/blocks/", "/api/v1/agents/{agent_id}/blocks", 404),
        (f"{SECRET}?q={SECRET}", None, 404),
        ("/health/ready/x", None, 404),
        (f"/admin/memories/memory/{SECRET}/change/", None, 302),
        ("/", "/", 302),
    ],
)
def test_a_line_has_the_route_and_not_the_path(path, route, status, api, lines):
    answer = api.get(path)
    (line,) = accesses(lines)
    assert answer.status_code == line["status"] == status
    if not path.startswith("/admin/"):
        assert line["route"] == route
    else:
        assert line["route"] == "/admin/memories/memory/{object_id}/change"
    assert SECRET not in json.dumps(lines.all)


def test_a_route_template_is_derived_from_the_pattern():
    assert template_of(r"api/v1/^agents/(?P<agent_id>[^/]+)/tools/?$") == (
        "/api/v1/agents/{agent_id}/tools"
    )
    assert template_of("admin/<path:object_id>/change/") == "/admin/{object_id}/change"


def test_the_access_log_has_the_members_id(client, alice, acme, lines):
    client.force_login(alice)
    client.get("/admin/")
    (line,) = accesses(lines)
    assert (line["organization_id"], line["member_id"], line["key_id"]) == (
        str(acme.pk),
        str(alice.pk),
        None,
    )


def test_a_stream_is_logged_at_its_end(api, lines):
    answer = api.post("memories/export", {})
    assert answer.streaming
    assert accesses(lines) == []
    sent = b"".join(answer.streaming_content)
    answer.close()
    (line,) = accesses(lines)
    assert (line["bytes"], line["status"]) == (len(sent), 200)


def test_static_files_have_their_own_route(client, db, lines):
    response = client.get("/static/agentmem/console.css")
    assert b"".join(response.streaming_content) and response.status_code == 200
    assert client.get("/static/nothing.css").status_code == 404
    assert [line["route"] for line in accesses(lines)] == ["/static/{path}"] * 2


def test_successful_probes_are_not_logged(client, db, lines, settings, monkeypatch):
    settings.DISK_LEAST_BYTES = 0
    client.get("/health/live")
    client.get("/health/ready")
    assert accesses(lines) == []
    monkeypatch.setattr("agentmem_site.api.health.database_faults", lambda: ["x"])
    client.get("/health/ready")
    (line,) = accesses(lines)
    assert (line["route"], line["status"]) == ("/health/ready", 503)


def test_the_access_log_is_turned_off_by_one_setting(settings, acme_key, lines):
    settings.ACCESS_LOG = False
    assert client_with(acme_key).get("agents").status_code == 200
    assert accesses(lines) == []


def test_the_levels_are_those_of_the_settings():
    """Without pytest's handlers, and with a level of its own."""
    assert logging.getLogger("agentmem.access").level == logging.INFO
    assert logging.getLogger("django.request").level == logging.ERROR
    assert site.LOGGING["root"]["level"] == "WARNING"


# -- refusals and failures ------------------------------------------------------------------------


def test_refusals_have_no_traceback(client, api, alice, lines, settings):
    client.force_login(alice)
    refused = [
        client.get("/admin/accounts/nothing/"),
        client.get("/admin/", {"nothing": "1"}),
        client.get("/admin/", HTTP_HOST="elsewhere.example"),
        api.get("agents/none"),
        api.get("agents", {"nothing": 1}),
        api.put("agents"),
        client_with(None).get("agents"),
    ]
    assert all(400 <= answer.status_code < 500 for answer in refused)
    assert len(accesses(lines)) == len(refused)
    assert not [line for line in lines.all if {"exception", "frames"} & set(line)]
    assert lines.of("django.request") == []


def test_a_bug_has_frames_and_no_content(acme_key, lines, monkeypatch):
    def broken(*args, **kwargs):
        logged = SECRET
        raise ValueError(logged)

    monkeypatch.setattr(PeopleViewSet, "retrieve", broken)
    client = client_with(acme_key)
    client.raise_request_exception = False
    assert client.get(f"users/{SECRET}").status_code == 500
    (line,) = lines.of("django.request")
    assert (line["level"], line["exception"]) == ("ERROR", "ValueError")
    assert "in broken\n    raise ValueError(logged)" in line["frames"]
    assert line["request_id"] == accesses(lines)[0]["request_id"]
    assert SECRET not in json.dumps(lines.all)


@pytest.mark.unguarded
def test_a_database_error_is_logged_without_values(acme_key, lines, monkeypatch):
    def ask(*args, **kwargs):
        with connection.cursor() as cursor:
            cursor.execute("SELECT %s::text::json", [SECRET])

    client = client_with(acme_key)
    client.raise_request_exception = False
    monkeypatch.setattr(AgentViewSet, "list", ask)
    assert client.get("agents").status_code == 400
    assert "SQLSTATE 22P02" in lines.of("agentmem.api")[0]["message"]
    monkeypatch.setattr("agentmem_site.api.problems.DataError", KeyError)
    assert client.get("agents").status_code == 500
    (line,) = lines.of("django.request")
    assert line["sqlstate"] == "22P02"
    assert (line["exception"], line["causes"]) == ("DataError", ["InvalidTextRepresentation"])
    assert SECRET not in json.dumps(lines.all)


def test_a_formatted_exception_has_its_causes(lines):
    try:
        try:
            raise KeyError(SECRET)
        except KeyError as error:
            raise DataError(SECRET) from error
    except DataError:
        record = logging.LogRecord("x", 40, "f", 1, "failed", None, sys.exc_info())
    line = json.loads(JsonFormatter().format(record))
    assert (line["exception"], line["causes"]) == ("DataError", ["KeyError"])
    assert SECRET not in json.dumps({**line, "frames": line["frames"].replace("SECRET", "")})


# -- loads ----------------------------------------------------------------------------------------


@pytest.fixture
def info_of_loads():
    logger = logging.getLogger("agentmem.loads")
    before = logger.level
    logger.setLevel(logging.INFO)
    yield
    logger.setLevel(before)


@pytest.mark.django_db(transaction=True)
def test_a_load_logs_its_start_progress_and_end(acme, tmp_path, lines, info_of_loads, monkeypatch):
    rows = [{"external_id": f"{SECRET}-{number}"} for number in range(5)]
    monkeypatch.setattr(loads, "LOGGED_EVERY_S", 0.0)
    load(tmp_path, "users", rows, batch_size=2, job="nightly")
    logged = lines.of("agentmem.loads")
    assert [line["message"].removeprefix("A load of users ") for line in logged] == [
        "started",
        *["is in progress"] * 3,
        "is done",
    ]
    assert [line["read"] for line in logged] == [0, 2, 4, 5, 5]
    assert {(line["job"], line["organization_id"]) for line in logged} == {
        ("nightly", str(acme.pk))
    }
    with tenant(acme):
        assert logged[-1]["inserted"] == User.objects.for_organization(acme).count() == 5
    assert SECRET not in json.dumps(lines.all)


@pytest.mark.django_db(transaction=True)
def test_a_load_logs_progress_at_most_every_ten_seconds(acme, tmp_path, lines, info_of_loads):
    load(tmp_path, "users", [{"external_id": f"u{n}"} for n in range(20)], batch_size=1)
    assert [
        line["message"].removeprefix("A load of users ") for line in lines.of("agentmem.loads")
    ] == [
        "started",
        "is done",
    ]


@pytest.mark.django_db(transaction=True)
def test_a_load_that_stops_logs_why_and_quotes_nothing(acme, tmp_path, lines, info_of_loads):
    with pytest.raises(CommandError):
        load(tmp_path, "users", [{"external_id": "ann"}, {SECRET: SECRET}])
    line = lines.of("agentmem.loads")[-1]
    assert (line["message"], line["stopped_by"]) == ("A load of users stopped", "BadLine")
    assert line["read"] == 0
    assert SECRET not in json.dumps(lines.all)
