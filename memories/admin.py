"""Pages of the console for agents, blocks, tools and memories."""

from itertools import zip_longest
from typing import Any

from django.contrib import admin
from django.db.models import Q
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from unfold.contrib.filters.admin import (
    AutocompleteSelectFilter,
    BooleanRadioFilter,
    ChoicesDropdownFilter,
)
from unfold.decorators import display

from accounts.console import TenantAdmin, actor_of, show
from accounts.console.context import parsed_id
from accounts.console.forms import TenantForm
from accounts.console.inlines import LinkInline
from accounts.console.lists import ExactTextFilter, search_term
from memories.models import Agent, AgentBlock, AgentTool, Block, Memory, MemoryHistory, Tool
from memories.services.agents import (
    agents,
    attach_block,
    attach_tool,
    blocks,
    detach_block,
    detach_tool,
    over_limit,
    tools,
)
from memories.services.memories import memories
from memories.services.versions import Op, diff_texts

HISTORY_SHOWN = 50
MAX_COMPARED = 20_000  # characters of two versions; longer ones are shown without a diff
_LINKS: dict[type, tuple[str, Any, Any]] = {
    AgentBlock: ("block", attach_block, detach_block),
    AgentTool: ("tool", attach_tool, detach_tool),
}


class AttachedBlocks(LinkInline):
    model = AgentBlock
    fields = ("block",)
    verbose_name = "block"
    verbose_name_plural = "blocks"


class AttachedTools(LinkInline):
    model = AgentTool
    fields = ("tool",)
    verbose_name = "tool"
    verbose_name_plural = "tools"


class Holders(LinkInline):
    """The agents that a block or a tool is attached to; they are edited on the agent's page."""

    fields = ("agent",)
    verbose_name_plural = "agents that have it"
    max_num = 0
    per_page = 20

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    has_delete_permission = has_add_permission


class BlockHolders(Holders):
    model = AgentBlock


class ToolHolders(Holders):
    model = AgentTool


@admin.register(Agent)
class AgentAdmin(TenantAdmin):
    resource = "agent"
    records = agents
    list_display = (
        "__str__",
        "external_id",
        "agent_type",
        "topic",
        "shown_state",
        "seen",
        "created",
    )
    search_fields = ("external_id__startswith", "name__istartswith")
    search_help_text = "The start of a name or an external id"
    list_filter = (("agent_type", ExactTextFilter), ("state", ExactTextFilter))
    inlines = (AttachedBlocks, AttachedTools)
    fieldsets = (
        (
            None,
            {
                "fields": [
                    ("name", "external_id"),
                    ("agent_type", "topic"),
                    ("state", "seen"),
                    "description",
                    "system",
                    "error_message",
                ]
            },
        ),
    )
    readonly_fields = ("seen",)
    folded = (
        ("Model configuration", ["llm_config", "embedding_config"]),
        ("Tool rules and MCP tools", ["tool_rules", "mcp_tools"]),
        ("Messages in context", ["message_ids"]),
        ("Metadata", ["metadata"]),
    )
    shows_related = True
    change_form_outer_after_template = "console/related.html"

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        end, attach, detach = _LINKS[formset.model]
        formset.save(commit=False)
        agent = form.instance
        by = {"organization": agent.organization, "actor": actor_of(request)}
        for link in formset.deleted_objects:
            detach(agent, getattr(link, end), **by)
        for link in formset.new_objects:
            attach(agent, getattr(link, end), **by)

    @display(description="State", label={"running": "info", "error": "danger"})
    def shown_state(self, obj: Agent) -> str:
        return obj.state

    @display(description="Last active")
    def seen(self, obj: Agent) -> Any:
        return show.when(obj.last_active_at)


class BlockForm(TenantForm):
    def clean(self) -> Any:
        cleaned = super().clean()
        value, limit = self.cleaned_data.get("value"), self.cleaned_data.get("limit")
        if limit is not None and limit < 1:
            self.add_error("limit", "The limit is at least 1.")
        elif value is not None and limit is not None and len(value) > limit:
            self.add_error("value", over_limit(value, limit))
        return cleaned


@admin.register(Block)
class BlockAdmin(TenantAdmin):
    form = BlockForm
    resource = "agent"
    records = blocks
    list_display = ("label", "shown_value", "user_link", "size", "version", "created")
    list_select_related = ("user",)
    search_fields = ("label__startswith", "external_id__startswith")
    search_help_text = "The start of a label or an external id"
    list_filter = (
        ("user", AutocompleteSelectFilter),
        ("is_template", BooleanRadioFilter),
        ("read_only", BooleanRadioFilter),
    )
    inlines = (BlockHolders,)
    fieldsets = (
        (
            None,
            {
                "fields": [
                    ("label", "external_id"),
                    "value",
                    ("limit", "version"),
                    "description",
                    ("user", "read_only"),
                    ("is_template", "template_name"),
                ]
            },
        ),
    )
    readonly_fields = ("version",)

    @display(description="Value")
    def shown_value(self, obj: Block) -> Any:
        return show.clipped(obj.value, 90)

    @display(description="Characters")
    def size(self, obj: Block) -> str:
        return f"{len(obj.value):,} of {obj.limit:,}"


