"""Every route of the API."""

from django.urls import re_path
from rest_framework.routers import SimpleRouter

from accounts.api.views import (
    ApiKeyViewSet,
    AuditEventViewSet,
    MemberViewSet,
    MeView,
)
from agentmem_site.api.bulk import (
    AgentBulkViewSet,
    BlockBulkViewSet,
    MemoryBulkViewSet,
    MessageBulkViewSet,
    SessionBulkViewSet,
    ToolBulkViewSet,
    UserBulkViewSet,
)
from agentmem_site.api.retention import SweptOrganizationViewSet
from memories.api.adding import MemoryBatchViewSet
from memories.api.changing import MemoryBulkDeleteViewSet, MemoryBulkUpdateViewSet
from memories.api.duplicates import MemoryDuplicatesViewSet
from memories.api.export import MemoryExportViewSet
from memories.api.merging import MemoryMergeViewSet
from memories.api.search import SearchBatchViewSet, SearchViewSet
from memories.api.stats import MemoryStatsViewSet
from memories.api.versions import MemoryDiffViewSet
from memories.api.views import (
    AgentBlockViewSet,
    AgentMemoryViewSet,
    AgentToolViewSet,
    AgentViewSet,
    BlockViewSet,
    MemoryHistoryViewSet,
    MemoryViewSet,
    ToolViewSet,
)
from sessions.api.context import AgentContextViewSet
from sessions.api.people import PeopleViewSet
from sessions.api.views import (
    AgentMessageViewSet,
    AgentSessionViewSet,
    MessageViewSet,
    RunViewSet,
    SessionMessageViewSet,
    SessionViewSet,
)


class Router(SimpleRouter):
    """Routes that answer with and without the trailing slash."""

    def __init__(self) -> None:
        super().__init__()
        self.trailing_slash = "/?"


_AGENT = "agents/(?P<agent_id>[^/]+)"
_MEMORY = "memories/(?P<memory_id>[^/]+)"
_SESSION = "sessions/(?P<session_id>[^/]+)"

router = Router()
for prefix, viewset, basename in [
    ("organizations", SweptOrganizationViewSet, "organizations"),
    ("members", MemberViewSet, "members"),
    ("api-keys", ApiKeyViewSet, "api-keys"),
    ("audit-events", AuditEventViewSet, "audit-events"),
    ("users/bulk", UserBulkViewSet, "user-bulk"),
    ("agents/bulk", AgentBulkViewSet, "agent-bulk"),
    ("blocks/bulk", BlockBulkViewSet, "block-bulk"),
    ("tools/bulk", ToolBulkViewSet, "tool-bulk"),
    ("sessions/bulk", SessionBulkViewSet, "session-bulk"),
    ("messages/bulk", MessageBulkViewSet, "message-bulk"),
    ("memories/bulk", MemoryBulkViewSet, "memory-bulk"),
    ("users", PeopleViewSet, "users"),
    ("agents", AgentViewSet, "agents"),
    (f"{_AGENT}/blocks", AgentBlockViewSet, "agent-blocks"),
    (f"{_AGENT}/tools", AgentToolViewSet, "agent-tools"),
    (f"{_AGENT}/sessions", AgentSessionViewSet, "agent-sessions"),
    (f"{_AGENT}/memories", AgentMemoryViewSet, "agent-memories"),
    (f"{_AGENT}/messages", AgentMessageViewSet, "agent-messages"),
    (f"{_AGENT}/context", AgentContextViewSet, "agent-context"),
    ("blocks", BlockViewSet, "blocks"),
    ("tools", ToolViewSet, "tools"),
    ("sessions", SessionViewSet, "sessions"),
    (f"{_SESSION}/runs", RunViewSet, "session-runs"),
    (f"{_SESSION}/messages", SessionMessageViewSet, "session-messages"),
    ("messages", MessageViewSet, "messages"),
    ("memories/export", MemoryExportViewSet, "memory-export"),
    ("memories/search", SearchViewSet, "memory-search"),
    ("memories/search/batch", SearchBatchViewSet, "memory-search-batch"),
    ("memories/batch", MemoryBatchViewSet, "memory-batch"),
    ("memories", MemoryStatsViewSet, "memory-stats"),
    ("memories", MemoryDuplicatesViewSet, "memory-duplicates"),
    ("memories/batch", MemoryBulkUpdateViewSet, "memory-batch-update"),
    ("memories/batch", MemoryBulkDeleteViewSet, "memory-batch-delete"),
    ("memories", MemoryViewSet, "memories"),
    (_MEMORY, MemoryMergeViewSet, "memory-merge"),
    (f"{_MEMORY}/history", MemoryHistoryViewSet, "memory-history"),
    (f"{_MEMORY}/history", MemoryDiffViewSet, "memory-diff"),
]:
    router.register(prefix, viewset, basename)

urlpatterns = [
    re_path(r"^me/?$", MeView.as_view(), name="me"),
    *router.urls,
]
