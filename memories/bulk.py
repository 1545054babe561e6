"""How the bulk loader loads this app's resources."""

from base64 import b64decode
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from django.db import connection
from msgspec import Meta, Raw
from psycopg import sql

from accounts.bulk import USER
from agentmem_site.bulk.spec import (
    ABSENT,
    Column,
    Expiry,
    Key,
    KeyText,
    Line,
    LineError,
    LoadSpec,
    Moment,
    Name,
    Reference,
)
from memories.embeddings import encoder_name
from memories.models import (
    DEFAULT_BLOCK_LIMIT,
    EMBEDDING_DIM,
    MAX_CONTENT_BYTES,
    MAX_CONTEXT_BYTES,
    Agent,
    AgentBlock,
    AgentTool,
    Block,
    Memory,
    Tool,
    content_hash,
)
from memories.querysets import WRITE_HISTORY

AGENT = Reference("agent_id", Agent)
Version = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class AgentLine(Line):
    external_id: KeyText
    name: Name | None = None
    agent_type: Annotated[str, Meta(max_length=64)] | None = None
    description: str | None = None
    system: str | None = None
    topic: Name | None = None
    message_ids: Raw = ABSENT
    llm_config: Raw = ABSENT
    embedding_config: Raw = ABSENT
    tool_rules: Raw = ABSENT
    mcp_tools: Raw = ABSENT
    state: Annotated[str, Meta(min_length=1, max_length=32)] | None = None
    last_active_at: Moment | None = None
    error_message: str | None = None


class RestoredAgentLine(AgentLine, kw_only=True):
    state: Annotated[str, Meta(max_length=32)] | None = None


AGENTS = LoadSpec(
    resource="agents",
    model=Agent,
    line=AgentLine,
    columns=[
        "external_id",
        "name",
        "agent_type",
        "description",
        "system",
        "topic",
        "message_ids",
        "llm_config",
        "embedding_config",
        "tool_rules",
        "mcp_tools",
        "state",
        "last_active_at",
        "error_message",
        "metadata",
    ],
    keys=[Key(("external_id",))],
    restored_line=RestoredAgentLine,
)


class BlockLine(Line):
    external_id: KeyText
    label: Annotated[str, Meta(min_length=1, max_length=50)]
    user_id: KeyText | None = None
    value: str | None = None
    limit: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    description: str | None = None
    is_template: bool | None = None
    template_name: Name | None = None
    read_only: bool | None = None

    def __post_init__(self) -> None:
        limit = DEFAULT_BLOCK_LIMIT if self.limit is None else self.limit
        length = len(self.value or "")
        if length > limit:
            raise ValueError(f"The value has {length} characters; its limit is {limit}") from (
                LineError("value_too_long", "value", f"{length} characters; the limit is {limit}")
            )


class RestoredBlockLine(BlockLine, kw_only=True):
    limit: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    version: Version | None = None


BLOCKS = LoadSpec(
    resource="blocks",
    model=Block,
    line=BlockLine,
    columns=[
        "external_id",
        "user_id",
        "label",
        "value",
        "limit",
        "description",
        "is_template",
        "template_name",
        "read_only",
        "metadata",
    ],
    keys=[Key(("external_id",))],
    references=[USER],
    server_columns={"version": "{old}.version + 1"},
    restored_line=RestoredBlockLine,
    restored_columns=["version"],
)


class ToolLine(Line):
    name: KeyText
    description: str | None = None
    json_schema: Raw = ABSENT
    source_type: Tool.SourceType | None = None
    source_code: str | None = None
    tags: list[Annotated[str, Meta(max_length=64)]] | None = None


TOOLS = LoadSpec(
    resource="tools",
    model=Tool,
    line=ToolLine,
    columns=[
        "name",
        "description",
        "json_schema",
        "source_type",
        "source_code",
        "tags",
        "metadata",
    ],
    keys=[Key(("name",))],
)


class AgentBlockLine(Line):
    agent_id: KeyText
    block_id: KeyText
    block_label: Annotated[str, Meta(min_length=1, max_length=50)]


AGENT_BLOCKS = LoadSpec(
    resource="agent-blocks",
    model=AgentBlock,
    line=AgentBlockLine,
    columns=["agent_id", "block_id", "block_label", "metadata"],
    keys=[Key(("agent_id", "block_label"), partial="NOT {row}is_deleted")],
    references=[AGENT, Reference("block_id", Block)],
)


class AgentToolLine(Line):
    agent_id: KeyText
    tool_id: KeyText


AGENT_TOOLS = LoadSpec(
    resource="agent-tools",
    model=AgentTool,
    line=AgentToolLine,
    columns=["agent_id", "tool_id", "metadata"],
    keys=[Key(("agent_id", "tool_id"), partial="NOT {row}is_deleted")],
    references=[AGENT, Reference("tool_id", Tool, key="name")],
)


