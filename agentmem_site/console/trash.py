"""The trash: the rows of each model that were deleted last."""

from typing import Any

from django.contrib.admin import AdminSite
from django.db import models
from django.http import HttpRequest

from accounts.console import TenantAdmin, show
from accounts.console.context import seen_by
from agentmem_site.db.fields import TenantForeignKey

SHOWN = 10


def trash_lists(site: AdminSite, request: HttpRequest) -> list[dict[str, Any]]:
    """One bounded statement per model. Rows that were deleted with their parent are not listed:
    they are restored with it."""
    lists = []
    for model, page in site._registry.items():
        if not isinstance(page, TenantAdmin) or not page.trash_filters:
            continue
        if not page.has_view_permission(request):
            continue
        everything: Any = model._default_manager.all()
        rows = list(_roots(seen_by(request, everything.deleted()))[: SHOWN + 1])
        if rows:
            lists.append(
                {
                    "title": model._meta.verbose_name_plural,
                    "url": show.list_url(model, is_deleted=1),
                    "has_more": len(rows) > SHOWN,
                    "rows": [_row(page, request, row) for row in rows[:SHOWN]],
                }
            )
    return lists


def _roots(rows: Any) -> Any:
    for field in rows.model._meta.fields:
        if isinstance(field, TenantForeignKey) and field.remote_field.on_delete is models.CASCADE:
            rows = rows.exclude(**{f"{field.name}__is_deleted": True})
    return rows.order_by("-deleted_at", "-id")


def _row(page: TenantAdmin, request: HttpRequest, row: Any) -> dict[str, Any]:
    may_restore = page.has_restore_permission(request, row)
    may_purge = page.has_purge_permission(request, row)
    return {
        "link": show.link(row),
        "deleted": show.when(row.deleted_at),
        "restore_url": show.url_of(row, "restore") if may_restore else "",
        "purge_url": show.url_of(row, "purge") if may_purge else "",
    }
