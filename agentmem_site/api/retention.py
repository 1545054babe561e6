"""PATCH organizations/{id}?preview=true: what a change of settings.retention would delete."""

from typing import Any

from drf_spectacular.utils import PolymorphicProxySerializer, extend_schema, extend_schema_view
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.api.permissions import require
from accounts.api.serializers import OrganizationSerializer
from accounts.api.shapes import Query
from accounts.api.views import OrganizationViewSet
from accounts.roles import SET_RETENTION, permission
from agentmem_site.services.sweep import MAX_COUNT, would_sweep


class PreviewQuery(Query):
    preview = serializers.BooleanField(
        default=False,
        help_text="Changes nothing; counts what the next sweep would remove under the new "
        f"settings.retention. Also requires {SET_RETENTION} and organization:read.",
    )


class SweepCounts(serializers.Serializer[Any]):
    expired = serializers.IntegerField(help_text="Memories past their expires_at.")
    aged = serializers.IntegerField(help_text="Older than memory_days.")
    unfound = serializers.IntegerField(help_text="Not found for unfound_days.")
    purged = serializers.DictField(
        child=serializers.IntegerField(), help_text="Deleted for good from the trash, by kind."
    )
    cached_vectors = serializers.IntegerField()
    abandoned_loads = serializers.IntegerField()


class RetentionPreview(serializers.Serializer[Any]):
    preview = serializers.BooleanField()
    would_take = SweepCounts(help_text=f"Counts stop at {MAX_COUNT + 1:,}.")


_RESPONSE = extend_schema(
    responses=PolymorphicProxySerializer(
        component_name="OrganizationOrPreview",
        serializers=[OrganizationSerializer, RetentionPreview],
        resource_type_field_name=None,
    )
)


@extend_schema_view(update=_RESPONSE, partial_update=_RESPONSE)
class SweptOrganizationViewSet(OrganizationViewSet):
    def query_class(self) -> type[Query]:
        is_change = self.action in ("update", "partial_update")
        return PreviewQuery if is_change else super().query_class()

    def update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Changing `settings.retention` requires `organization:retention`. With `preview=true`
        nothing changes; the response counts what the next sweep would remove."""
        if not self.query["preview"]:
            return super().update(request, *args, **kwargs)
        for scope in (SET_RETENTION, permission("organization", "read")):
            require(self.actor, scope)
        row = self.get_object()
        serializer: Any = self.get_serializer(
            row, data=request.data, partial=kwargs.get("partial", False)
        )
        serializer.is_valid(raise_exception=True)
        settings = serializer.values().get("settings", row.settings)
        counts = would_sweep(organization=row, settings=settings).as_dict()
        preview = RetentionPreview({"preview": True, "would_take": counts})
        return Response(preview.data)