class MemoryLine(Line):
    content: Annotated[str, Meta(min_length=1)]
    external_id: KeyText | None = None
    user_id: KeyText | None = None
    agent_id: KeyText | None = None
    session_id: KeyText | None = None
    speaker: Name | None = None
    context: str | None = None
    memory_type: Memory.Type | None = None
    scope: Memory.Scope | None = None
    level: Memory.Level | None = None
    importance: Annotated[float, Meta(ge=0, le=1)] | None = None
    score: float | None = None
    expires_at: Moment | None = None
    # Numbers, or base64 of little-endian float32; after decoding the result of `halves`.
    embedding: list[float] | str | None = None
    # The encoder of `embedding`; by default the server's own.
    embedding_model: Annotated[str, Meta(max_length=64)] | None = None

    def __post_init__(self) -> None:
        if not self.content.strip():
            raise ValueError from LineError("blank", "content", "This field may not be blank.")
        for name, text, limit in (
            ("content", self.content, MAX_CONTENT_BYTES),
            ("context", self.context, MAX_CONTEXT_BYTES),
        ):
            # (A character has at most four bytes, so most texts need not be encoded.)
            if text and len(text) * 4 > limit and len(text.encode()) > limit:
                raise ValueError from LineError(
                    "too_long", name, f"{len(text.encode()):,} bytes; the limit is {limit:,}"
                )
        if self.embedding is None:
            self.embedding_model = None
        else:
            self.set_vector(halves(self.embedding), self.embedding_model or encoder_name())

    def set_vector(self, vector: bytes | None, encoder: str) -> None:
        """None: the encoder cannot read the content."""
        self.embedding = vector  # type: ignore[assignment]
        self.embedding_model = encoder

    @property
    def hash(self) -> bytes:
        return content_hash(self.speaker, self.content)

    @property
    def embedding_state(self) -> str:
        if self.embedding is None:
            return "unreadable" if self.embedding_model else "pending"
        return "ready"


NO_VECTOR = "An embedding is an array of numbers, or base64 of little-endian float32."
_LARGEST_HALF = 65504.0


def halves(vector: Any) -> bytes:
    """A caller's vector as big-endian half-precision floats, from numbers or from base64 of
    little-endian float32 (an `encoding_format` of OpenAI's API).

    Raises: ValueError from LineError.
    """
    import numpy as np  # noqa: PLC0415  (a tenth of a second, at the start of every command)

    problem = ""
    numbers = np.empty(0, np.float32)
    try:
        if isinstance(vector, str):
            numbers = np.frombuffer(b64decode(vector, validate=True), "<f4")
        else:
            numbers = np.array(vector, np.float64)
    except ValueError:
        problem = NO_VECTOR
    halves_ = b""
    if not problem and numbers.shape != (EMBEDDING_DIM,):
        problem = f"{numbers.size} numbers are given; an embedding has {EMBEDDING_DIM}."
    # (A NaN is not less than anything.)
    elif not problem and not np.abs(numbers).max() <= _LARGEST_HALF:
        problem = "A number is outside -65504 to 65504, the range of half precision."
    elif not problem:
        rounded = numbers.astype(">f2")
        halves_ = rounded.tobytes()
        if not rounded.any():
            problem = "An embedding of only zeros has no direction."
    if problem:
        raise ValueError(problem) from LineError("invalid_vector", "embedding", problem)
    return halves_


def _write_history(
    changed: sql.Composable, *, organization_id: UUID, actor_id: UUID | None, now: datetime
) -> None:
    by = actor_id
    with connection.cursor() as cursor:
        cursor.execute(
            WRITE_HISTORY.format(changed=changed), [by, by, by, now, now, organization_id]
        )


SAID_AGAIN = "Said again after it had expired."  # in the history
# A vector stays as long as the embedded text does; a new one in the file replaces it.
_SAME_VECTOR = "{new}.embedding IS NULL AND {old}.hash = {new}.hash"
_KEPT = f"CASE WHEN {_SAME_VECTOR} THEN {{old}}.{{column}} ELSE {{new}}.{{column}} END"
_NEW_VECTOR = "({new}.embedding IS NOT NULL AND {old}.embedding IS DISTINCT FROM {new}.embedding)"


class RestoredMemoryLine(MemoryLine, kw_only=True):
    version: Version | None = None
    access_count: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    last_accessed: Moment | None = None
    language: Annotated[str, Meta(max_length=32)] | None = None
    embedding_state: Memory.EmbeddingState = Memory.EmbeddingState.PENDING
    embedding_attempts: Annotated[int, Meta(ge=0, le=2**15 - 1)] | None = None
    embedding_error: str | None = None

    def __post_init__(self) -> None:
        encoder = self.embedding_model
        MemoryLine.__post_init__(self)
        if self.embedding_state == Memory.EmbeddingState.UNREADABLE:
            self.embedding_model = encoder
        if (self.embedding is None) == (self.embedding_state == Memory.EmbeddingState.READY):
            raise ValueError from LineError(
                "invalid_value", "embedding_state", "It is `ready` with an embedding, else not"
            )


MEMORIES = LoadSpec(
    resource="memories",
    model=Memory,
    line=MemoryLine,
    columns=[
        "external_id",
        "user_id",
        "agent_id",
        "session_id",
        "content",
        "speaker",
        "context",
        "hash",
        "memory_type",
        "scope",
        "level",
        "importance",
        "score",
        "expires_at",
        Column("embedding", update=_KEPT, differs=_NEW_VECTOR),
        Column("embedding_model", update=_KEPT, differs=""),
        Column("embedding_state", update=_KEPT, differs=""),
        "metadata",
    ],
    keys=[
        Key(("external_id",)),
        Key(
            ("hash", "agent_id", "user_id"),
            partial="{row}external_id IS NULL AND NOT {row}is_deleted",
            has_nulls=True,
        ),
    ],
    references=[USER, AGENT],
    server_columns={
        "version": "{old}.version + 1",
        "embedding_attempts": _KEPT,
        "embedding_error": _KEPT,
        "embedding_due_at": _KEPT,
        "is_indexed": _KEPT,
    },
    journal=_write_history,
    expiry=Expiry("{row}expires_at <= {now}", SAID_AGAIN),
    restored_line=RestoredMemoryLine,
    restored_columns=[
        "version",
        "access_count",
        "last_accessed",
        "language",
        Column("embedding_attempts", update=_KEPT, differs=""),
        Column("embedding_error", update=_KEPT, differs=""),
    ],
)
