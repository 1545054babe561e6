"""Plain makers: each makes one row with sensible values, through the services."""

from itertools import count
from typing import Any

from accounts.actors import Actor
from accounts.models import LoadPart, Member, Organization, User
from accounts.roles import ALL_PERMISSIONS
from accounts.services.keys import issue_key
from accounts.services.organizations import members, organizations
from accounts.services.users import users
from accounts.tenancy import platform, tenant
from memories.models import EMBEDDING_DIM, Agent, Block, CachedVector, EmbedVisit, Memory, Tool
from memories.services.agents import agents, blocks, tools
from memories.services.memories import memories
from sessions.models import Message, Run, Session
from sessions.services.conversations import append_run, messages, sessions

TESTER = Actor(kind="system", name="tester", permissions=frozenset(ALL_PERMISSIONS))
_number = count(1)


def make_organization(slug: str) -> Organization:
    with platform():
        return organizations.create(actor=TESTER, values={"name": slug.title(), "slug": slug})


def make_member(organization: Organization, name: str, role: str = "admin") -> Member:
    values = {
        "email": f"{name}@{organization.slug}.example",
        "name": name.title(),
        "role": role,
        "password": "correct horse battery",
    }
    with tenant(organization):
        return members.create(organization=organization, actor=TESTER, values=values)


def make_key(organization: Organization, scopes: Any = ALL_PERMISSIONS) -> str:
    with tenant(organization):
        _, secret = issue_key(organization=organization, actor=TESTER, name="key", scopes=scopes)
    return secret


def _make(records: Any, organization: Organization, defaults: dict[str, Any], over: Any) -> Any:
    with tenant(organization):
        return records.create(organization=organization, actor=TESTER, values={**defaults, **over})


def make_user(organization: Organization, **over: Any) -> User:
    n = next(_number)
    return _make(users, organization, {"external_id": f"user-{n}", "name": f"User {n}"}, over)


def make_agent(organization: Organization, **over: Any) -> Agent:
    n = next(_number)
    return _make(agents, organization, {"external_id": f"agent-{n}", "name": f"Agent {n}"}, over)


def make_block(organization: Organization, **over: Any) -> Block:
    defaults = {"label": f"label-{next(_number)}", "value": "I am helpful."}
    return _make(blocks, organization, defaults, over)


def make_tool(organization: Organization, **over: Any) -> Tool:
    return _make(tools, organization, {"name": f"tool-{next(_number)}"}, over)


def make_memory(organization: Organization, **over: Any) -> Memory:
    return _make(memories, organization, {"content": f"Fact number {next(_number)}."}, over)


def make_cached_vector(organization: Organization, **over: Any) -> CachedVector:
    values = {"encoder": "test", "hash": bytes([next(_number) % 256]) * 32}
    vector = [1.0] + [0.0] * (EMBEDDING_DIM - 1)
    with tenant(organization):
        return CachedVector.objects.create(
            **{"organization": organization, "embedding": vector, **values, **over}
        )


def make_embed_visit(organization: Organization, **over: Any) -> EmbedVisit:
    with tenant(organization):
        return EmbedVisit.objects.create(**{"organization": organization, **over})


def make_load_part(organization: Organization, **over: Any) -> LoadPart:
    values = {"job": f"job-{next(_number)}", "part": 0, "parts": 1, "resource": "users"}
    with tenant(organization):
        return LoadPart.objects.create(**{"organization": organization, **values, **over})


def make_session(organization: Organization, **over: Any) -> Session:
    return _make(sessions, organization, {"session_id": f"session-{next(_number)}"}, over)


def make_run(session: Session, **over: Any) -> Run:
    values = {"run_id": f"run-{next(_number)}", "status": "completed", **over}
    with tenant(session.organization_id):
        return append_run(session, organization=session.organization, actor=TESTER, values=values)


def make_message(organization: Organization, **over: Any) -> Message:
    return _make(messages, organization, {"role": "user", "text": "Hello!"}, over)
