"""The history page of a row: its audit events."""

from typing import Any

from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest
from django.template.response import TemplateResponse

from accounts.console import show
from accounts.console.context import member_of
from accounts.console.lists import BoundedPaginator
from accounts.console.rows import TenantRows
from accounts.models import AuditEvent
from accounts.roles import VIEW_AUDIT

AUDIT_PAGE = 50


class HistoryPage(TenantRows):
    object_history_template = "console/history.html"

    def log_addition(self, *args: Any) -> None:
        """Django's own log is not used (it has no wall): services write audit events."""

    log_change = log_deletions = log_addition

    def history_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> Any:
        """The audit events of this row."""
        obj = self.get_object(request, unquote(object_id))
        if obj is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)
        if not self.has_view_permission(request, obj) or not member_of(request).has_perm(
            VIEW_AUDIT
        ):
            raise PermissionDenied
        events = AuditEvent.objects.for_organization(self.organization_of(obj))
        events = events.filter(resource_id=obj.pk).order_by("-created_at", "-id")
        page = BoundedPaginator(events, AUDIT_PAGE).get_page(request.GET.get("p", 1))
        context = {
            **self.admin_site.each_context(request),
            "title": f"History: {obj}",
            "opts": self.opts,
            "original": obj,
            "object": obj,
            "page": page,
            "events": [(event, show.change_words(event.changes)) for event in page],
        }
        request.current_app = self.admin_site.name
        return TemplateResponse(request, self.object_history_template, context)
