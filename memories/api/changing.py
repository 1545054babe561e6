"""`POST memories/batch/update` and `memories/batch/delete`: change many memories by filter."""

from typing import Any

from drf_spectacular.utils import OpenApiExample, extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.api.fields import Array, JsonObject, KeyField, Moment, Real
from accounts.api.permissions import require
from accounts.api.shapes import Strict
from accounts.api.views import TenantViewSet
from accounts.roles import permission
from memories.api.search import MemoryFilterBody
from memories.api.serializers import EXPIRED, EXPIRED_HELP, MemorySerializer
from memories.models import Memory
from memories.search.filters import MemoryFilter
from memories.services.changing import (
    MAX_ROWS,
    SAMPLE_ROWS,
    Changed,
    delete_memories,
    delete_named_memories,
    update_memories,
)

MAX_IDS = 1000


class _Bulk(Strict):
    filter = MemoryFilterBody(
        required=False, help_text="As in a search; all conditions must match."
    )
    all = serializers.BooleanField(
        default=False, help_text="Instead of a filter: every memory of the organization."
    )
    expired = serializers.ChoiceField(
        EXPIRED,
        required=False,
        help_text=f"{EXPIRED_HELP} By default they are excluded, as in lists and searches.",
    )
    preview = serializers.BooleanField(
        default=False, help_text=f"Only count them, and return up to {SAMPLE_ROWS}."
    )

    def memory_filter(self, values: dict[str, Any]) -> MemoryFilter:
        """Of the checked `values`. Raises: Invalid, ValidationError."""
        shape: Any = self.fields["filter"]
        memory_filter: MemoryFilter = shape.memory_filter(values.get("filter", {}))
        if memory_filter.is_empty() and not values["all"]:
            raise serializers.ValidationError(
                {
                    "filter": "A filter without conditions matches all memories; send "
                    '{"all": true} instead if that is what you want.'
                },
                code="required",
            )
        if values["all"] and not memory_filter.is_empty():
            raise serializers.ValidationError(
                {"all": "Send a filter or `all`, not both."}, code="invalid"
            )
        return memory_filter


class Settable(Strict):
    null_is_default = False

    importance = Real(required=False, min_value=0, max_value=1)
    memory_type = serializers.ChoiceField(Memory.Type.choices, required=False)
    scope = serializers.ChoiceField(Memory.Scope.choices, required=False)
    level = serializers.ChoiceField(Memory.Level.choices, required=False)
    expires_at = Moment(required=False, allow_null=True, help_text="null: never.")
    metadata: Any = JsonObject(
        required=False,
        help_text="Merged into the existing one: its keys are set, keys with null are removed.",
    )


class BulkUpdate(_Bulk):
    def get_fields(self) -> dict[str, Any]:
        return {**super().get_fields(), "set": Settable()}


class BulkDelete(_Bulk):
    ids = Array(
        child=KeyField(),
        required=False,
        allow_empty=False,
        max_length=MAX_IDS,
        help_text="Instead of a filter: uuids or external_ids.",
    )

    def validate(self, values: dict[str, Any]) -> dict[str, Any]:
        if "ids" in values and ("filter" in values or values["all"]):
            raise serializers.ValidationError(
                {"ids": "Send only one of ids, a filter and `all`."}, code="invalid"
            )
        if "ids" in values and "expired" in values:
            raise serializers.ValidationError(
                {"expired": "It needs a filter: `ids` include expired memories."},
                code="invalid",
            )
        return values


_COUNTS: dict[str, Any] = {
    "preview": serializers.BooleanField(),
    "matched": serializers.IntegerField(help_text="Memories that match the filter."),
}
_SAMPLE = MemorySerializer(
    many=True,
    help_text="In a preview: some of these memories, unchanged.",
)


class _BulkViewSet(TenantViewSet):
    tag = "Memories"
    model = Memory
    resource = "memory"
    has_trash = False
    natural_key = ""

    def checked(self, shape: type[_Bulk], request: Request) -> tuple[Any, dict[str, Any]]:
        body = shape(data=request.data, context=self.get_serializer_context())
        body.is_valid(raise_exception=True)
        return body, dict(body.validated_data)

    def sample_of(self, done: Changed) -> list[Any]:
        return list(MemorySerializer(done.sample, many=True).data)


class MemoryBulkUpdateViewSet(_BulkViewSet):
    also = (permission("memory", "read"),)  # the counts of a filter reveal content

    @extend_schema(
        operation_id="memories_batch_update",
        request=BulkUpdate,
        responses=inline_serializer(
            "BulkUpdated",
            {
                **_COUNTS,
                "updated": serializers.IntegerField(
                    help_text="Memories that changed, or would; the others have these values."
                ),
                "sample": _SAMPLE,
            },
        ),
        examples=[
            OpenApiExample(
                "Lower the importance of stale memories",
                request_only=True,
                value={
                    "filter": {"user_id": "alice", "until": "2025-01-01T00:00:00Z"},
                    "set": {"importance": 0.1, "metadata": {"stale": True, "draft": None}},
                    "preview": True,
                },
            )
        ],
        description=f"Change many memories by filter: at most {MAX_ROWS:,} per call, all or none. "
        "Needs `memory:write` and `memory:read`; and `memory:delete` if memories would expire "
        "earlier than before.",
    )
    @action(detail=False, methods=["post"], url_path="update")
    def update_many(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Change many memories by filter."""
        body, values = self.checked(BulkUpdate, request)
        done = update_memories(
            memory_filter=body.memory_filter(values),
            expired=values.get("expired"),
            values=values["set"],
            is_preview=values["preview"],
            **self.by,
        )
        return Response(
            {
                "preview": values["preview"],
                "matched": done.matched,
                "updated": done.changed,
                "sample": self.sample_of(done),
            }
        )


class MemoryBulkDeleteViewSet(_BulkViewSet):
    scope = permission("memory", "delete")

    @extend_schema(
        operation_id="memories_batch_delete",
        request=BulkDelete,
        responses=inline_serializer(
            "BulkDeleted",
            {
                **_COUNTS,
                "deleted": serializers.IntegerField(
                    help_text="Memories that were deleted, or would be."
                ),
                "unknown": serializers.ListField(
                    child=serializers.CharField(), help_text="Those of `ids` that do not exist."
                ),
                "sample": _SAMPLE,
            },
        ),
        examples=[
            OpenApiExample(
                "Preview a deletion",
                request_only=True,
                value={
                    "filter": {
                        "user_id": "alice",
                        "until": "2025-01-01T00:00:00Z",
                        "importance_max": 0.2,
                    },
                    "preview": True,
                },
            )
        ],
        description="Move many memories to the trash, by filter or by id: at most "
        f"{MAX_ROWS:,} per call, all or none. Needs `memory:delete`; and `memory:read`, except to "
        "delete `ids`.",
    )
    @action(detail=False, methods=["post"], url_path="delete")
    def delete_many(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Move many memories to the trash."""
        body, values = self.checked(BulkDelete, request)
        unknown: list[str] = []
        if values["preview"] or "ids" not in values:  # the counts of a filter reveal content
            require(self.actor, permission("memory", "read"))
        by = {**self.by, "is_preview": values["preview"]}
        if "ids" in values:
            done, unknown = delete_named_memories(values["ids"], **by)
        else:
            done = delete_memories(
                memory_filter=body.memory_filter(values), expired=values.get("expired"), **by
            )
        return Response(
            {
                "preview": values["preview"],
                "matched": done.matched,
                "deleted": done.changed,
                "unknown": unknown,
                "sample": self.sample_of(done),
            }
        )
