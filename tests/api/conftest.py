"""Clients with keys, and rows of acme for each kind of id in the API."""

from typing import Any

import pytest
from rest_framework.test import APIClient

from accounts.models import Member, Organization
from accounts.services.keys import issue_key
from accounts.tenancy import tenant
from memories.services.agents import attach_block, attach_tool
from tests.makers import (
    TESTER,
    make_agent,
    make_block,
    make_memory,
    make_message,
    make_run,
    make_session,
    make_tool,
    make_user,
)


class Client(APIClient):
    """Paths below /api/v1/; bodies are JSON."""

    def generic(self, method: str, path: str, *args: Any, **kwargs: Any) -> Any:
        if not path.startswith(("/", "http://")):
            path = f"/api/v1/{path}"
        return super().generic(method, path, *args, **kwargs)


def client_with(key: str | None) -> Client:
    client = Client()
    if key:
        client.credentials(HTTP_X_API_KEY=key)
    return client


@pytest.fixture(autouse=True)
def quick_passwords(settings: Any) -> None:
    """The cast's passwords are not tested here; a slow hash would take half the time."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture
def api(acme_key: str) -> Client:
    """Acme's, with every scope."""
    return client_with(acme_key)


@pytest.fixture
def theirs(globex_key: str) -> Client:
    return client_with(globex_key)


@pytest.fixture
def anonymous(db: None) -> Client:
    return client_with(None)


@pytest.fixture
def cast(acme: Organization, alice: Member) -> dict[str, Any]:
    """One row of acme of each kind, everything attached to everything."""
    user, agent = make_user(acme), make_agent(acme)
    block, tool = make_block(acme, external_id="block-1", user=user), make_tool(acme)
    session = make_session(acme, agent=agent, user=user)
    run = make_run(session)
    with tenant(acme):
        attach_block(agent, block, organization=acme, actor=TESTER)
        attach_tool(agent, tool, organization=acme, actor=TESTER)
        key, _ = issue_key(organization=acme, actor=TESTER, name="old", scopes=["memory:read"])
    return {
        "organization": acme,
        "member": alice,
        "apikey": key,
        "user": user,
        "agent": agent,
        "block": block,
        "tool": tool,
        "session": session,
        "run": run,
        "message": make_message(acme, external_id="message-1", session=session, run=run),
        "memory": make_memory(acme, external_id="memory-1", user=user, agent=agent),
    }
