"""The OpenAPI schema: summaries in product terms, ids in paths, query strings."""

import re
from typing import Any

from drf_spectacular.openapi import AutoSchema
from drf_spectacular.utils import OpenApiParameter

from accounts.api.permissions import read_scope, required_scopes

_SUMMARIES = {
    "list": "List {plural}",
    "create": "Add {one}",
    "retrieve": "Show {one}",
    "by_key": "Show {one} by its key",
    "update": "Replace {one}",
    "partial_update": "Change {one}",
    "destroy": "Move {one} to the trash",
    "restore": "Restore {one} from the trash",
}


class RecordSchema(AutoSchema):
    view: Any

    def get_tags(self) -> list[str]:
        return [self.view.tag]

    def get_summary(self) -> str:
        words = getattr(self.view, "words", ("", ""))
        template = _SUMMARIES.get(getattr(self.view, "action", ""))
        if template is None or not all(words):
            return _first_line(self._handler().__doc__)
        one, plural = words
        article = "an" if one[0] in "aeioA" else "a"
        return template.format(one=f"{article} {one}", plural=plural)

    def get_description(self) -> str:  # type: ignore[override]
        text = re.sub(r"\s*\n\s*", " ", (self._handler().__doc__ or "").strip())
        return " ".join(filter(None, [text, self._needs()]))

    def _needs(self) -> str:
        scopes = required_scopes(self.view, self.method)
        if not scopes:
            return ""
        needs = f"Needs {' and '.join(f'`{scope}`' for scope in scopes)}."
        reads = read_scope(self.view)
        is_write = self.method in ("POST", "PUT", "PATCH")
        if not is_write or reads in scopes:
            return needs
        return f"{needs} Without `{reads}` {self.view.unread}."

    def _handler(self) -> Any:
        return getattr(self.view, getattr(self.view, "action", self.method.lower()), None)

    def get_override_parameters(self) -> list[Any]:
        query = getattr(self.view, "query_class", lambda: None)()
        has_query = query is not None and query().fields
        return [*self._path_parameters(), *([query] if has_query else [])]

    def _get_response_bodies(self, direction: Any = "response") -> dict[str, Any]:
        bodies: dict[str, Any] = super()._get_response_bodies(direction)
        is_put = getattr(self.view, "action", "") == "update"
        if is_put and getattr(self.view, "creates_by_put", False):
            bodies["201"] = bodies["200"]
        return bodies

    def _map_basic_serializer(self, serializer: Any, direction: Any) -> dict[str, Any]:
        schema: dict[str, Any] = super()._map_basic_serializer(serializer, direction)
        if model := getattr(getattr(serializer, "Meta", None), "model", None):
            schema["description"] = (model.__doc__ or "").partition("\n")[0]
        return schema

    def _path_parameters(self) -> list[OpenApiParameter]:
        names = getattr(self.view, "path_ids", {})
        return [
            OpenApiParameter(name, str, OpenApiParameter.PATH, description=names.get(name, "uuid"))
            for name in re.findall(r"\{(\w+)\}", self.path)
        ]


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0].rstrip(".")
