"""`GET memories/duplicates`: pairs of memories that say nearly the same."""

from datetime import datetime
from typing import Any
from uuid import UUID

from drf_spectacular.utils import extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.api.fields import ReferenceFilter
from accounts.api.pagination import DEFAULT_LIMIT, MAX_LIMIT, page_link, read_cursor
from accounts.api.shapes import Query
from accounts.api.views import TenantViewSet
from accounts.models import User
from memories.api.serializers import MemorySerializer
from memories.models import Agent, Memory
from memories.services.duplicates import Place, near_duplicates

_LOWEST, _USUAL = 0.5, 0.95


class DuplicatesQuery(Query):
    threshold = serializers.FloatField(
        min_value=_LOWEST, max_value=1, default=_USUAL, help_text="Cosine, at least."
    )
    user_id = ReferenceFilter(User)
    agent_id = ReferenceFilter(Agent)
    across = serializers.BooleanField(
        default=False, help_text="Pairs of different agents and users, too."
    )
    limit = serializers.IntegerField(
        min_value=1, max_value=MAX_LIMIT, default=DEFAULT_LIMIT, help_text="Pairs on a page."
    )
    cursor = serializers.CharField(required=False, help_text="From `next` of another page.")

    def validate_cursor(self, cursor: str) -> Place:
        try:
            moment, pk, told = read_cursor(cursor)
            place = Place(datetime.fromisoformat(moment), UUID(pk), told)
            is_sound = type(told) is int and told >= 0 and place.created_at.tzinfo is not None
            if not is_sound or not 1900 < place.created_at.year < 2300:
                raise ValueError(cursor)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            refusal = "This cursor was not made by this server."
            raise serializers.ValidationError(refusal, code="invalid") from error
        return place


class MemoryDuplicatesViewSet(TenantViewSet):
    tag = "Memories"
    model = Memory
    resource = "memory"
    has_trash = False

    def query_class(self) -> type[Query]:
        return DuplicatesQuery

    @extend_schema(
        operation_id="memories_duplicates",
        responses=inline_serializer(
            "DuplicatesPage",
            {
                "results": inline_serializer(
                    "DuplicatePair",
                    {
                        "similarity": serializers.FloatField(help_text="Cosine."),
                        "first": MemorySerializer(),
                        "second": MemorySerializer(),
                    },
                    many=True,
                ),
                "next": serializers.URLField(
                    allow_null=True, help_text="null when all memories have been looked at."
                ),
                "looked_at": serializers.IntegerField(help_text="Memories, for this page."),
                "notice": serializers.CharField(
                    required=False, help_text="Why pairs may be missing."
                ),
            },
        ),
    )
    @action(detail=False, methods=["get"])
    def duplicates(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Find memories that say nearly the same.

        Pairs whose vectors are close, of one agent and one user; the smaller id is `first`. A page
        looks at some of the memories, the oldest first, and may find no pair: follow `next` until
        it is null.
        """
        asked = self.query
        found = near_duplicates(
            organization=self.organization,
            threshold=asked["threshold"],
            user_id=asked.get("user_id"),
            agent_id=asked.get("agent_id"),
            across=asked["across"],
            start=asked.get("cursor"),
            limit=asked["limit"],
        )
        # (One serializer for all: making its fields takes longer than showing a memory.)
        rows = [row for pair in found.pairs for row in (pair.first, pair.second)]
        shown = iter(MemorySerializer(rows, many=True).data)
        pairs = [
            {"similarity": pair.similarity, "first": next(shown), "second": next(shown)}
            for pair in found.pairs
        ]
        notice = {"notice": found.notice} if found.notice else {}
        place = found.next
        next_page = (
            page_link(request, place.created_at.isoformat(), str(place.id), place.told)
            if place
            else None
        )
        answer = {"results": pairs, "next": next_page, "looked_at": found.looked_at, **notice}
        return Response(answer)
