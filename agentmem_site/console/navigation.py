"""The sidebar, and what every page of the console shows."""

from typing import Any

from django.http import HttpRequest
from django.templatetags.static import static
from django.urls import reverse

from accounts.models import Member
from accounts.roles import MANAGE_KEYS, VIEW_AUDIT, permission

# Title, icon, page, and the permission that it needs.
_GROUPS: tuple[tuple[str, tuple[tuple[str, str, str, str], ...]], ...] = (
    ("", (("Overview", "space_dashboard", "index", ""),)),
    (
        "Agents",
        (
            ("Agents", "smart_toy", "memories_agent", permission("agent", "read")),
            ("Blocks", "view_agenda", "memories_block", permission("agent", "read")),
            ("Tools", "build", "memories_tool", permission("agent", "read")),
        ),
    ),
    (
        "Memories",
        (("Memories", "neurology", "memories_memory", permission("memory", "read")),),
    ),
    (
        "Conversations",
        (
            ("Sessions", "forum", "agent_sessions_session", permission("session", "read")),
            ("Runs", "play_circle", "agent_sessions_run", permission("session", "read")),
            ("Messages", "chat_bubble", "agent_sessions_message", permission("session", "read")),
        ),
    ),
    ("People", (("Users", "group", "accounts_user", permission("user", "read")),)),
    (
        "Organization",
        (
            ("Settings", "domain", "accounts_organization", permission("organization", "read")),
            ("Members", "badge", "accounts_member", permission("organization", "read")),
            ("API keys", "key", "accounts_apikey", MANAGE_KEYS),
            ("Audit log", "history", "accounts_auditevent", VIEW_AUDIT),
        ),
    ),
    (
        "",
        (
            ("Import", "upload_file", "upload", permission("memory", "write")),
            ("Trash", "delete", "trash", ""),
        ),
    ),
)


def sidebar(request: HttpRequest) -> list[dict[str, Any]]:
    member = request.user
    groups: list[dict[str, Any]] = []
    for title, pages in _GROUPS:
        items = [
            {"title": label, "icon": icon, "link": _url(page)}
            for label, icon, page, needed in pages
            if not needed or member.has_perm(needed)
        ]
        is_platform = title == "Organization" and getattr(member, "is_superuser", False)
        if is_platform:
            items[0]["title"] = "Organizations"
        elif title == "Organization":  # a member has one: link to its page instead of the list
            own = [getattr(member, "organization_id", None)]
            items[0]["link"] = reverse("admin:accounts_organization_change", args=own)
        groups.append(
            {
                "title": "Platform" if is_platform else title,
                "items": items,
                "separator": not title and bool(groups),
            }
        )
    return [group for group in groups if group["items"]]


def _url(page: str) -> str:
    return reverse(f"admin:{page}" if "_" not in page else f"admin:{page}_changelist")


def subheader(request: HttpRequest) -> str:
    """The organization whose rows are shown."""
    member = request.user
    if not isinstance(member, Member):
        return ""
    return str(member.organization) if member.organization else "All organizations"


def mark(request: HttpRequest) -> str:
    return static("agentmem/mark.svg")


def stylesheet(request: HttpRequest) -> str:
    return static("agentmem/console.css")


def script(request: HttpRequest) -> str:
    return static("agentmem/console.js")
