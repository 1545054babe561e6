"""One case per model of the console: how to create a row, and what its form sends."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from django.db import models

from accounts.models import ApiKey, AuditEvent, Member, Organization, User
from accounts.services.audit import record_event
from accounts.tenancy import tenant
from memories.models import Agent, Block, Memory, Tool
from sessions.models import Message, Run, Session
from tests.makers import (
    TESTER,
    make_agent,
    make_block,
    make_key,
    make_member,
    make_memory,
    make_message,
    make_run,
    make_session,
    make_tool,
    make_user,
)

CANARY = "canary-of-acme"


@dataclass(frozen=True)
class Case:
    make: Callable[[Any], Any]  # a row of this organization that contains CANARY
    form: dict[str, Any]  # what an add form sends, without defaults
    search: str = CANARY
    change: dict[str, Any] = field(default_factory=dict)
    references: Callable[[Any], dict[str, Any]] = lambda organization: {}
    is_listed_only: bool = False  # members can neither add nor delete it


def _key(organization: Any) -> ApiKey:
    make_key(organization)
    with tenant(organization):
        key = ApiKey.objects.for_organization(organization).get()
        key.name = CANARY
        key.save()
    return key


def _event(organization: Any) -> AuditEvent:
    with tenant(organization):
        record_event(organization=organization, actor=TESTER, action=CANARY, resource_type="agent")
        return AuditEvent.objects.for_organization(organization).get(action=CANARY)


def _organization(organization: Organization) -> Organization:
    Organization.objects.filter(pk=organization.pk).update(name=CANARY)
    return Organization.objects.get(pk=organization.pk)


_ORGANIZATION = Case(_organization, {"slug": "initech", "settings": "{}"}, is_listed_only=True)

CASES: dict[type[models.Model], Case] = {
    User: Case(
        lambda o: make_user(o, name=CANARY),
        {"name": "Bob", "status": "active", "timezone": "UTC", "metadata": "{}"},
        change={"name": "Robert"},
    ),
    Member: Case(
        lambda o: make_member(o, CANARY),
        {"name": "Bob", "email": "bob@acme.example", "role": "user", "is_active": "on"},
        change={"name": "Robert"},
    ),
    ApiKey: Case(
        _key,
        {"name": "nightly", "template": "viewer"},
        change={"name": "monthly"},
    ),
    Organization: _ORGANIZATION,
    AuditEvent: Case(_event, {}, search="tester", is_listed_only=True),
    Agent: Case(
        lambda o: make_agent(o, name=CANARY),
        {
            "name": "Scout",
            "state": "idle",
            "llm_config": '{"model": "m"}',
            "embedding_config": "",
            "tool_rules": "[]",
            "mcp_tools": "",
            "message_ids": "",
            "metadata": "",
            "block_links-TOTAL_FORMS": "0",
            "block_links-INITIAL_FORMS": "0",
            "tool_links-TOTAL_FORMS": "0",
            "tool_links-INITIAL_FORMS": "0",
        },
        change={"name": "Pathfinder"},
    ),
    Block: Case(
        lambda o: make_block(o, label=CANARY),
        {
            "label": "persona",
            "value": "I am helpful.",
            "limit": "100",
            "metadata": "{}",
            "agent_links-TOTAL_FORMS": "0",
            "agent_links-INITIAL_FORMS": "0",
        },
        change={"value": "I am brief."},
    ),
    Tool: Case(
        lambda o: make_tool(o, name=CANARY),
        {
            "name": "search",
            "source_type": "python",
            "json_schema": "{}",
            "tags": "a,b",
            "metadata": "{}",
            "agent_links-TOTAL_FORMS": "0",
            "agent_links-INITIAL_FORMS": "0",
        },
        change={"description": "Finds things."},
    ),
    Memory: Case(
        lambda o: make_memory(o, content=f"Likes {CANARY} tea"),
        {
            "content": "Likes tea",
            "memory_type": "semantic",
            "scope": "user",
            "level": "operational",
            "importance": "0.5",
            "metadata": "{}",
        },
        change={"content": "Likes coffee"},
        references=lambda o: {"user": make_user(o).pk, "agent": make_agent(o).pk},
    ),
    Session: Case(
        lambda o: make_session(o, session_id=CANARY),
        {"session_id": "s-1", "state": "{}", "agent_data": "{}", "summary": "", "metadata": "{}"},
        change={"name": "A late parcel"},
        references=lambda o: {"user": make_user(o).pk, "agent": make_agent(o).pk},
    ),
    Run: Case(
        lambda o: make_run(make_session(o), run_id=CANARY),
        {
            "run_id": "r-1",
            "status": "completed",
            "input_tokens": "1",
            "output_tokens": "2",
            "total_tokens": "3",
            "messages": "[]",
            "events": "[]",
            "metrics": "{}",
            "metadata": "{}",
        },
        change={"content": "Done."},
        references=lambda o: {"session": make_session(o).pk},
    ),
    Message: Case(
        lambda o: make_message(o, external_id=CANARY, text=CANARY),
        {"role": "user", "text": "Hello", "metadata": "{}"},
        change={"text": "Good morning"},
        references=lambda o: {"session": make_session(o).pk},
    ),
}
