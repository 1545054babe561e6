"""How the bulk loader loads this app's resources."""

from typing import Annotated, Any

import msgspec
from django.db import models
from msgspec import Meta, Raw

from accounts.bulk import USER
from agentmem_site.bulk.spec import (
    ABSENT,
    Children,
    Column,
    Key,
    KeyText,
    Line,
    LoadSpec,
    Moment,
    Name,
    Reference,
    json_object,
)
from memories.bulk import AGENT
from sessions.models import Message, Run, Session

MAX_TOKENS = 2**63 - 1
Tokens = Annotated[int, Meta(ge=0, le=MAX_TOKENS)]


class _Tokens(msgspec.Struct):
    """The counts that are copied from a run's metrics to columns."""

    input_tokens: Any = 0
    output_tokens: Any = 0
    total_tokens: Any = 0


_tokens = msgspec.json.Decoder(_Tokens)


class RunLine(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, gc=False):
    run_id: KeyText
    status: Run.Status | None = None
    started_at: Moment | None = None
    completed_at: Moment | None = None
    cancellation_reason: str | None = None
    model: Name | None = None
    content: str | None = None
    messages: Raw = ABSENT
    events: Raw = ABSENT
    metrics: Raw = ABSENT
    metadata: Raw = ABSENT
    position: int | None = None  # set by the session: the index of the run
    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    total_tokens: Tokens | None = None

    def __post_init__(self) -> None:
        raw = bytes(self.metrics)
        if raw.startswith(b"{"):
            counts = _tokens.decode(raw)
            self.input_tokens = _count(counts.input_tokens)
            self.output_tokens = _count(counts.output_tokens)
            self.total_tokens = _count(counts.total_tokens)


class RestoredRunLine(RunLine, kw_only=True):
    created_at: Moment | None = None
    updated_at: Moment | None = None

    def __post_init__(self) -> None:
        """Keeps the exported token counts, whatever the metrics say."""


def _count(value: Any) -> int:
    """A number of tokens; 0 for other values (some producers write lists)."""
    return value if type(value) is int and 0 <= value <= MAX_TOKENS else 0


RUNS = LoadSpec(
    resource="runs",
    model=Run,
    line=RunLine,
    columns=[
        "run_id",
        "position",
        "status",
        "started_at",
        "completed_at",
        "cancellation_reason",
        "model",
        "content",
        "messages",
        "events",
        "metrics",
        "input_tokens",
        "output_tokens",
        "total_tokens",
        "metadata",
    ],
    keys=[Key(("session_id", "run_id"))],
    parent_column="session_id",
    restored_line=RestoredRunLine,
)


class SessionLine(Line):
    session_id: KeyText
    agent_id: KeyText | None = None
    user_id: KeyText | None = None
    team_id: KeyText | None = None
    workflow_id: KeyText | None = None
    name: Name | None = None
    state: Raw = ABSENT
    agent_data: Raw = ABSENT
    summary: Raw = ABSENT
    runs: list[RunLine] | None = None

    def __post_init__(self) -> None:
        if self.runs is None:
            self.runs = []
        for position, run in enumerate(self.runs):
            run.position = position


class RestoredSessionLine(SessionLine, kw_only=True):
    """A long session has several lines, each with some of its runs, which have their positions."""

    def __post_init__(self) -> None:
        self.runs = self.runs or []


SESSIONS = LoadSpec(
    resource="sessions",
    model=Session,
    line=SessionLine,
    columns=[
        "session_id",
        "agent_id",
        "user_id",
        "team_id",
        "workflow_id",
        "name",
        "state",
        "agent_data",
        Column("summary", json_object),
        "metadata",
    ],
    keys=[Key(("session_id",))],
    references=[USER, AGENT],
    children=Children("runs", RUNS),
    restored_line=RestoredSessionLine,
)


class SentRole(models.TextChoices):
    """The roles of a message, with the names that others have for them."""

    USER = "user"
    ASSISTANT = "assistant"
    SYSTEM = "system"
    TOOL = "tool"
    DEVELOPER = "developer"
    FUNCTION = "function"


OTHER_ROLES = {"developer": "system", "function": "tool"}


class MessageLine(Line):
    external_id: KeyText
    role: SentRole
    session_id: KeyText | None = None
    run_id: KeyText | None = None
    agent_id: KeyText | None = None
    user_id: KeyText | None = None
    text: str | None = None
    content: Raw = ABSENT
    model: Name | None = None
    name: Name | None = None
    tool_calls: Raw = ABSENT
    tool_call_id: Name | None = None
    tool_returns: Raw = ABSENT
    step_id: Name | None = None
    otid: Name | None = None
    group_id: Name | None = None
    sender_id: Name | None = None

    def __post_init__(self) -> None:
        if self.role in OTHER_ROLES:
            self.metadata = _with_role(bytes(self.metadata), self.role)
            self.role = SentRole(OTHER_ROLES[self.role])


def _with_role(metadata: bytes, role: str) -> Raw:
    if metadata in (b"", b"null"):
        metadata = b"{}"
    if not metadata.startswith(b"{"):
        return Raw(metadata)  # (refused as the column is encoded)
    named = {"role": Raw(msgspec.json.encode(role))}
    return Raw(msgspec.json.encode(named | msgspec.json.decode(metadata, type=dict[str, Raw])))


MESSAGES = LoadSpec(
    resource="messages",
    model=Message,
    line=MessageLine,
    columns=[
        "external_id",
        "session_id",
        "run_id",
        "agent_id",
        "user_id",
        "role",
        "text",
        "content",
        "model",
        "name",
        "tool_calls",
        "tool_call_id",
        "tool_returns",
        "step_id",
        "otid",
        "group_id",
        "sender_id",
        "metadata",
    ],
    keys=[Key(("external_id",))],
    grouped_by=["session_id", "user_id"],
    references=[
        USER,
        AGENT,
        Reference("session_id", Session, key="session_id"),
        Reference("run_id", Run, key="run_id", within="session_id", creates=False),
    ],
)
