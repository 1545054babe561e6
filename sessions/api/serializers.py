"""Shapes of sessions, runs and messages."""

from typing import Any

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from accounts.api.fields import (
    JsonObject,
    KeyField,
    KeyFilter,
    ReferenceField,
    ReferenceFilter,
    checked_key,
    find,
)
from accounts.api.shapes import KEPT_BY_SERVER, ListQuery, RecordSerializer
from accounts.models import User
from accounts.services.naming import is_new
from agentmem_site.db.ids import uuid7
from memories.models import Agent
from sessions.models import Message, Run, Session


@extend_schema_field(OpenApiTypes.STR)
class NaturalKeyReference(ReferenceField):
    """Shown by its natural key: annotated as `session__session_id` on lists."""

    def get_attribute(self, instance: Any) -> Any:
        if getattr(instance, f"{self.source}_id") is None:
            return None
        annotated = f"shown_{self.key}"
        if hasattr(instance, annotated):
            return getattr(instance, annotated)
        return getattr(getattr(instance, str(self.source)), self.key)


class RunReference(NaturalKeyReference):
    """A run_id names a run within its session: the shape around it finds the row."""

    def to_internal_value(self, data: Any) -> str:
        return checked_key(data)


class SessionSerializer(RecordSerializer):
    kept_by_put = ("session_id",)

    agent_id = ReferenceField(Agent, source="agent", required=False, allow_null=True)
    user_id = ReferenceField(User, source="user", required=False, allow_null=True)
    session_id = KeyField(
        required=False,
        help_text="The caller's own key, unique in the organization; made where not given.",
    )
    summary = JsonObject(required=False, allow_null=True)

    class Meta:
        model = Session
        fields = [
            "id",
            "organization_id",
            "session_id",
            "agent_id",
            "user_id",
            "team_id",
            "workflow_id",
            "name",
            "state",
            "agent_data",
            "summary",
            "metadata",
            *KEPT_BY_SERVER,
        ]

    def values(self) -> dict[str, Any]:
        made = {} if self.instance else {"session_id": str(uuid7())}
        return {**made, **super().values()}


class SessionQuery(ListQuery):
    agent_id = ReferenceFilter(Agent)
    user_id = ReferenceFilter(User)
    team_id = KeyFilter()
    workflow_id = KeyFilter()


class RunSerializer(RecordSerializer):
    kept_by_put = ("run_id",)

    session_id = NaturalKeyReference(
        Session, key="session_id", source="session", read_only=True, help_text=""
    )
    run_id = KeyField(
        required=False,
        help_text="The caller's own key, unique in the session; made where not given.",
    )

    class Meta:
        model = Run
        fields = [
            "id",
            "organization_id",
            "session_id",
            "run_id",
            "position",
            "status",
            "started_at",
            "completed_at",
            "cancellation_reason",
            "model",
            "content",
            "messages",
            "events",
            "metrics",
            "input_tokens",
            "output_tokens",
            "total_tokens",
            "metadata",
            *KEPT_BY_SERVER,
        ]
        read_only_fields = ["position"]
        extra_kwargs = {
            name: {"min_value": 0} for name in ("input_tokens", "output_tokens", "total_tokens")
        }

    def values(self) -> dict[str, Any]:
        made = {} if self.instance else {"run_id": str(uuid7())}
        return {**made, **super().values()}


class RunQuery(ListQuery):
    status = serializers.ChoiceField(Run.Status.choices, required=False)


class MessageSerializer(RecordSerializer):
    session_id = NaturalKeyReference(
        Session,
        key="session_id",
        source="session",
        required=False,
        allow_null=True,
        help_text="uuid or session_id on input, session_id in answers; a new session_id makes the "
        "session, of the message's agent and user",
    )
    run_id = RunReference(
        Run,
        key="run_id",
        source="run",
        required=False,
        allow_null=True,
        help_text="uuid, or run_id beside a session_id; run_id in answers",
    )
    agent_id = ReferenceField(Agent, source="agent", required=False, allow_null=True)
    user_id = ReferenceField(User, source="user", required=False, allow_null=True)

    class Meta:
        model = Message
        fields = [
            "id",
            "organization_id",
            "external_id",
            "session_id",
            "run_id",
            "agent_id",
            "user_id",
            "role",
            "text",
            "content",
            "model",
            "name",
            "tool_calls",
            "tool_call_id",
            "tool_returns",
            "step_id",
            "otid",
            "group_id",
            "sender_id",
            "metadata",
            *KEPT_BY_SERVER,
        ]

    def validate(self, values: dict[str, Any]) -> dict[str, Any]:
        """The run is one of the message's session, given or the one in the path."""
        path_session = self.context.get("session")
        session = self._session(values, path_session)
        if path_session is not None:
            if session is None or session.session_id != path_session.session_id:
                raise serializers.ValidationError(
                    {"session_id": "This is not the session in the path."}, code="mismatch"
                )
            session = path_session  # (if it is new, there is one row for both)
        if isinstance(name := values.get("run"), str):
            rows = Run.objects.for_organization(self.context["organization"]).live()
            if is_new(session):
                run = None
            elif session is None:
                run = find(rows, name, "")
            else:
                run = find(rows.filter(session=session), name, "run_id")
            if run is None:
                raise serializers.ValidationError(
                    {"run_id": f"There is no run {name[:80]!r} in this session."},
                    code="unknown_reference",
                )
            values.update(run=run, session=session or run.session)
        elif self._leaves_its_session(values):
            values["run"] = None
        return values

    def _leaves_its_session(self, values: dict[str, Any]) -> bool:
        if self.instance is None or "session" not in values or "run" in values:
            return False
        return getattr(values["session"], "pk", None) != self.instance.session_id

    def _session(self, values: dict[str, Any], path_session: Session | None) -> Session | None:
        if "session" in values:
            return values["session"]
        if path_session is not None or self.instance is None or not self.partial:
            return path_session
        return self.instance.session


class MessageQuery(ListQuery):
    external_id = KeyFilter()
    session_id = ReferenceFilter(Session, key="session_id")
    agent_id = ReferenceFilter(Agent)
    user_id = ReferenceFilter(User)
    role = serializers.ChoiceField(Message.Role.choices, required=False)
