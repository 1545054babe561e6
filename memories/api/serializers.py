"""Shapes of agents, blocks, tools, memories and their history."""

import struct
from typing import Any

from django.db.models import Value
from django.db.models.functions import Cast
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from accounts.api.fields import (
    JsonObject,
    KeyFilter,
    Real,
    ReferenceField,
    ReferenceFilter,
    TextBytes,
)
from accounts.api.shapes import (
    KEPT_BY_SERVER,
    DatedSerializer,
    ListQuery,
    RecordSerializer,
    Strict,
)
from accounts.models import User
from accounts.organization_settings import language_of
from agentmem_site.db.fields import RealField
from memories.bulk import NO_VECTOR, halves
from memories.models import (
    EMBEDDING_DIM,
    MAX_CONTENT_BYTES,
    MAX_CONTEXT_BYTES,
    Agent,
    Block,
    Memory,
    MemoryHistory,
    Tool,
)


class AgentSerializer(RecordSerializer):
    class Meta:
        model = Agent
        fields = [
            "id",
            "organization_id",
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
            *KEPT_BY_SERVER,
        ]


class AgentQuery(ListQuery):
    external_id = KeyFilter()
    agent_type = serializers.CharField(required=False)
    state = serializers.CharField(required=False)


class BlockSerializer(RecordSerializer):
    user_id = ReferenceField(User, source="user", required=False, allow_null=True)

    class Meta:
        model = Block
        fields = [
            "id",
            "organization_id",
            "external_id",
            "user_id",
            "label",
            "value",
            "limit",
            "description",
            "is_template",
            "template_name",
            "read_only",
            "version",
            "metadata",
            *KEPT_BY_SERVER,
        ]
        extra_kwargs = {"limit": {"min_value": 1, "help_text": "Characters of `value`, at most."}}


class BlockQuery(ListQuery):
    external_id = KeyFilter()
    user_id = ReferenceFilter(User)
    label: Any = serializers.CharField(required=False)
    is_template = serializers.BooleanField(required=False)


class ToolSerializer(RecordSerializer):
    class Meta:
        model = Tool
        fields = [
            "id",
            "organization_id",
            "name",
            "description",
            "json_schema",
            "source_type",
            "source_code",
            "tags",
            "metadata",
            *KEPT_BY_SERVER,
        ]
        extra_kwargs = {"source_code": {"help_text": "Stored and shown, never run."}}


class ToolQuery(ListQuery):
    name = KeyFilter()
    source_type = serializers.ChoiceField(Tool.SourceType.choices, required=False)
    tag = serializers.CharField(source="tags__contains", required=False)

    def validate_tag(self, tag: str) -> list[str]:
        return [tag]


class AttachBlock(Strict):
    block_id = ReferenceField(Block, help_text="uuid or external_id")


class AttachTool(Strict):
    tool_id = ReferenceField(Tool, key="name", help_text="uuid or name")


@extend_schema_field({"type": "string", "description": "SHA-256 of speaker and content, in hex."})
class Hex(serializers.Field[Any, Any, Any, Any]):
    def to_representation(self, value: Any) -> str:
        return bytes(value).hex()


@extend_schema_field(
    {
        "oneOf": [
            {
                "type": "array",
                "items": {"type": "number"},
                "minItems": EMBEDDING_DIM,
                "maxItems": EMBEDDING_DIM,
            },
            {"type": "string", "description": "base64 of little-endian float32"},
        ],
        "nullable": True,
    }
)
class EmbeddingField(serializers.Field[Any, Any, Any, Any]):
    """The numbers as they are stored, in half precision."""

    def to_internal_value(self, data: Any) -> Any:
        are_numbers = isinstance(data, list) and all(type(x) in (int, float) for x in data)
        try:
            if not are_numbers and not isinstance(data, str):
                raise ValueError(NO_VECTOR)
            stored = halves(data)
        except ValueError as error:
            raise serializers.ValidationError(str(error), code="invalid_vector") from error
        return list(struct.unpack(f">{EMBEDDING_DIM}e", stored))


