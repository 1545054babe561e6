"""Conversations: sessions, the runs of an agent in them, and messages."""

from django.db import models
from django.db.models import Q

from accounts.models import User
from accounts.tenancy import LoadedModel, TenantModel
from agentmem_site.db.fields import KeyField, TenantForeignKey
from memories.models import Agent
from sessions.words import words_of


class Session(LoadedModel):
    """A conversation of a user with an agent, a team or a workflow."""

    auto_create_key = "session_id"

    session_id = KeyField()
    agent = TenantForeignKey(Agent, models.CASCADE, null=True, blank=True, related_name="sessions")
    user = TenantForeignKey(User, models.CASCADE, null=True, blank=True, related_name="sessions")
    team_id = KeyField(null=True, blank=True)
    workflow_id = KeyField(null=True, blank=True)
    name = models.CharField(max_length=255, blank=True, default="")
    state = models.JSONField(default=dict, blank=True)
    agent_data = models.JSONField(default=dict, blank=True)
    summary = models.JSONField(null=True, blank=True)

    class Meta:
        constraints = [
            *TenantModel.Meta.constraints,
            models.UniqueConstraint(
                fields=["organization", "session_id"], name="agent_sessions_session_id_unique"
            ),
            models.CheckConstraint(
                name="agent_sessions_session_id_given", condition=~Q(session_id="")
            ),
        ]
        indexes = [
            *TenantModel.Meta.indexes,
            # An agent's, a user's, a team's, a workflow's sessions, newest first.
            models.Index(
                fields=["organization", "agent", "created_at"], name="agent_sessions_session_agent"
            ),
            models.Index(
                fields=["organization", "user", "created_at"], name="agent_sessions_session_user"
            ),
            models.Index(
                fields=["organization", "team_id", "created_at"],
                condition=Q(team_id__isnull=False),
                name="agent_sessions_session_team",
            ),
            models.Index(
                fields=["organization", "workflow_id", "created_at"],
                condition=Q(workflow_id__isnull=False),
                name="agent_sessions_session_flow",
            ),
        ]

    def __str__(self) -> str:
        return self.name or self.session_id


class Run(TenantModel):
    """One turn in a session, from a request to the agent's answer."""

    class Status(models.TextChoices):
        PENDING = "pending", "Pending"
        RUNNING = "running", "Running"
        COMPLETED = "completed", "Completed"
        FAILED = "failed", "Failed"
        CANCELLED = "cancelled", "Cancelled"

    session = TenantForeignKey(Session, models.CASCADE, related_name="runs")
    run_id = KeyField()
    position = models.IntegerField(default=0)  # order within the session
    status = models.CharField(max_length=16, choices=Status.choices, default=Status.PENDING)
    started_at = models.DateTimeField(null=True, blank=True)
    completed_at = models.DateTimeField(null=True, blank=True)
    cancellation_reason = models.TextField(blank=True, default="")
    model = models.CharField(max_length=255, blank=True, default="")
    content = models.TextField(blank=True, default="")
    messages = models.JSONField(default=list, blank=True)
    events = models.JSONField(default=list, blank=True)
    metrics = models.JSONField(default=dict, blank=True)
    input_tokens = models.BigIntegerField(default=0)
    output_tokens = models.BigIntegerField(default=0)
    total_tokens = models.BigIntegerField(default=0)

    class Meta:
        constraints = [
            *TenantModel.Meta.constraints,
            models.UniqueConstraint(
                fields=["organization", "session", "run_id"], name="agent_sessions_run_id_unique"
            ),
            models.CheckConstraint(name="agent_sessions_run_id_given", condition=~Q(run_id="")),
            models.CheckConstraint(
                name="agent_sessions_run_status_known",
                condition=Q(status__in=["pending", "running", "completed", "failed", "cancelled"]),
            ),
            models.CheckConstraint(
                name="agent_sessions_run_tokens_positive",
                condition=Q(input_tokens__gte=0, output_tokens__gte=0, total_tokens__gte=0),
            ),
        ]
        indexes = [
            *TenantModel.Meta.indexes,
            # A session's runs in order; the next position.
            models.Index(
                fields=["organization", "session", "position"], name="agent_sessions_run_position"
            ),
        ]

    def __str__(self) -> str:
        return self.run_id


class Message(LoadedModel):
    """A message of a conversation, or of an agent outside a conversation."""

    class Role(models.TextChoices):
        USER = "user", "User"
        ASSISTANT = "assistant", "Assistant"
        SYSTEM = "system", "System"
        TOOL = "tool", "Tool"

    external_id = KeyField(null=True, blank=True)
    session = TenantForeignKey(
        Session, models.CASCADE, null=True, blank=True, related_name="messages"
    )
    # (Run.messages is what was sent to the model; these are separate rows.)
    run = TenantForeignKey(Run, models.CASCADE, null=True, blank=True, related_name="message_rows")
    # SET_NULL: messages stay with their sessions.
    agent = TenantForeignKey(Agent, models.SET_NULL, null=True, blank=True, related_name="messages")
    user = TenantForeignKey(User, models.SET_NULL, null=True, blank=True, related_name="messages")
    role = models.CharField(max_length=16, choices=Role.choices)
    text = models.TextField(blank=True, default="")
    content = models.JSONField(null=True, blank=True)
    model = models.CharField(max_length=255, blank=True, default="")
    name = models.CharField(max_length=255, blank=True, default="")
    tool_calls = models.JSONField(null=True, blank=True)
    tool_call_id = models.CharField(max_length=255, blank=True, default="")
    tool_returns = models.JSONField(null=True, blank=True)
    step_id = models.CharField(max_length=255, blank=True, default="")
    otid = models.CharField(max_length=255, blank=True, default="")
    group_id = models.CharField(max_length=255, blank=True, default="")
    sender_id = models.CharField(max_length=255, blank=True, default="")

    class Meta:
        constraints = [
            *TenantModel.Meta.constraints,
            models.UniqueConstraint(
                fields=["organization", "external_id"],
                name="agent_sessions_message_external_id_unique",
            ),
            models.CheckConstraint(
                name="agent_sessions_message_role_known",
                condition=Q(role__in=["user", "assistant", "system", "tool"]),
            ),
        ]
        indexes = [
            *TenantModel.Meta.indexes,
            # A session's, a run's, an agent's, a user's messages in order.
            models.Index(
                fields=["organization", "session", "created_at"],
                name="agent_sessions_message_session",
            ),
            models.Index(
                fields=["organization", "run"],
                condition=Q(run__isnull=False),
                name="agent_sessions_message_run",
            ),
            models.Index(
                fields=["organization", "agent", "created_at"], name="agent_sessions_message_agent"
            ),
            models.Index(
                fields=["organization", "user", "created_at"], name="agent_sessions_message_user"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.role}: {self.words[:60]}"

    @property
    def words(self) -> str:
        """The message for prompts and previews: its texts, and placeholders for files and tool
        calls."""
        return words_of(
            text=self.text,
            content=self.content,
            tool_calls=self.tool_calls,
            tool_returns=self.tool_returns,
        )
