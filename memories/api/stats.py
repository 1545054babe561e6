"""`GET memories/stats`: counts memories."""

from typing import Any

from drf_spectacular.utils import extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.api.fields import Moment, ReferenceFilter
from accounts.api.shapes import Query
from accounts.api.views import TenantViewSet
from accounts.models import User
from memories.models import Agent, Memory
from memories.services.stats import memory_stats


class StatsQuery(Query):
    user_id = ReferenceFilter(User)
    agent_id = ReferenceFilter(Agent)


class MemoryStatsViewSet(TenantViewSet):
    tag = "Memories"
    model = Memory
    resource = "memory"
    has_trash = False

    def query_class(self) -> type[Query]:
        return StatsQuery

    @extend_schema(
        operation_id="memories_stats",
        responses=inline_serializer(
            "MemoryStats",
            {
                "memories": serializers.IntegerField(),
                "users": serializers.IntegerField(help_text="Users with memories."),
                "agents": serializers.IntegerField(help_text="Agents with memories."),
                "content_bytes": serializers.IntegerField(),
                "oldest": Moment(allow_null=True),
                "newest": Moment(allow_null=True),
                **{
                    name: serializers.DictField(child=serializers.IntegerField())
                    for name in ("memory_type", "scope", "level", "embedding_state")
                },
                "embedding_model": serializers.DictField(
                    child=serializers.IntegerField(), help_text="Of memories with a vector."
                ),
            },
        ),
    )
    @action(detail=False, methods=["get"])
    def stats(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Count memories.

        By type, scope, level, embedding state and model; without expired ones and the trash.
        """
        stats = memory_stats(
            organization=self.organization,
            user_id=self.query.get("user_id"),
            agent_id=self.query.get("agent_id"),
        )
        return Response(
            {
                "memories": stats.memories,
                "users": stats.users,
                "agents": stats.agents,
                "content_bytes": stats.content_bytes,
                "oldest": stats.oldest,
                "newest": stats.newest,
                **stats.by,
            }
        )
