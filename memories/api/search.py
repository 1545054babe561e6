"""`POST memories/search` and `memories/search/batch`: request, response and view."""

from typing import Any

from drf_spectacular.utils import (
    OpenApiExample,
    extend_schema,
    extend_schema_serializer,
    inline_serializer,
)
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.api.fields import Array, JsonObject, KeyFilter, Moment, Real, ReferenceFilter
from accounts.api.shapes import Strict
from accounts.api.views import TenantViewSet
from accounts.models import User
from accounts.roles import permission
from accounts.tenancy import tenant
from memories.api.serializers import EmbeddingField, MemorySerializer
from memories.models import Agent, Memory
from memories.search.filters import MemoryFilter
from memories.search.metadata import compile_metadata
from memories.search.ranking import QueryVector, Weights
from memories.services.searching import (
    MAX_LIMIT,
    MAX_QUERY_LENGTH,
    Hit,
    SearchRequest,
    SearchResult,
    search,
)

MAX_SEARCHES = 32
_MODES = ["hybrid", "semantic", "keyword"]
_DEFAULTS = Weights()


@extend_schema_serializer(component_name="Narrowed")  # its name in the schema, which clients use
class MemoryFilterBody(Strict):
    """Conditions on memories; all that are given must match."""

    user_id = ReferenceFilter(User)
    agent_id = ReferenceFilter(Agent)
    session_id = KeyFilter()
    types = Array(
        child=serializers.ChoiceField(Memory.Type.choices), required=False, allow_empty=False
    )
    scopes = Array(
        child=serializers.ChoiceField(Memory.Scope.choices), required=False, allow_empty=False
    )
    levels = Array(
        child=serializers.ChoiceField(Memory.Level.choices), required=False, allow_empty=False
    )
    since = Moment(required=False, help_text="Created at this time or later.")
    until = Moment(required=False, help_text="Created before this time.")
    importance_min = Real(required=False, min_value=0, max_value=1)
    importance_max = Real(required=False, min_value=0, max_value=1)
    filters = JsonObject(
        required=False,
        help_text='Conditions on metadata: `{"topic": "travel", "size": {"gte": 3}}`. Operators: '
        "eq, ne, in, gt, gte, lt, lte, contains, exists; `and`, `or` and `not` join them.",
    )

    def memory_filter(self, values: dict[str, Any]) -> MemoryFilter:
        """The filter of the validated `values`. Raises: Invalid."""
        conditions = values.get("filters")
        return MemoryFilter(
            agent_id=values.get("agent_id"),
            user_id=values.get("user_id"),
            session_id=values.get("session_id"),
            memory_types=_tuple(values.get("types")),
            scopes=_tuple(values.get("scopes")),
            levels=_tuple(values.get("levels")),
            since=values.get("since"),
            until=values.get("until"),
            importance_min=values.get("importance_min"),
            importance_max=values.get("importance_max"),
            metadata=compile_metadata(conditions) if conditions else None,
            as_of=values.get("as_of"),
        )


class WeightsBody(Strict):
    dense = serializers.FloatField(required=False, min_value=0, max_value=100)
    lexical = serializers.FloatField(required=False, min_value=0, max_value=100)
    recency = serializers.FloatField(required=False, min_value=0, max_value=100)
    importance = serializers.FloatField(required=False, min_value=0, max_value=100)


@extend_schema_serializer(component_name="SearchBody")  # not the inherited one
class SearchBody(MemoryFilterBody):
    query: Any = serializers.CharField(
        required=False,
        allow_blank=True,
        default="",
        help_text=f"Only the first {MAX_QUERY_LENGTH:,} characters, and the first 64 words, count.",
    )
    mode = serializers.ChoiceField(
        _MODES, default="hybrid", help_text="By meaning and by keyword, or by one of them."
    )
    limit = serializers.IntegerField(min_value=1, max_value=MAX_LIMIT, default=10)
    as_of = Moment(
        required=False, help_text="Searches memories that existed then, deleted since or not."
    )
    weights = WeightsBody(required=False, help_text="The weights of the parts of a score.")
    half_life_days = serializers.FloatField(
        required=False,
        min_value=0.001,
        max_value=100_000,
        help_text="Recency halves in this many days.",
    )
    embedding = EmbeddingField(
        required=False, write_only=True, help_text="The vector of the query, if you encode it."
    )
    embedding_model = serializers.CharField(
        required=False,
        max_length=64,
        trim_whitespace=False,
        help_text="Its encoder: only vectors of the same encoder are compared.",
    )

    def validate(self, values: dict[str, Any]) -> dict[str, Any]:
        if ("embedding" in values) != ("embedding_model" in values):
            raise serializers.ValidationError(
                {"embedding_model": "`embedding` and `embedding_model` must be given together."},
                code="required",
            )
        return values

    def request(self, values: dict[str, Any]) -> SearchRequest:
        """The request of the validated `values`. Raises: Invalid."""
        vector = None
        if "embedding" in values:
            text = str(values["embedding"])
            vector = QueryVector(values["embedding_model"], text)
        weights = values.get("weights", {})
        return SearchRequest(
            query=values["query"],
            mode=values["mode"],
            memory_filter=self.memory_filter(values),
            limit=values["limit"],
            weights=Weights(
                dense=weights.get("dense", _DEFAULTS.dense),
                lexical=weights.get("lexical", _DEFAULTS.lexical),
                recency=weights.get("recency", _DEFAULTS.recency),
                importance=weights.get("importance", _DEFAULTS.importance),
                half_life_days=values.get("half_life_days", _DEFAULTS.half_life_days),
            ),
            vector=vector,
        )


