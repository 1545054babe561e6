"""`POST memories/export`: streams memories as lines of JSON."""

from typing import Any

from django.http import StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, extend_schema
from rest_framework import serializers
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request

from accounts.api.views import TenantViewSet
from accounts.roles import permission
from memories.api.serializers import MemoryQuery
from memories.models import Memory
from memories.services.exporting import export_memories

NDJSON = "application/x-ndjson"


class LinesRenderer(JSONRenderer):
    """Accepts NDJSON in the Accept header; errors are problem+json all the same."""

    media_type = NDJSON
    format = "ndjson"


class MemoryExport(MemoryQuery):
    unknown_word = "field"

    # No pages, and nothing from the trash: a line cannot say that it is deleted.
    limit: Any = None
    cursor: Any = None
    deleted: Any = None
    vectors = serializers.BooleanField(
        default=False, help_text="Include `embedding` and `embedding_model`: 5 KB per line."
    )


class MemoryExportViewSet(TenantViewSet):
    tag = "Memories"
    model = Memory
    scope = permission("memory", "read")
    serializer_class = MemoryExport
    renderer_classes = [JSONRenderer, LinesRenderer]

    @extend_schema(
        summary="Export memories",
        request=MemoryExport,
        responses={(200, NDJSON): OpenApiTypes.STR},
        examples=[
            OpenApiExample(
                "A user's memories with vectors",
                request_only=True,
                value={"user_id": "alice", "vectors": True},
            )
        ],
    )
    def create(self, request: Request, *args: Any, **kwargs: Any) -> StreamingHttpResponse:
        """NDJSON, oldest first, with lines as `bulk_upsert` reads them and the filters of the list.
        If the export fails, the last line is `{"error": ...}`, which no load accepts."""
        body: Any = self.get_serializer(data=request.data)
        body.is_valid(raise_exception=True)
        with_vectors = body.validated_data.pop("vectors")
        rows = body.filter_rows(self.get_queryset())
        # Runs after this transaction.
        lines = export_memories(rows, with_vectors=with_vectors, **self.by)
        return StreamingHttpResponse(lines, content_type=NDJSON)
