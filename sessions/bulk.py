"""What the bulk loader has to know of this app's resources."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw

from accounts.bulk import METADATA, USER
from agentmem_site.bulk import binary
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
    json_array,
    json_object,
    moment,
)
from memories.bulk import AGENT
from sessions.models import Message, Run, Session

MAX_TOKENS = 2**63 - 1
Tokens = Annotated[int, Meta(ge=0, le=MAX_TOKENS)]


class _Tokens(msgspec.Struct):
    """The counts that a run's metrics are asked for; whatever else they hold stays in them."""

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
    position: int | None = None  # set by the session: the place among its runs
    input_tokens: Tokens = 0
    output_tokens: Tokens = 0
    total_tokens: Tokens = 0

    def __post_init__(self) -> None:
        raw = bytes(self.metrics)
        if raw.startswith(b"{"):
            counts = _tokens.decode(raw)
            self.input_tokens = _count(counts.input_tokens)
            self.output_tokens = _count(counts.output_tokens)
            self.total_tokens = _count(counts.total_tokens)


def _count(value: Any) -> int:
    """A number of tokens; 0 for what is none (some producers give lists)."""
    return value if type(value) is int and 0 <= value <= MAX_TOKENS else 0


RUNS = LoadSpec(
    resource="runs",
    model=Run,
    line=RunLine,
    columns=[
        Column("run_id", binary.text),
        Column("position", binary.int4),
        Column("status", binary.text),
        Column("started_at", moment),
        Column("completed_at", moment),
        Column("cancellation_reason", binary.text),
        Column("model", binary.text),
        Column("content", binary.text),
        Column("messages", json_array),
        Column("events", json_array),
        Column("metrics", json_object),
        Column("input_tokens", binary.int8),
        Column("output_tokens", binary.int8),
        Column("total_tokens", binary.int8),
        METADATA,
    ],
    keys=[Key(("session_id", "run_id"))],
    parent_column="session_id",
)


class SessionLine(Line):
    session_id: KeyText
    agent_id: KeyText | None = None
    user_id: KeyText | None = None
    team_id: Name | None = None
    workflow_id: Name | None = None
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


SESSIONS = LoadSpec(
    resource="sessions",
    model=Session,
    line=SessionLine,
    columns=[
        Column("session_id", binary.text),
        Column("agent_id", binary.uuid),
        Column("user_id", binary.uuid),
        Column("team_id", binary.text),
        Column("workflow_id", binary.text),
        Column("name", binary.text),
        Column("state", json_object),
        Column("agent_data", json_object),
        Column("summary", json_object),
        METADATA,
    ],
    keys=[Key(("session_id",))],
    references=[USER, AGENT],
    children=Children("runs", RUNS),
)


class MessageLine(Line):
    external_id: KeyText
    role: Message.Role
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


MESSAGES = LoadSpec(
    resource="messages",
    model=Message,
    line=MessageLine,
    columns=[
        Column("external_id", binary.text),
        Column("session_id", binary.uuid),
        Column("run_id", binary.uuid),
        Column("agent_id", binary.uuid),
        Column("user_id", binary.uuid),
        Column("role", binary.text),
        Column("text", binary.text),
        Column("content", binary.jsonb),
        Column("model", binary.text),
        Column("name", binary.text),
        Column("tool_calls", binary.jsonb),
        Column("tool_call_id", binary.text),
        Column("tool_returns", binary.jsonb),
        Column("step_id", binary.text),
        Column("otid", binary.text),
        Column("group_id", binary.text),
        Column("sender_id", binary.text),
        METADATA,
    ],
    keys=[Key(("external_id",))],
    references=[
        USER,
        AGENT,
        Reference("session_id", Session, key="session_id"),
        Reference("run_id", Run, key="run_id", within="session_id", creates=False),
    ],
)
