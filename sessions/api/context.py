"""`POST agents/{id}/context`: builds the context of a prompt."""

from dataclasses import asdict
from typing import Any

from drf_spectacular.utils import OpenApiExample, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.api.fields import ReferenceFilter
from accounts.api.shapes import Strict
from accounts.api.views import TenantViewSet
from accounts.models import User
from accounts.roles import permission
from accounts.tenancy import tenant
from memories.models import Agent
from memories.services.searching import MAX_QUERY_LENGTH
from sessions.models import Session
from sessions.services.context import (
    CHARACTERS_PER_TOKEN,
    WorkingSet,
    build_context,
    estimated_tokens,
)

DEFAULT_TOKENS, MAX_TOKENS, MAX_ROWS = 4000, 1_000_000, 200


class ContextBody(Strict):
    query = serializers.CharField(
        help_text=f"The query for memories; only its first {MAX_QUERY_LENGTH:,} characters count."
    )
    user_id = ReferenceFilter(User, help_text="uuid or external_id; by default the session's user")
    session_id = ReferenceFilter(Session, key="session_id")
    max_tokens = serializers.IntegerField(
        required=False,
        min_value=1,
        max_value=MAX_TOKENS,
        help_text=f"A token counts as {CHARACTERS_PER_TOKEN} characters; {DEFAULT_TOKENS} by "
        "default.",
    )
    max_characters = serializers.IntegerField(
        required=False, min_value=1, max_value=CHARACTERS_PER_TOKEN * MAX_TOKENS
    )
    memories = serializers.IntegerField(min_value=0, max_value=MAX_ROWS, default=10)
    messages = serializers.IntegerField(min_value=0, max_value=MAX_ROWS, default=20)
    allow_gaps = serializers.BooleanField(
        default=True, help_text="false: no messages older than one that does not fit."
    )

    def validate(self, values: dict[str, Any]) -> dict[str, Any]:
        if "max_tokens" in values and "max_characters" in values:
            raise serializers.ValidationError(
                {"max_characters": "Give max_tokens or max_characters, not both."}, code="twice"
            )
        return values

    def budget(self) -> int:
        """In characters."""
        values = self.validated_data
        tokens: int = values.get("max_tokens", DEFAULT_TOKENS)
        return int(values.get("max_characters", CHARACTERS_PER_TOKEN * tokens))


class _Sized(serializers.Serializer[Any]):
    kind = serializers.ChoiceField(["system", "block", "memory", "message"])
    id = serializers.UUIDField(help_text="For the system prompt the agent's id.")
    label: Any = serializers.CharField(help_text="The label of a block, else the external_id.")
    characters = serializers.IntegerField()
    estimated_tokens = serializers.IntegerField()


class ContextItem(_Sized):
    text = serializers.CharField(help_text="As in the prompt.")
    score = serializers.FloatField(allow_null=True, help_text="Only of a memory.")
    is_cut = serializers.BooleanField(
        help_text="Whether a message was cut; a mark at its end gives its full length."
    )


class ContextLeftOut(_Sized):
    reason = serializers.ChoiceField(["over_budget", "after_a_gap", "another_user", "empty"])


class Context(serializers.Serializer[Any]):
    text = serializers.CharField(help_text="The prompt.")
    characters = serializers.IntegerField()
    max_characters = serializers.IntegerField()
    estimated_tokens = serializers.IntegerField()
    items = ContextItem(many=True)
    left_out = ContextLeftOut(many=True)
    notice = serializers.CharField(
        required=False, help_text="What limited the search, or does not exist."
    )


class AgentContextViewSet(TenantViewSet):
    tag = "Agents"
    model = Agent
    scope = permission("memory", "read")
    also = (permission("agent", "read"), permission("session", "read"))
    serializer_class = ContextBody
    late_actions = ("create",)
    parent_model = Agent
    parent_kwarg = "agent_id"

    def unknown_parent(self, name: str) -> None:
        """In an agent's first turn it does not exist yet."""

    @extend_schema(
        summary="Build the context of a prompt",
        request=ContextBody,
        responses={200: Context},
        examples=[
            OpenApiExample(
                "For an answer to a user",
                request_only=True,
                value={
                    "query": "How does Alice take her coffee?",
                    "session_id": "cafe:2026-01-31",
                    "max_tokens": 2000,
                },
            )
        ],
    )
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """The system prompt and the blocks, then the best memories for the query, then the latest
        messages, within the budget; `left_out` lists what did not fit. Messages are those of the
        session, or without one those of the agent with the user."""
        body: Any = self.get_serializer(data=request.data)
        with tenant(self.organization):
            body.is_valid(raise_exception=True)
        values = body.validated_data
        working_set = build_context(
            organization=self.organization,
            agent=self.parent,
            query=values["query"],
            max_characters=body.budget(),
            user_id=values.get("user_id"),
            session_id=values.get("session_id"),
            memory_limit=values["memories"],
            message_limit=values["messages"],
            allow_gaps=values["allow_gaps"],
        )
        return Response(_shown(working_set))


def _shown(working_set: WorkingSet) -> dict[str, Any]:
    notice = {"notice": working_set.notice} if working_set.notice else {}
    return {
        "text": working_set.text,
        **_size(working_set.characters),
        "max_characters": working_set.max_characters,
        "items": [{**asdict(i), **_size(i.characters)} for i in working_set.items],
        "left_out": [{**asdict(i), **_size(i.characters)} for i in working_set.left_out],
        **notice,
    }


def _size(characters: int) -> dict[str, int]:
    return {"characters": characters, "estimated_tokens": estimated_tokens(characters)}
