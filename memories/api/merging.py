"""`POST memories/{id}/merge`: merges two memories."""

from typing import Any

from drf_spectacular.utils import OpenApiExample, extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.api.fields import JsonObject, Real, ReferenceField, TextBytes
from accounts.api.shapes import Strict
from accounts.api.views import TenantViewSet
from accounts.roles import permission
from memories.api.serializers import MemorySerializer
from memories.models import MAX_CONTENT_BYTES, Memory
from memories.services.merging import MAX_REASON_LENGTH, merge_memories


class MergeBody(Strict):
    content = TextBytes(
        max_bytes=MAX_CONTENT_BYTES,
        required=False,
        help_text="The content of the merged memory; by default that of this one.",
    )
    importance = Real(
        required=False, min_value=0, max_value=1, help_text="By default the larger one."
    )
    metadata: Any = JsonObject(
        required=False,
        help_text="Replaces both; by default they are united, and keys of this one win.",
    )
    reason = serializers.CharField(
        required=False, max_length=MAX_REASON_LENGTH, help_text="For the history of both."
    )

    def get_fields(self) -> dict[str, Any]:
        other = ReferenceField(Memory, help_text="The memory to merge: uuid or external_id.")
        return {"with": other, **super().get_fields()}

    def validate_content(self, content: str) -> str:
        if not content.strip():
            raise serializers.ValidationError("This field may not be blank.", code="blank")
        return content


class MemoryMergeViewSet(TenantViewSet):
    tag = "Memories"
    model = Memory
    resource = "memory"
    also = (permission("memory", "delete"),)  # the other goes to the trash
    has_trash = False
    serializer_class = MemorySerializer
    body_class = MergeBody
    parent_model = Memory
    parent_kwarg = "memory_id"
    parent_field = "pk"

    @extend_schema(
        operation_id="memories_merge",
        request=MergeBody,
        responses=MemorySerializer,
        examples=[
            OpenApiExample(
                "Two facts in one sentence",
                request_only=True,
                value={
                    "with": "coffee-2",
                    "content": "Alice takes her coffee black, without sugar.",
                    "reason": "said twice",
                },
            )
        ],
    )
    @action(detail=False, methods=["post"])
    def merge(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Merge another memory into this one.

        This one gets a new version: united metadata, the larger importance, the earlier created_at,
        the access counts of both. The other goes to the trash. The history of each names the other.
        """
        kept = self.parent
        body = MergeBody(data=request.data, context=self.get_serializer_context())
        body.is_valid(raise_exception=True)
        values = dict(body.validated_data)
        other, reason = values.pop("with"), values.pop("reason", "")
        memory = merge_memories(kept, other, values=values, reason=reason, **self.by)
        return self.answered(memory)
