"""The routes of the API from the URL configuration, and a body for each resource."""

import re
from typing import Any, NamedTuple

from agentmem_site.api.router import router

BODIES: dict[str, dict[str, Any]] = {
    "organizations": {"name": "Acme Ltd"},
    "members": {"email": "bob@acme.example", "role": "user"},
    "api-keys": {"name": "ci", "scopes": ["memory:read"]},
    "users": {"external_id": "u:1", "name": "Ann"},
    "agents": {"external_id": "a.1", "name": "Barista", "llm_config": {"model": "small"}},
    "blocks": {"external_id": "b 1", "label": "persona", "value": "Kind.", "limit": 10},
    "tools": {"name": "weather", "tags": ["web"], "source_code": " pass\n"},
    "sessions": {"session_id": "cafe:1.b", "name": "Morning", "state": {"step": 1}},
    "session-runs": {"run_id": "r:1", "status": "completed", "total_tokens": 12},
    "session-messages": {"role": "user", "text": "Hello!"},
    "messages": {"external_id": "m-1", "role": "user", "text": " Hello! ", "content": [1, None]},
    "agent-context": {"query": "tea"},
    "memory-search": {"query": "tea"},
    "memory-search-batch": {"searches": [{"query": "tea"}]},
    "memory-batch": {"memories": [{"content": "Likes tea."}]},
    "memories": {"external_id": "f-1", "content": "Likes tea.", "importance": 0.1},
}


class Route(NamedTuple):
    name: str  # "session-runs-detail"
    basename: str  # "session-runs"
    template: str  # "sessions/{session_id}/runs/{run_id}"
    method: str
    action: str
    view: Any

    @property
    def id(self) -> str:
        return f"{self.method.upper()} {self.template}"

    @property
    def kwargs(self) -> list[str]:
        return re.findall(r"\{(\w+)\}", self.template)

    def path(self, **ids: Any) -> str:
        return "/api/v1/" + self.template.format(**ids)


def routes() -> list[Route]:
    found = []
    for url in router.urls:
        template = re.sub(r"\(\?P<(\w+)>\[\^/\]\+\)", r"{\1}", url.pattern.regex.pattern)
        template = template.removeprefix("^").removesuffix("$").removesuffix(r"/?").rstrip("\\Z")
        view = url.callback.cls
        for method, action in url.callback.actions.items():
            if method in view.http_method_names and method != "head":
                found.append(
                    Route(
                        url.name,
                        url.callback.initkwargs["basename"],
                        template,
                        method,
                        action,
                        view,
                    )
                )
    return found


ROUTES = routes()
