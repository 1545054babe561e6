"""Columns that lists and forms of several models show."""

from typing import Any

from unfold.decorators import display

from accounts.console import show
from accounts.console.rows import TenantRows


class RecordColumns(TenantRows):
    @display(description="Created", ordering="created_at")
    def created(self, obj: Any) -> Any:
        return show.when(obj.created_at)

    @display(description="Last changed")
    def updated(self, obj: Any) -> Any:
        return show.when(obj.updated_at)

    @display(description="Deleted")
    def deleted(self, obj: Any) -> Any:
        return show.when(obj.deleted_at)

    @display(description="Created by")
    def created_by(self, obj: Any) -> Any:
        return self._name(obj, obj.created_by_id)

    @display(description="Last changed by")
    def updated_by(self, obj: Any) -> Any:
        return self._name(obj, obj.last_updated_by_id)

    @display(description="User")
    def user_link(self, obj: Any) -> Any:
        return show.link(obj.user)

    @display(description="Agent")
    def agent_link(self, obj: Any) -> Any:
        return show.link(obj.agent)

    @display(description="Organization")
    def organization_link(self, obj: Any) -> Any:
        return show.link(self.organization_of(obj))

    def _name(self, obj: Any, record_id: Any) -> str:
        if not hasattr(obj, "_names"):
            ids = (obj.created_by_id, obj.last_updated_by_id)
            obj._names = show.names_of(ids, self.organization_of(obj))
        return obj._names.get(record_id, show.NOTHING if record_id is None else "someone deleted")