class MemorySerializer(DatedSerializer):
    kept_by_put = (*DatedSerializer.kept_by_put, "embedding")
    moving = ("access_count", "last_accessed", "embedding_state", "embedding_model")

    user_id = ReferenceField(User, source="user", required=False, allow_null=True)
    agent_id = ReferenceField(Agent, source="agent", required=False, allow_null=True)
    content = TextBytes(max_bytes=MAX_CONTENT_BYTES)
    context: Any = TextBytes(
        max_bytes=MAX_CONTEXT_BYTES,
        required=False,
        allow_null=True,
        allow_blank=True,
        help_text="What was said just before. Searched by keyword, not embedded.",
    )
    hash = Hex(read_only=True)
    importance = Real(required=False, min_value=0, max_value=1)
    embedding = EmbeddingField(
        write_only=True,
        required=False,
        allow_null=True,
        help_text="By default encoded by the server.",
    )

    class Meta:
        model = Memory
        fields = [
            "id",
            "organization_id",
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
            "access_count",
            "last_accessed",
            "expires_at",
            "version",
            "embedding",
            "embedding_state",
            "embedding_model",
            "metadata",
            *KEPT_BY_SERVER,
        ]
        extra_kwargs = {
            "session_id": {"help_text": "The session's own key; the session need not exist."},
            "speaker": {"help_text": "Who said it. Part of what the memory is, and embedded."},
        }

    def validate_content(self, content: str) -> str:
        if not content.strip():
            raise serializers.ValidationError("This field may not be blank.", code="blank")
        return content

    def validate(self, values: dict[str, Any]) -> dict[str, Any]:
        if self.instance is None:
            return values
        if "embedding" in values:
            raise serializers.ValidationError(
                {"embedding": "It can only be given with a new memory; changes are re-embedded."},
                code="fixed",
            )
        return values


EXPIRED = ["only", "include"]
EXPIRED_HELP = "`only`: memories past their `expires_at`; `include`: those too."


class MemoryQuery(ListQuery):
    external_id = KeyFilter()
    user_id = ReferenceFilter(User)
    agent_id = ReferenceFilter(Agent)
    session_id = KeyFilter()
    memory_type = serializers.ChoiceField(Memory.Type.choices, required=False)
    scope = serializers.ChoiceField(Memory.Scope.choices, required=False)
    level = serializers.ChoiceField(Memory.Level.choices, required=False)
    importance_min = Real(source="importance__gte", required=False, min_value=0, max_value=1)
    importance_max = Real(source="importance__lte", required=False, min_value=0, max_value=1)
    expired = serializers.ChoiceField(
        EXPIRED, required=False, help_text=f"{EXPIRED_HELP} By default they are excluded."
    )
    q = serializers.CharField(
        required=False,
        help_text='Full-text search: words, "a phrase", or, -not. Newest first, not ranked.',
    )

    def validate_importance_min(self, value: float) -> Any:
        return Cast(Value(value), RealField())  # 0.1 as a real is not 0.1 as a double

    validate_importance_max = validate_importance_min

    @property
    def _language(self) -> str:
        return language_of(self.context["organization"].settings)

    def filter_rows(self, rows: Any) -> Any:
        words = self.validated_data.pop("q", None)
        expired = self.validated_data.pop("expired", None)
        rows = super().filter_rows(rows).by_expiry(expired)
        return rows if words is None else rows.matching(words, languages=[self._language])


class MemoryHistorySerializer(RecordSerializer):
    metadata = JsonObject(source="memory_metadata", read_only=True)

    class Meta:
        model = MemoryHistory
        fields = [
            "id",
            "version",
            "change_type",
            "reason",
            "content",
            "metadata",
            "importance",
            "changed_by_id",
            "created_at",
        ]
        read_only_fields = fields

    organization_id = None
