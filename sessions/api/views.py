"""Sessions, their runs and messages, and those of an agent."""

from typing import Any

from django.db.models import F
from drf_spectacular.utils import OpenApiExample, extend_schema, extend_schema_view
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.api.fields import named
from accounts.api.views import Adding, Listing, RecordViewSet, TenantViewSet
from accounts.errors import NotFound
from memories.models import Agent
from sessions.api.serializers import (
    MessageQuery,
    MessageSerializer,
    RunQuery,
    RunSerializer,
    SessionQuery,
    SessionSerializer,
)
from sessions.models import Message, Session
from sessions.services.conversations import append_run, messages, runs, sessions

_RUN_EXAMPLE = OpenApiExample(
    "A finished run",
    request_only=True,
    value={
        "run_id": "run-1",
        "status": "completed",
        "model": "small-1",
        "content": "Your table is booked.",
        "messages": [{"role": "user", "content": "A table for two, please."}],
        "input_tokens": 120,
        "output_tokens": 12,
        "total_tokens": 132,
    },
)


@extend_schema_view(
    create=extend_schema(
        examples=[
            OpenApiExample(
                "A conversation",
                request_only=True,
                value={
                    "session_id": "cafe:2026-01-31",
                    "agent_id": "barista",
                    "user_id": "alice",
                    "name": "Morning coffee",
                    "state": {"step": "ordering"},
                    "metadata": {"channel": "web"},
                },
            )
        ]
    )
)
class SessionViewSet(RecordViewSet):
    tag = "Sessions"
    words = ("session", "sessions")
    records = sessions
    resource = "session"
    serializer_class = SessionSerializer
    list_query = SessionQuery
    natural_key = "session_id"


class AgentSessionViewSet(Listing, TenantViewSet):
    tag = "Agents"
    model = Session
    resource = "session"
    serializer_class = SessionSerializer
    list_query = SessionQuery
    parent_model = Agent
    parent_kwarg = "agent_id"
    parent_field = "agent"

    @extend_schema(summary="List an agent's sessions")
    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return super().list(request, *args, **kwargs)


class _MakesSession:
    """Adding a run or a message creates the session if it does not exist."""

    def unknown_parent(self: Any, name: str) -> Any:
        if self.action not in ("create", "update"):
            raise NotFound
        try:
            return named(Session, name, "session_id", organization=self.organization)
        except serializers.ValidationError as refused:
            raise serializers.ValidationError({"session_id": refused.detail}) from refused


@extend_schema_view(create=extend_schema(summary="Append a run", examples=[_RUN_EXAMPLE]))
class RunViewSet(_MakesSession, RecordViewSet):
    """The runs of a session, the last appended first."""

    tag = "Sessions"
    words = ("run", "runs")
    records = runs
    resource = "session"
    serializer_class = RunSerializer
    list_query = RunQuery
    natural_key = "run_id"
    path_words = ("by-key", "last")
    lookup_url_kwarg = "run_id"
    page_key = "position"
    parent_model = Session
    parent_kwarg = "session_id"
    parent_field = "session"
    parent_key = "session_id"

    def shown(self, rows: Any) -> Any:
        return rows.annotate(shown_session_id=F("session__session_id"))

    def get_serializer_context(self) -> dict[str, Any]:
        context = super().get_serializer_context()
        if getattr(self, "swagger_fake_view", False):
            return context
        return {**context, "session": self.parent}

    def perform_create(self, values: dict[str, Any]) -> tuple[Any, bool]:  # type: ignore[override]
        session = values.pop("session")
        return append_run(session, values=values, **self.by), True

    @extend_schema(summary="Show the last run")
    @action(detail=False, url_path="last")
    def last(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """The latest run that is not in the trash."""
        run = self.get_queryset().order_by("-position", "-pk").first()
        if run is None:
            raise NotFound
        return Response(self.get_serializer(run).data)


class _ShowsKeys:
    def shown(self, rows: Any) -> Any:
        return rows.annotate(
            shown_session_id=F("session__session_id"), shown_run_id=F("run__run_id")
        )


class MessageViewSet(_ShowsKeys, RecordViewSet):
    tag = "Messages"
    words = ("message", "messages")
    records = messages
    resource = "session"
    serializer_class = MessageSerializer
    list_query = MessageQuery


@extend_schema_view(
    list=extend_schema(summary="List a session's messages"),
    create=extend_schema(summary="Add a message to a session"),
)
class SessionMessageViewSet(_MakesSession, _ShowsKeys, Listing, Adding, TenantViewSet):
    tag = "Sessions"
    shown_at = "messages"
    records = messages
    resource = "session"
    serializer_class = MessageSerializer
    list_query = MessageQuery
    parent_model = Session
    parent_kwarg = "session_id"
    parent_field = "session"
    parent_key = "session_id"

    def get_serializer_context(self) -> dict[str, Any]:
        context = super().get_serializer_context()
        if self.action != "create" or getattr(self, "swagger_fake_view", False):
            return context
        return {**context, "session": self.parent}


class AgentMessageViewSet(_ShowsKeys, Listing, TenantViewSet):
    tag = "Agents"
    model = Message
    resource = "session"
    serializer_class = MessageSerializer
    list_query = MessageQuery
    parent_model = Agent
    parent_kwarg = "agent_id"
    parent_field = "agent"

    @extend_schema(summary="List an agent's messages")
    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return super().list(request, *args, **kwargs)