class SearchesBody(Strict):
    searches = Array(child=SearchBody(), allow_empty=False, max_length=MAX_SEARCHES)


_HIT = inline_serializer(
    "Hit",
    {
        "memory": MemorySerializer(),
        "score": serializers.FloatField(help_text="The sum of the parts."),
        "parts": inline_serializer(
            "ScoreParts",
            {
                name: serializers.FloatField()
                for name in ("dense", "lexical", "recency", "importance")
            },
        ),
        "similarity": serializers.FloatField(
            allow_null=True, help_text="The cosine of query and memory."
        ),
        "matched_terms": serializers.ListField(child=serializers.CharField()),
    },
    many=True,
)
_RESULT = {
    "results": _HIT,
    "mode": serializers.ChoiceField(_MODES, help_text="The mode that was used."),
    "notice": serializers.CharField(required=False, help_text="What limited the search."),
    "took_ms": serializers.FloatField(),
}


class SearchViewSet(TenantViewSet):
    tag = "Memories"
    scope = permission("memory", "read")
    serializer_class: Any = SearchBody
    late_actions = ("create",)

    def checked(self, request: Request) -> Any:
        """The validated body. The transaction for its references ends before encoding."""
        body: Any = self.get_serializer(data=request.data)
        with tenant(self.organization):
            body.is_valid(raise_exception=True)
        return body

    @extend_schema(
        operation_id="memories_search",
        request=SearchBody,
        responses={200: inline_serializer("SearchResults", _RESULT)},
        examples=[
            OpenApiExample(
                "Search a user's memories",
                request_only=True,
                value={
                    "query": "How does Alice take her coffee?",
                    "user_id": "alice",
                    "filters": {"topic": {"in": ["preferences", "food"]}},
                    "limit": 5,
                },
            )
        ],
    )
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Search memories.

        By meaning and by keyword, best first; each hit has the parts of its score.
        """
        body = self.checked(request)
        results = search([body.request(body.validated_data)], organization=self.organization)
        return Response(_shown(results[0]))


class SearchBatchViewSet(SearchViewSet):
    serializer_class = SearchesBody

    @extend_schema(
        operation_id="memories_search_batch",
        request=SearchesBody,
        responses={
            200: inline_serializer(
                "SearchBatchResults",
                {"results": inline_serializer("SearchBatchItem", _RESULT, many=True)},
            )
        },
        examples=[
            OpenApiExample(
                "Two searches",
                request_only=True,
                value={
                    "searches": [
                        {"query": "How does Alice take her coffee?", "user_id": "alice"},
                        {"query": "When does the shop open?", "mode": "keyword", "limit": 3},
                    ]
                },
            )
        ],
    )
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Run several searches at once.

        The queries are encoded together; the results are in their order.
        """
        body = self.checked(request)
        shape = body.fields["searches"].child
        requests = [shape.request(values) for values in body.validated_data["searches"]]
        results = search(requests, organization=self.organization)
        return Response({"results": [_shown(result) for result in results]})


def _shown(result: SearchResult) -> dict[str, Any]:
    notice = {"notice": result.notice} if result.notice else {}
    # (One serializer for all: creating its fields takes longer than serializing a memory.)
    memories = MemorySerializer([hit.memory for hit in result.hits], many=True).data
    return {
        "results": [
            _shown_hit(hit, memory) for hit, memory in zip(result.hits, memories, strict=True)
        ],
        "mode": result.mode,
        **notice,
        "took_ms": result.took_ms,
    }


def _shown_hit(hit: Hit, memory: dict[str, Any]) -> dict[str, Any]:
    ranked = hit.ranked
    return {
        "memory": memory,
        "score": ranked.score,
        "parts": {
            "dense": ranked.dense,
            "lexical": ranked.lexical,
            "recency": ranked.recency,
            "importance": ranked.importance,
        },
        "similarity": ranked.similarity,
        "matched_terms": ranked.matched,
    }


def _tuple(values: Any) -> Any:
    return None if values is None else tuple(values)
