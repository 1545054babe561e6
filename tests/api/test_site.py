"""The schema, the documentation and the health of the site."""

import re
from io import StringIO

import pytest
from django.core.management import call_command
from django.db import OperationalError, connection
from drf_spectacular.generators import SchemaGenerator

from agentmem_site.api import health
from tests.api.routes import ROUTES


@pytest.fixture(scope="module")
def schema():
    return SchemaGenerator().get_schema(request=None, public=True)


def test_the_schema_is_valid_and_complete(schema):
    call_command("spectacular", "--validate", "--fail-on-warn", stdout=StringIO())
    described = {
        f"{method.upper()} {path.removeprefix('/api/v1/').strip('/')}"
        for path, operations in schema["paths"].items()
        for method in operations
    }
    assert described == {route.id for route in ROUTES} | {"GET me"}


def test_every_operation_has_a_summary_security_and_errors(schema):
    tags = {tag["name"] for tag in schema["tags"]}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            assert set(operation["tags"]) <= tags
            assert {"apiKey": []} in operation["security"]
            assert {"bearer": []} in operation["security"]
            assert "application/problem+json" in operation["responses"]["default"]["content"]
    text = str(schema)
    assert "document" not in schema["components"]["schemas"]["Memory"]["properties"]
    assert "embedding" not in schema["components"]["schemas"]["Memory"]["properties"]
    assert "cafe:2026-01-31" in text


def test_operations_that_create_nothing_have_200_and_an_example(schema):
    paths = {path.strip("/"): operations for path, operations in schema["paths"].items()}
    for path in ("search", "search/batch", "batch/update", "batch/delete", "export"):
        operation = paths[f"api/v1/memories/{path}"]["post"]
        assert set(operation["responses"]) == {"200", "default"}, path
        assert operation["requestBody"]["content"]["application/json"]["examples"], path


def test_the_documentation_loads_nothing_from_other_hosts(anonymous):
    page = anonymous.get("/api/docs/")
    assert page.status_code == 200
    text = page.content.decode()
    assert '"validatorUrl": null' in text
    addresses = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert len(addresses) >= 3
    assert all(address.startswith("/static/") for address in addresses)
    assert not re.findall(r"https?://(?!testserver)[\w.]+", text)
    for address in addresses:
        file = anonymous.get(address)
        assert (file.status_code, len(b"".join(file)) > 500) == (200, True), address
        file.close()
    shown = anonymous.get("/api/schema/")
    assert shown.json()["info"]["title"] == "AgentMem API"


def test_me(api, acme):
    answer = api.get("me").json()
    assert answer["organization"] == {"id": str(acme.pk), "name": "Acme", "slug": "acme"}
    assert answer["key"]["name"] == "key"
    assert "memory:read" in answer["scopes"]
    assert api.get("me/").status_code == 200


def test_the_process_lives_without_a_database(client):
    for path in ("/health/live", "/health/live/"):
        assert client.get(path).json() == {"status": "live"}
    assert client.post("/health/live").status_code == 405


def test_the_site_is_ready(client, db, settings):
    settings.DISK_LEAST_BYTES = 0
    response = client.get("/health/ready")
    assert (response.status_code, response.json()) == (
        200,
        {"status": "ready", "reasons": [], "warnings": []},
    )


def test_probes_are_answered_whatever_the_host(client, db, settings):
    settings.DISK_LEAST_BYTES = 0
    for path in ("/health/live", "/health/ready"):
        assert client.get(path, HTTP_HOST="10.1.2.3:8000").status_code == 200
    assert client.get("/api/v1/me", HTTP_HOST="10.1.2.3:8000").status_code == 400


def test_a_database_with_open_walls_is_not_ready(client, db, monkeypatch):
    # (checks.py tests what opens a wall; here it only has to be reported.)
    monkeypatch.setattr(health, "database_faults", lambda: ["The wall of x is open."])
    response = client.get("/health/ready")
    assert response.status_code == 503
    assert response.json()["reasons"] == ["The wall of x is open."]


def test_a_missing_migration_is_not_ready(client, db, monkeypatch):
    monkeypatch.setattr(health.MigrationExecutor, "migration_plan", lambda *a: [("accounts", 9)])
    assert client.get("/health/ready").json()["reasons"] == [
        "Migrations are missing: run `manage.py migrate`."
    ]


def test_an_unreachable_database_is_not_ready(client, db, monkeypatch):
    def fail(*args, **kwargs):
        raise OperationalError("connection to /var/run/postgres refused")

    with monkeypatch.context() as patch:
        patch.setattr(connection, "cursor", fail)
        response = client.get("/health/ready")
    assert (response.status_code, response["Retry-After"]) == (503, "1")
    assert response.json()["reasons"] == ["The database cannot be reached."]
