"""Agents with their blocks and tools, and memories with their history."""

import hashlib
import unicodedata

from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import GinIndex
from django.contrib.postgres.search import SearchConfig, SearchVector, SearchVectorField
from django.db import models
from django.db.models import Case, F, Func, Q, Value, When
from django.db.models.lookups import Exact, LessThanOrEqual
from pgvector.django import HalfVectorField, HnswIndex

from accounts.models import User
from accounts.organization_settings import DEFAULT_LANGUAGE, LANGUAGES
from accounts.tenancy import LoadedModel, TenantModel
from agentmem_site.db.fields import KeyField, RealField, TenantForeignKey
from memories.querysets import MemoryManager

EMBEDDING_DIM = 384
MAX_CONTENT_BYTES = 256 * 1024
MAX_CONTEXT_BYTES = 64 * 1024
DEFAULT_BLOCK_LIMIT = 2000
BLOCK_LABEL_UNIQUE = "memories_agentblock_label_unique"
MEMORY_CONTENT_UNIQUE = "memories_memory_content_unique"


def _length(column: str, function: str) -> Func:
    return Func(column, function=function, output_field=models.IntegerField())


def _document() -> SearchVector:
    """The full-text search document of a memory, in the row's language.

    Each configuration is a constant: a cast of the column would not be immutable, and a column of
    type regconfig would prevent `pg_upgrade`.
    """
    cases = [When(language=name, then=SearchConfig(Value(name))) for name in LANGUAGES]
    config = Case(*cases, default=SearchConfig(Value("simple")))
    return SearchVector("speaker", "content", "context", config=config)


class Agent(LoadedModel):
    """An AI agent: its instructions and configuration, its blocks, tools and conversations."""

    auto_create_key = "external_id"

    external_id = KeyField(null=True, blank=True)
    name = models.CharField(max_length=255, blank=True, default="")
    agent_type = models.CharField(max_length=64, blank=True, default="")
    description = models.TextField(blank=True, default="")
    system = models.TextField("system prompt", blank=True, default="")
    topic = models.CharField(max_length=255, blank=True, default="")
    message_ids = models.JSONField(default=list, blank=True)
    llm_config = models.JSONField("model configuration", default=dict, blank=True)
    embedding_config = models.JSONField("embedding configuration", default=dict, blank=True)
    tool_rules = models.JSONField(default=list, blank=True)
    mcp_tools = models.JSONField("MCP tools", default=list, blank=True)
    state = models.CharField(max_length=32, default="idle")
    last_active_at = models.DateTimeField(null=True, blank=True)
    error_message = models.TextField(blank=True, default="")

    class Meta:
        constraints = [
            *TenantModel.Meta.constraints,
            models.UniqueConstraint(
                fields=["organization", "external_id"], name="memories_agent_external_id_unique"
            ),
        ]
        indexes = [*TenantModel.Meta.indexes]

    def __str__(self) -> str:
        return self.name or self.external_id or str(self.pk)


class Block(LoadedModel):
    """A labelled text in an agent's prompt: a persona, or facts about a person."""

    user = TenantForeignKey(User, models.CASCADE, null=True, blank=True, related_name="blocks")
    external_id = KeyField(null=True, blank=True)
    label = models.CharField(max_length=50)
    value = models.TextField(blank=True, default="")
    limit = models.IntegerField(default=DEFAULT_BLOCK_LIMIT)  # characters
    description = models.TextField(blank=True, default="")
    is_template = models.BooleanField(default=False)
    template_name = models.CharField(max_length=255, blank=True, default="")
    read_only = models.BooleanField(default=False)
    version = models.IntegerField(default=1, editable=False)

    class Meta:
        constraints = [
            *TenantModel.Meta.constraints,
            models.UniqueConstraint(
                fields=["organization", "external_id"], name="memories_block_external_id_unique"
            ),
            models.CheckConstraint(
                name="memories_block_value_within_limit",
                condition=LessThanOrEqual(_length("value", "char_length"), F("limit")),
                violation_error_message="The value is longer than the block's limit.",
            ),
            models.CheckConstraint(name="memories_block_label_given", condition=~Q(label="")),
        ]
        indexes = [
            *TenantModel.Meta.indexes,
            # A user's blocks, and their purge.
            models.Index(fields=["organization", "user"], name="memories_block_user"),
        ]

    def __str__(self) -> str:
        return f"{self.label}: {self.value[:40]}"


