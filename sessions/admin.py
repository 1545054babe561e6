"""Pages of the console for sessions, runs and messages."""

from dataclasses import replace
from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from unfold.contrib.filters.admin import AutocompleteSelectFilter, ChoicesDropdownFilter
from unfold.decorators import display

from accounts.admin import UserAdmin
from accounts.console import TenantAdmin, actor_of, show
from accounts.console.lists import ExactTextFilter
from accounts.console.moves import FOR_GOOD
from accounts.console.parameters import is_number
from accounts.models import User
from sessions.console import TURNS_PER_RUN, conversation, run_part
from sessions.models import Message, Run, Session
from sessions.services.conversations import append_run, messages, runs, sessions
from sessions.services.erasing import people

RUN_STATUS = {
    "Completed": "success",
    "Running": "info",
    "Failed": "danger",
    "Cancelled": "warning",
}


@admin.register(User)
class PeopleAdmin(UserAdmin):
    records = people
    for_good = replace(
        FOR_GOOD,
        consequence="Everything of theirs goes, also what is not in the trash: memories and their "
        "history, blocks, sessions, runs and messages. This cannot be undone.",
    )


@admin.register(Session)
class SessionAdmin(TenantAdmin):
    resource = "session"
    records = sessions
    takes = {"page": is_number}  # of the conversation
    list_display = (
        "__str__",
        "session_id",
        "agent_link",
        "user_link",
        "shown_team",
        "created",
    )
    list_select_related = ("agent", "user")
    search_fields = ("session_id__startswith", "name__istartswith")
    search_help_text = "The start of a session id or a name"
    list_filter = (
        ("agent", AutocompleteSelectFilter),
        ("user", AutocompleteSelectFilter),
        ("team_id", ExactTextFilter),
        ("workflow_id", ExactTextFilter),
    )
    fieldsets = (
        (
            None,
            {
                "fields": [
                    ("name", "session_id"),
                    ("agent", "user"),
                    ("team_id", "workflow_id"),
                ]
            },
        ),
    )
    folded = (
        ("Summary", ["summary"]),
        ("State and agent data", ["state", "agent_data"]),
        ("Metadata", ["metadata"]),
    )
    change_form_outer_after_template = "console/conversation.html"

    def render_change_form(self, request: HttpRequest, context: Any, **kwargs: Any) -> Any:
        obj = kwargs.get("obj")
        if obj is not None:
            context["parts"], context["page"] = conversation(obj, request.GET.get("page", 1))
            context["conversation_title"] = "Conversation"
        return super().render_change_form(request, context, **kwargs)

    @display(description="Team or workflow")
    def shown_team(self, obj: Session) -> str:
        return obj.team_id or obj.workflow_id or show.NOTHING


@admin.register(Run)
class RunAdmin(TenantAdmin):
    resource = "session"
    records = runs
    list_display = (
        "run_id",
        "session_link",
        "shown_status",
        "model",
        "tokens",
        "took",
        "created",
    )
    list_select_related = ("session",)
    search_fields = ("run_id__startswith",)
    search_help_text = "The start of a run id"
    list_filter = (
        ("status", ChoicesDropdownFilter),
        ("session", AutocompleteSelectFilter),
        ("model", ExactTextFilter),
    )
    fieldsets = (
        (
            None,
            {
                "fields": [
                    ("run_id", "session"),
                    ("status", "model"),
                    "started_at",
                    "completed_at",
                    ("input_tokens", "output_tokens"),
                    ("total_tokens", "position"),
                    "content",
                    "cancellation_reason",
                ]
            },
        ),
    )
    readonly_fields = ("position",)
    folded = (
        ("Messages sent to the model", ["messages"]),
        ("Events and metrics", ["events", "metrics"]),
        ("Metadata", ["metadata"]),
    )
    change_form_outer_after_template = "console/conversation.html"

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        fixed = ["session"] if obj is not None else []  # a run cannot change its session
        return [*super().get_readonly_fields(request, obj), *fixed]

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        sets = super().get_fieldsets(request, obj)
        if obj is not None:
            return sets
        return [
            (name, {**options, "fields": [_without_position(f) for f in options["fields"]]})
            for name, options in sets
        ]

    def create(self, request: HttpRequest, organization: Any, values: Any, form: Any) -> Any:
        session = values["session"]
        return append_run(
            session, organization=organization, actor=actor_of(request), values=values
        )

    def render_change_form(self, request: HttpRequest, context: Any, **kwargs: Any) -> Any:
        obj = kwargs.get("obj")
        if obj is not None:
            rows = Message.objects.for_organization(obj.organization_id).filter(
                run=obj, is_deleted=obj.is_deleted
            )
            rows = rows.select_related("user", "agent").order_by("created_at", "id")
            context["parts"] = [run_part(obj, list(rows[:TURNS_PER_RUN]))]
            context["conversation_title"] = "What was said"
        return super().render_change_form(request, context, **kwargs)

    @display(description="Session")
    def session_link(self, obj: Run) -> Any:
        return show.link(obj.session)

    @display(description="Status", label=RUN_STATUS)
    def shown_status(self, obj: Run) -> str:
        return obj.get_status_display()

    @display(description="Tokens")
    def tokens(self, obj: Run) -> str:
        return f"{obj.total_tokens:,}"

    @display(description="Took")
    def took(self, obj: Run) -> str:
        return show.duration(obj.started_at, obj.completed_at)


def _without_position(field: Any) -> Any:
    return "total_tokens" if field == ("total_tokens", "position") else field


@admin.register(Message)
class MessageAdmin(TenantAdmin):
    resource = "session"
    records = messages
    list_display = (
        "shown_text",
        "shown_role",
        "session_link",
        "agent_link",
        "user_link",
        "created",
    )
    list_select_related = ("session", "agent", "user")
    search_fields = ("external_id__startswith", "tool_call_id__startswith")
    search_help_text = "The start of an external id or a tool call id"
    list_filter = (
        ("role", ChoicesDropdownFilter),
        ("session", AutocompleteSelectFilter),
        ("agent", AutocompleteSelectFilter),
        ("user", AutocompleteSelectFilter),
    )
    fieldsets = (
        (
            None,
            {
                "fields": [
                    ("role", "name"),
                    "text",
                    ("session", "run"),
                    ("agent", "user"),
                    ("external_id", "model"),
                ]
            },
        ),
    )
    folded = (
        ("Content", ["content"]),
        ("Tools", ["tool_calls", "tool_call_id", "tool_returns"]),
        ("Ids", [("step_id", "otid"), ("group_id", "sender_id")]),
        ("Metadata", ["metadata"]),
    )

    @display(description="Session")
    def session_link(self, obj: Message) -> Any:
        return show.link(obj.session)

    @display(description="Message")
    def shown_text(self, obj: Message) -> Any:
        return show.clipped(obj.words or "(no text)", 110)

    @display(
        description="Role",
        label={"User": "info", "Assistant": "primary", "Tool": "warning"},
    )
    def shown_role(self, obj: Message) -> str:
        return obj.get_role_display()
