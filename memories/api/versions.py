"""`GET memories/{id}/history/diff`: what changed between two versions."""

from typing import Any

from drf_spectacular.utils import extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.api.fields import JsonObject
from accounts.api.shapes import Query
from accounts.api.views import TenantViewSet
from memories.api.serializers import MemoryHistorySerializer
from memories.models import Memory, MemoryHistory
from memories.services.versions import diff_versions

_MAX_VERSION = 2**31 - 1


class DiffQuery(Query):
    to = serializers.IntegerField(
        required=False, min_value=1, max_value=_MAX_VERSION, help_text="The newest by default."
    )

    def get_fields(self) -> dict[str, Any]:
        before = serializers.IntegerField(
            required=False,
            min_value=1,
            max_value=_MAX_VERSION,
            help_text="By default the version before `to`.",
        )
        return {"from": before, **super().get_fields()}


class VersionSerializer(MemoryHistorySerializer):
    class Meta(MemoryHistorySerializer.Meta):
        fields = ["version", "change_type", "reason", "changed_by_id", "created_at"]
        read_only_fields = fields


_TEXT_DIFF = inline_serializer(
    "TextDiff",
    {
        "granularity": serializers.ChoiceField(
            ["words", "lines", "whole"],
            help_text="What was compared: words; or lines or whole texts, if comparing words would "
            "take too long.",
        ),
        "parts": inline_serializer(
            "TextDiffPart",
            {
                "op": serializers.ChoiceField(["equal", "insert", "delete"]),
                "text": serializers.CharField(),
            },
            many=True,
        ),
    },
)
_METADATA_DIFF = inline_serializer(
    "MetadataDiff",
    {
        "added": JsonObject(),
        "removed": JsonObject(),
        "changed": JsonObject(help_text='By key: `{"old": ..., "new": ...}`.'),
    },
)
_IMPORTANCE_DIFF = inline_serializer(
    "ImportanceDiff",
    {"old": serializers.FloatField(), "new": serializers.FloatField()},
    allow_null=True,
)


class MemoryDiffViewSet(TenantViewSet):
    tag = "Memories"
    model = MemoryHistory
    resource = "memory"
    has_trash = False
    parent_model = Memory
    parent_kwarg = "memory_id"
    parent_field = "memory"

    def query_class(self) -> type[Query]:
        return DiffQuery

    @extend_schema(
        operation_id="memories_history_diff",
        responses=inline_serializer(
            "MemoryDiff",
            {
                "from": VersionSerializer(),
                "to": VersionSerializer(),
                "changed": serializers.ListField(
                    child=serializers.ChoiceField(["content", "metadata", "importance"])
                ),
                "content": _TEXT_DIFF,
                "metadata": _METADATA_DIFF,
                "importance": _IMPORTANCE_DIFF,
            },
        ),
    )
    @action(detail=False, methods=["get"])
    def diff(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Compare two versions of a memory.

        By default the two newest. The `equal` and `delete` parts of `content` are the old text,
        `equal` and `insert` the new one.
        """
        diff = diff_versions(
            self.parent,
            organization=self.organization,
            from_version=self.query.get("from"),
            to_version=self.query.get("to"),
        )
        importance = diff.importance
        return Response(
            {
                "from": VersionSerializer(diff.old).data,
                "to": VersionSerializer(diff.new).data,
                "changed": diff.changed,
                "content": {
                    "granularity": diff.content.granularity,
                    "parts": [{"op": op, "text": text} for op, text in diff.content.parts],
                },
                "metadata": diff.metadata,
                "importance": importance and {"old": importance[0], "new": importance[1]},
            }
        )
