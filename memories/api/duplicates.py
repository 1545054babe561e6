"""`GET memories/duplicates`: pairs of memories with nearly the same content."""

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
from memories.services.duplicates import PageStart, near_duplicates

_MIN_THRESHOLD, _DEFAULT_THRESHOLD = 0.5, 0.95


class DuplicatesQuery(Query):
    threshold = serializers.FloatField(
        min_value=_MIN_THRESHOLD,
        max_value=1,
        default=_DEFAULT_THRESHOLD,
        help_text="The minimum cosine of a pair.",
    )
    user_id = ReferenceFilter(User)
    agent_id = ReferenceFilter(Agent)
    across = serializers.BooleanField(
        default=False, help_text="Also pairs of different agents and users."
    )
    limit = serializers.IntegerField(
        min_value=1, max_value=MAX_LIMIT, default=DEFAULT_LIMIT, help_text="Pairs per page."
    )
    cursor = serializers.CharField(required=False, help_text="From `next` of another page.")

    def validate_cursor(self, cursor: str) -> PageStart:
        try:
            moment, pk, returned = read_cursor(cursor)
            start = PageStart(datetime.fromisoformat(moment), UUID(pk), returned)
            is_count = type(returned) is int and returned >= 0
            is_moment = start.created_at.tzinfo and 1900 < start.created_at.year < 2300
            if not is_count or not is_moment:
                raise ValueError(cursor)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            refusal = "This cursor was not made by this server."
            raise serializers.ValidationError(refusal, code="invalid") from error
        return start


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
                    allow_null=True, help_text="null when all memories have been checked."
                ),
                "looked_at": serializers.IntegerField(help_text="Memories checked for this page."),
                "notice": serializers.CharField(
                    required=False, help_text="Why pairs may be missing."
                ),
            },
        ),
    )
    @action(detail=False, methods=["get"])
    def duplicates(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Find near duplicates.

        Pairs of memories with close vectors, of one agent and one user; `first` has the smaller id.
        A page checks some of the memories, oldest first, and may have no pair: follow `next` until
        it is null.
        """
        query = self.query
        page = near_duplicates(
            organization=self.organization,
            threshold=query["threshold"],
            user_id=query.get("user_id"),
            agent_id=query.get("agent_id"),
            across=query["across"],
            start=query.get("cursor"),
            limit=query["limit"],
        )
        # (One serializer for all: creating its fields takes longer than serializing a memory.)
        rows = [row for pair in page.pairs for row in (pair.first, pair.second)]
        data = iter(MemorySerializer(rows, many=True).data)
        pairs = [
            {"similarity": pair.similarity, "first": next(data), "second": next(data)}
            for pair in page.pairs
        ]
        notice = {"notice": page.notice} if page.notice else {}
        start = page.next
        next_page = (
            page_link(request, start.created_at.isoformat(), str(start.id), start.returned)
            if start
            else None
        )
        answer = {"results": pairs, "next": next_page, "looked_at": page.looked_at, **notice}
        return Response(answer)