@admin.register(Tool)
class ToolAdmin(TenantAdmin):
    resource = "agent"
    records = tools
    list_display = ("name", "shown_description", "source_type", "shown_tags", "created")
    search_fields = ("name__istartswith",)
    search_help_text = "The start of a name"
    list_filter = (("source_type", ChoicesDropdownFilter),)
    inlines = (ToolHolders,)
    fieldsets = (
        (
            None,
            {"fields": [("name", "source_type"), "description", "tags"]},
        ),
        ("Definition", {"fields": ["json_schema", "source_code"]}),
    )

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        field = super().formfield_for_dbfield(db_field, request, **kwargs)
        if db_field.name == "source_code":
            field.widget.attrs["class"] += " am-json-area"
            field.help_text = "Stored and shown, never run."
        if db_field.name == "tags":
            field.widget.attrs["rows"] = 1
            field.help_text = "Separated by commas."
        return field

    @display(description="Description")
    def shown_description(self, obj: Tool) -> Any:
        return show.clipped(obj.description, 90)

    @display(description="Tags")
    def shown_tags(self, obj: Tool) -> Any:
        return show.badges(obj.tags)


@admin.register(Memory)
class MemoryAdmin(TenantAdmin):
    resource = "memory"
    records = memories
    list_display = (
        "shown_content",
        "shown_type",
        "user_link",
        "agent_link",
        "importance",
        "embedded",
        "created",
    )
    list_select_related = ("user", "agent")
    search_fields = ("external_id",)  # and full text: get_search_results
    search_help_text = "Words of the memory, or its external id"
    list_filter = (
        ("memory_type", ChoicesDropdownFilter),
        ("scope", ChoicesDropdownFilter),
        ("level", ChoicesDropdownFilter),
        ("embedding_state", ChoicesDropdownFilter),
        ("user", AutocompleteSelectFilter),
        ("agent", AutocompleteSelectFilter),
        ("session_id", ExactTextFilter),
    )
    fieldsets = (
        (
            None,
            {
                "fields": [
                    "content",
                    ("speaker", "external_id"),
                    "context",
                    ("user", "agent"),
                    ("session_id", "session_page"),
                ]
            },
        ),
        (
            "Kind and weight",
            {"fields": [("memory_type", "scope"), ("level", "importance"), "expires_at"]},
        ),
    )
    readonly_fields = (
        "session_page",
        "version",
        "accessed",
        "access_count",
        "embedding_badge",
        "embedding_model",
        "embedding_attempts",
        "embedding_error",
    )
    change_form_outer_after_template = "console/memory_history.html"

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        sets = super().get_fieldsets(request, obj)
        if obj is None:
            return sets
        search: list[Any] = [
            ("embedding_badge", "embedding_model"),
            ("access_count", "accessed"),
            ("version", "embedding_attempts"),
        ]
        if obj.embedding_error:
            search.append("embedding_error")
        return [*sets[:2], ("Search", {"fields": search}), *sets[2:]]

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        field = super().formfield_for_dbfield(db_field, request, **kwargs)
        help_texts = {
            "context": "What was said just before. Searched by keyword, not embedded.",
            "importance": "From 0 to 1.",
            "session_id": "The session's session_id: a memory outlives its session.",
        }
        if db_field.name in help_texts:
            field.help_text = help_texts[db_field.name]
        if db_field.name == "importance":
            field.widget.attrs.update(min=0, max=1, step="any")
        return field

    def get_search_results(self, request: HttpRequest, rows: Any, term: str) -> tuple[Any, bool]:
        term = search_term(term)
        if not term:
            return rows, False
        if (record_id := parsed_id(term)) is not None:
            return rows.filter(pk=record_id), False
        matching = rows.matching(term)
        return rows.filter(Q(pk__in=matching.order_by().values("pk")) | Q(external_id=term)), False

    def render_change_form(self, request: HttpRequest, context: Any, **kwargs: Any) -> Any:
        obj = kwargs.get("obj")
        if obj is not None:
            rows = MemoryHistory.objects.for_organization(obj.organization).filter(memory=obj)
            changes = list(rows.order_by("-version", "-id")[:HISTORY_SHOWN])
            names = show.names_of((c.changed_by_id for c in changes), obj.organization)
            context["changes"] = [
                (change, names.get(change.changed_by_id, ""), _parts_since(before, change))
                for change, before in zip_longest(changes, changes[1:])
            ]
        return super().render_change_form(request, context, **kwargs)

    @display(description="Memory")
    def shown_content(self, obj: Memory) -> Any:
        return show.clipped(f"{obj.speaker}: {obj.content}" if obj.speaker else obj.content, 110)

    @display(description="Type")
    def shown_type(self, obj: Memory) -> str:
        return obj.get_memory_type_display()

    @display(
        description="Embedding",
        label={
            "Ready": "success",
            "Pending": "info",
            "Failed": "danger",
            "Unreadable": "warning",
        },
    )
    def embedded(self, obj: Memory) -> str:
        return obj.get_embedding_state_display()

    @display(description="Embedding")
    def embedding_badge(self, obj: Memory) -> Any:
        kinds = {"ready": "good", "pending": "info", "failed": "bad", "unreadable": "warn"}
        return show.badge(obj.get_embedding_state_display(), kinds[obj.embedding_state])

    @display(description="Last found")
    def accessed(self, obj: Memory) -> Any:
        return show.when(obj.last_accessed)

    @display(description="Session")
    def session_page(self, obj: Memory) -> Any:
        """A link to the session, by its key; the page belongs to another app."""
        if not obj.session_id:
            return show.NOTHING
        url = reverse("admin:agent_sessions_session_changelist", query={"q": obj.session_id})
        return format_html('<a class="am-link" href="{}">Find the session</a>', url)


def _parts_since(before: MemoryHistory | None, change: MemoryHistory) -> list[tuple[Op, str]]:
    """The diff of the content; empty if it did not change, or is too long."""
    if before is None or before.content == change.content:
        return []
    if len(before.content) + len(change.content) > MAX_COMPARED:
        return []
    return diff_texts(before.content, change.content, max_steps=MAX_COMPARED).parts