class AgentBlock(TenantModel):
    """This block is part of this agent's prompt, under the block's label."""

    agent = TenantForeignKey(Agent, models.CASCADE, related_name="block_links")
    block = TenantForeignKey(Block, models.CASCADE, related_name="agent_links")
    block_label = models.CharField(max_length=50, editable=False)

    class Meta:
        verbose_name = "attached block"
        constraints = [
            *TenantModel.Meta.constraints,
            models.UniqueConstraint(
                fields=["organization", "agent", "block_label"],
                condition=Q(is_deleted=False),
                name=BLOCK_LABEL_UNIQUE,
                violation_error_message="The agent has a block of this label already.",
            ),
        ]
        indexes = [
            *TenantModel.Meta.indexes,
            # A block's agents; the block's purge.
            models.Index(fields=["organization", "block"], name="memories_agentblock_block"),
            # An agent's links, also those in the trash: its restore, its purge.
            models.Index(fields=["organization", "agent"], name="memories_agentblock_agent"),
        ]

    def __str__(self) -> str:
        return self.block_label


class Tool(LoadedModel):
    """A tool that agents can call. Its source is stored and shown, never run."""

    class SourceType(models.TextChoices):
        PYTHON = "python", "Python"
        JSON = "json", "JSON schema only"
        MCP = "mcp", "MCP server"

    name = KeyField()
    description = models.TextField(blank=True, default="")
    json_schema = models.JSONField("JSON schema", default=dict, blank=True)
    source_type = models.CharField(
        max_length=16, choices=SourceType.choices, default=SourceType.PYTHON
    )
    source_code = models.TextField(blank=True, default="")
    tags = ArrayField(models.CharField(max_length=64), default=list, blank=True)

    class Meta:
        constraints = [
            *TenantModel.Meta.constraints,
            models.UniqueConstraint(
                fields=["organization", "name"], name="memories_tool_name_unique"
            ),
            models.CheckConstraint(name="memories_tool_name_given", condition=~Q(name="")),
            models.CheckConstraint(
                name="memories_tool_source_type_known",
                condition=Q(source_type__in=["python", "json", "mcp"]),
            ),
        ]
        indexes = [*TenantModel.Meta.indexes]

    def __str__(self) -> str:
        return self.name


class AgentTool(TenantModel):
    """This agent may call this tool."""

    agent = TenantForeignKey(Agent, models.CASCADE, related_name="tool_links")
    tool = TenantForeignKey(Tool, models.CASCADE, related_name="agent_links")

    class Meta:
        verbose_name = "attached tool"
        constraints = [
            *TenantModel.Meta.constraints,
            models.UniqueConstraint(
                fields=["organization", "agent", "tool"],
                condition=Q(is_deleted=False),
                name="memories_agenttool_unique",
                violation_error_message="The agent has this tool already.",
            ),
        ]
        indexes = [
            *TenantModel.Meta.indexes,
            # A tool's agents; the tool's purge.
            models.Index(fields=["organization", "tool"], name="memories_agenttool_tool"),
            # An agent's links, also those in the trash: its restore, its purge.
            models.Index(fields=["organization", "agent"], name="memories_agenttool_agent"),
        ]

    def __str__(self) -> str:
        return str(self.tool)


