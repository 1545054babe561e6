"""`POST memories/search`: what is asked, and what is found."""

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

from accounts.api.fields import JsonObject, KeyFilter, Moment, Real, ReferenceFilter
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
_USUAL = Weights()


@extend_schema_serializer(component_name="Narrowed")  # its name in the schema, which clients use
class MemoryFilterBody(Strict):
    """Conditions on memories; all that are given must match."""

    user_id = ReferenceFilter(User)
    agent_id = ReferenceFilter(Agent)
    session_id = KeyFilter()
    types = serializers.ListField(
        child=serializers.ChoiceField(Memory.Type.choices), required=False, allow_empty=False
    )
    scopes = serializers.ListField(
        child=serializers.ChoiceField(Memory.Scope.choices), required=False, allow_empty=False
    )
    levels = serializers.ListField(
        child=serializers.ChoiceField(Memory.Level.choices), required=False, allow_empty=False
    )
    since = Moment(required=False, help_text="Created then or later.")
    until = Moment(required=False, help_text="Created before.")
    importance_min = Real(required=False, min_value=0, max_value=1)
    importance_max = Real(required=False, min_value=0, max_value=1)
    filters = JsonObject(
        required=False,
        help_text='Conditions on metadata: `{"topic": "travel", "size": {"gte": 3}}`. Operators: '
        "eq, ne, in, gt, gte, lt, lte, contains, exists; `and`, `or` and `not` join them.",
    )

    def memory_filter(self, values: dict[str, Any]) -> MemoryFilter:
        """Of the checked `values`. Raises: Invalid."""
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
        help_text=f"Of a long one the first {MAX_QUERY_LENGTH:,} characters are read, and the "
        "first 64 words looked for.",
    )
    mode = serializers.ChoiceField(
        _MODES, default="hybrid", help_text="By meaning and by words, or by one of them."
    )
    limit = serializers.IntegerField(min_value=1, max_value=MAX_LIMIT, default=10)
    as_of = Moment(
        required=False, help_text="Among the memories that were there then, deleted since or not."
    )
    weights = WeightsBody(required=False, help_text="Of the parts of a score.")
    half_life_days = serializers.FloatField(
        required=False,
        min_value=0.001,
        max_value=100_000,
        help_text="In so many days recency halves.",
    )
    embedding = EmbeddingField(
        required=False, write_only=True, help_text="The question's vector, where you make your own."
    )
    embedding_model = serializers.CharField(
        required=False,
        max_length=64,
        trim_whitespace=False,
        help_text="Whose vector it is: it is compared with memories of this name alone.",
    )

    def validate(self, values: dict[str, Any]) -> dict[str, Any]:
        if ("embedding" in values) != ("embedding_model" in values):
            raise serializers.ValidationError(
                {"embedding_model": "An embedding and the name of its model come together."},
                code="required",
            )
        return values

    def request(self, values: dict[str, Any]) -> SearchRequest:
        """Of the checked `values`. Raises: Invalid."""
        vector = None
        if "embedding" in values:
            text = str(values["embedding"])
            vector = QueryVector(values["embedding_model"], text)
        given = values.get("weights", {})
        return SearchRequest(
            query=values["query"],
            mode=values["mode"],
            memory_filter=self.memory_filter(values),
            limit=values["limit"],
            weights=Weights(
                dense=given.get("dense", _USUAL.dense),
                lexical=given.get("lexical", _USUAL.lexical),
                recency=given.get("recency", _USUAL.recency),
                importance=given.get("importance", _USUAL.importance),
                half_life_days=values.get("half_life_days", _USUAL.half_life_days),
            ),
            vector=vector,
        )


class SearchesBody(Strict):
    searches = serializers.ListField(child=SearchBody(), allow_empty=False, max_length=MAX_SEARCHES)


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
            allow_null=True, help_text="Cosine of the question and the memory."
        ),
        "matched_terms": serializers.ListField(child=serializers.CharField()),
    },
    many=True,
)
_FOUND = {
    "results": _HIT,
    "mode": serializers.ChoiceField(_MODES, help_text="The one that was carried out."),
    "notice": serializers.CharField(required=False, help_text="Why it was another one."),
    "took_ms": serializers.FloatField(),
}


class SearchViewSet(TenantViewSet):
    tag = "Memories"
    scope = permission("memory", "read")
    serializer_class: Any = SearchBody
    late_actions = ("create",)

    def checked(self, request: Request) -> Any:
        """The body, whose references are looked up in a transaction that ends before encoding."""
        body: Any = self.get_serializer(data=request.data)
        with tenant(self.organization):
            body.is_valid(raise_exception=True)
        return body

    @extend_schema(
        operation_id="memories_search",
        request=SearchBody,
        responses={200: inline_serializer("SearchResults", _FOUND)},
        examples=[
            OpenApiExample(
                "What is known of a user",
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

        Best first, by meaning and by words; each hit tells the parts of its score.
        """
        body = self.checked(request)
        found = search([body.request(body.validated_data)], organization=self.organization)
        return Response(_shown(found[0]))


class SearchBatchViewSet(SearchViewSet):
    serializer_class = SearchesBody

    @extend_schema(
        operation_id="memories_search_batch",
        request=SearchesBody,
        responses={
            200: inline_serializer(
                "SearchBatchResults",
                {"results": inline_serializer("SearchBatchItem", _FOUND, many=True)},
            )
        },
        examples=[
            OpenApiExample(
                "Two questions",
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
        """Search memories several times at once.

        The questions are encoded together; the answers stand in their order.
        """
        body = self.checked(request)
        shape = body.fields["searches"].child
        requests = [shape.request(values) for values in body.validated_data["searches"]]
        found = search(requests, organization=self.organization)
        return Response({"results": [_shown(one) for one in found]})


def _shown(found: SearchResult) -> dict[str, Any]:
    notice = {"notice": found.notice} if found.notice else {}
    # (One serializer for all: making its fields takes longer than showing a memory.)
    memories = MemorySerializer([hit.memory for hit in found.hits], many=True).data
    return {
        "results": [
            _shown_hit(hit, memory) for hit, memory in zip(found.hits, memories, strict=True)
        ],
        "mode": found.mode,
        **notice,
        "took_ms": found.took_ms,
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