class Memory(LoadedModel):
    """Something an agent learned: a text, with its speaker and what was said just before."""

    class Type(models.TextChoices):
        EPISODIC = "episodic", "Episodic"
        SEMANTIC = "semantic", "Semantic"
        PROCEDURAL = "procedural", "Procedural"
        WORKING = "working", "Working"
        CORE = "core", "Core"
        RESOURCE = "resource", "Resource"
        KNOWLEDGE = "knowledge", "Knowledge"
        CONTEXTUAL = "contextual", "Contextual"

    class Scope(models.TextChoices):
        ORGANIZATION = "organization", "Organization"
        AGENT = "agent", "Agent"
        USER = "user", "User"
        SESSION = "session", "Session"

    class Level(models.TextChoices):
        STRATEGIC = "strategic", "Strategic"
        TACTICAL = "tactical", "Tactical"
        OPERATIONAL = "operational", "Operational"

    class EmbeddingState(models.TextChoices):
        PENDING = "pending", "Pending"
        READY = "ready", "Ready"
        FAILED = "failed", "Failed"
        # The encoder knows nearly none of its words: it is found by keyword only.
        UNREADABLE = "unreadable", "Unreadable"

    external_id = KeyField(null=True, blank=True)
    user = TenantForeignKey(User, models.CASCADE, null=True, blank=True, related_name="memories")
    agent = TenantForeignKey(Agent, models.CASCADE, null=True, blank=True, related_name="memories")
    # The session's natural key: a memory outlives its session.
    session_id = KeyField(null=True, blank=True)
    content = models.TextField()
    speaker = models.CharField(max_length=255, null=True, blank=True)
    context = models.TextField(null=True, blank=True)  # what was said just before
    hash = models.BinaryField(max_length=32, editable=False)  # content_hash()
    memory_type = models.CharField(max_length=16, choices=Type.choices, default=Type.SEMANTIC)
    scope = models.CharField(max_length=16, choices=Scope.choices, default=Scope.USER)
    level = models.CharField(max_length=16, choices=Level.choices, default=Level.OPERATIONAL)
    importance = RealField(default=0.5)
    score = RealField(null=True, blank=True)
    access_count = models.IntegerField(default=0, editable=False)
    last_accessed = models.DateTimeField(null=True, editable=False)
    expires_at = models.DateTimeField(null=True, blank=True)
    version = models.IntegerField(default=1, editable=False)
    embedding = HalfVectorField(dimensions=EMBEDDING_DIM, null=True, editable=False)
    # The encoder that made the vector, or that could not read the text.
    embedding_model = models.CharField(max_length=64, blank=True, default="", editable=False)
    embedding_state = models.CharField(
        max_length=16,
        choices=EmbeddingState.choices,
        default=EmbeddingState.PENDING,
        editable=False,
    )
    embedding_attempts = models.SmallIntegerField(default=0, editable=False)
    embedding_error = models.TextField(blank=True, default="", editable=False)
    # Until then it is leased to a worker, or waits for its next attempt.
    embedding_due_at = models.DateTimeField(null=True, editable=False)
    # In the HNSW index: the worker adds the memories of large organizations to it, so that an
    # INSERT never waits for the graph (docs/decisions/0006).
    is_indexed = models.BooleanField(default=False, editable=False)
    # The text search configuration of `document`: the organization's, when the row was written.
    language = models.CharField(max_length=32, default=DEFAULT_LANGUAGE, editable=False)
    document = models.GeneratedField(
        expression=_document(),
        output_field=SearchVectorField(),
        db_persist=True,
    )

    objects = MemoryManager()  # type: ignore[misc]

    class Meta:
        verbose_name_plural = "memories"
        constraints = [
            *TenantModel.Meta.constraints,
            models.UniqueConstraint(
                fields=["organization", "external_id"], name="memories_memory_external_id_unique"
            ),
            # Without an external_id the content is the key, unique among live rows. The hash comes
            # second, so that the loader's join finds a row by (organization, hash).
            models.UniqueConstraint(
                fields=["organization", "hash", "agent", "user"],
                condition=Q(external_id__isnull=True, is_deleted=False),
                nulls_distinct=False,
                name=MEMORY_CONTENT_UNIQUE,
                violation_error_message="A memory of this content exists already.",
            ),
            models.CheckConstraint(name="memories_memory_content_given", condition=~Q(content="")),
            models.CheckConstraint(
                name="memories_memory_content_bytes",
                condition=LessThanOrEqual(
                    _length("content", "octet_length"), Value(MAX_CONTENT_BYTES)
                ),
                violation_error_message="The content is longer than 256 KiB.",
            ),
            models.CheckConstraint(
                name="memories_memory_context_bytes",
                condition=LessThanOrEqual(
                    _length("context", "octet_length"), Value(MAX_CONTEXT_BYTES)
                ),
                violation_error_message="The context is longer than 64 KiB.",
            ),
            models.CheckConstraint(
                name="memories_memory_importance_range",
                condition=Q(importance__gte=0.0, importance__lte=1.0),
                violation_error_message="Importance is between 0 and 1.",
            ),
            models.CheckConstraint(
                name="memories_memory_kind_known",
                condition=Q(
                    memory_type__in=[
                        "episodic",
                        "semantic",
                        "procedural",
                        "working",
                        "core",
                        "resource",
                        "knowledge",
                        "contextual",
                    ],
                    scope__in=["organization", "agent", "user", "session"],
                    level__in=["strategic", "tactical", "operational"],
                ),
            ),
            models.CheckConstraint(
                name="memories_memory_hash_length",
                condition=Exact(_length("hash", "octet_length"), Value(32)),
            ),
            # A memory has a vector exactly when its state is `ready`.
            models.CheckConstraint(
                name="memories_memory_embedding_state",
                condition=Q(embedding_state="ready", embedding__isnull=False)
                | Q(
                    embedding_state__in=["pending", "failed", "unreadable"],
                    embedding__isnull=True,
                ),
            ),
        ]
        indexes = [
            *TenantModel.Meta.indexes,
            # A user's or an agent's memories, newest first; exact search of a small slice.
            models.Index(
                fields=["organization", "user", "created_at"], name="memories_memory_user"
            ),
            models.Index(
                fields=["organization", "agent", "created_at"], name="memories_memory_agent"
            ),
            # A session's memories.
            models.Index(
                fields=["organization", "session_id"],
                condition=Q(session_id__isnull=False),
                name="memories_memory_session",
            ),
            # Full-text search.
            GinIndex(fields=["document"], name="memories_memory_document"),
            # Search by meaning in a large organization.
            HnswIndex(
                fields=["embedding"],
                opclasses=["halfvec_cosine_ops"],
                m=16,
                ef_construction=64,
                condition=Q(is_indexed=True, is_deleted=False),
                name="memories_memory_embedding",
            ),
            # Vectors by encoder: those that are not in the HNSW index yet, or of another encoder.
            models.Index(
                fields=["organization", "embedding_model", "is_indexed"],
                condition=Q(embedding_state="ready", is_deleted=False),
                name="memories_memory_vectors",
            ),
            # The worker: pending memories, oldest first.
            models.Index(
                fields=["organization", "created_at"],
                condition=Q(embedding_state="pending", is_deleted=False),
                name="memories_memory_pending",
            ),
            # Memories without a vector that are not pending: counts, re-embedding.
            models.Index(
                fields=["organization", "embedding_state", "embedding_model"],
                condition=Q(embedding_state__in=["failed", "unreadable"], is_deleted=False),
                name="memories_memory_without",
            ),
            # The sweep: expired memories.
            models.Index(
                fields=["organization", "expires_at"],
                condition=Q(expires_at__isnull=False, is_deleted=False),
                name="memories_memory_expires",
            ),
        ]

    def __str__(self) -> str:
        return self.content[:80]


def content_hash(speaker: str | None, content: str) -> bytes:
    """SHA-256 of the speaker and the content, stripped and in Unicode NFC.

    Neither can contain the zero byte between them.
    """
    text = unicodedata.normalize("NFC", content.strip())
    return hashlib.sha256(f"{speaker or ''}\0{text}".encode()).digest()


def embedded_text(speaker: str | None, content: str) -> str:
    """The text to embed: "speaker: content". Equal `content_hash`es have equal texts."""
    text = unicodedata.normalize("NFC", content.strip())
    return f"{speaker}: {text}" if speaker else text


class CachedVector(TenantModel):
    """The vector of a speaker's text, so that the same text is never encoded twice.

    Each organization has its own cache: a shared one would reveal what others store.
    """

    encoder = models.CharField(max_length=64)
    hash = models.BinaryField(max_length=32)  # content_hash()
    embedding = HalfVectorField(dimensions=EMBEDDING_DIM)

    has_trash = False

    class Meta:
        constraints = [
            *TenantModel.Meta.constraints,
            models.UniqueConstraint(
                fields=["organization", "hash", "encoder"], name="memories_cachedvector_unique"
            ),
        ]
        indexes = [*TenantModel.Meta.indexes]

    def __str__(self) -> str:
        return f"{self.encoder} {bytes(self.hash).hex()[:12]}"


class EmbedVisit(TenantModel):
    """When a worker last came for the organization's pending memories (`updated_at`).

    A row, so that every server sees it, through any pooler. The age of the visit reveals a worker
    that was killed.
    """

    is_failing = models.BooleanField(default=False)  # the encoder could not be used

    has_trash = False

    class Meta:
        constraints = [
            *TenantModel.Meta.constraints,
            models.UniqueConstraint(
                fields=["organization"], name="memories_embedvisit_organization_unique"
            ),
        ]
        indexes = [*TenantModel.Meta.indexes]

    def __str__(self) -> str:
        return f"{self.updated_at:%Y-%m-%d %H:%M:%S}"


class MemoryHistory(TenantModel):
    """One version of a memory, and the change that made it. Rows are never updated."""

    class Change(models.TextChoices):
        CREATED = "created", "Created"
        UPDATED = "updated", "Updated"
        DELETED = "deleted", "Deleted"
        RESTORED = "restored", "Restored"
        MERGED = "merged", "Merged"

    memory = TenantForeignKey(Memory, models.CASCADE, related_name="history")
    version = models.IntegerField()
    change_type = models.CharField(max_length=16, choices=Change.choices)
    reason = models.CharField(max_length=255, blank=True, default="")
    content = models.TextField()
    memory_metadata = models.JSONField(default=dict)
    importance = RealField()
    changed_by_id = models.UUIDField(null=True)

    has_trash = False

    class Meta:
        verbose_name_plural = "memory history"
        constraints = [
            *TenantModel.Meta.constraints,
            models.CheckConstraint(
                name="memories_memoryhistory_change_known",
                condition=Q(
                    change_type__in=["created", "updated", "deleted", "restored", "merged"]
                ),
            ),
        ]
        indexes = [
            # A memory's history, newest first; its purge.
            models.Index(
                fields=["organization", "memory", "version"], name="memories_memoryhistory_memory"
            ),
        ]

    def __str__(self) -> str:
        return f"v{self.version} {self.change_type}"
