"""The newest rows that refer to the row of a page."""

from typing import Any

from django.contrib.admin import AdminSite

from accounts.console import show
from agentmem_site.db.fields import TenantForeignKey

SHOWN = 5  # rows of each model


def related_lists(site: AdminSite, row: Any, organization: Any) -> list[dict[str, Any]]:
    """The newest rows of each model that refer to this row. One bounded statement per model."""
    lists = []
    for relation in row._meta.related_objects:
        model, reference = relation.related_model, relation.field
        if not isinstance(reference, TenantForeignKey) or not site.is_registered(model):
            continue
        rows = model._default_manager.for_organization(organization).filter(
            **{reference.name: row.pk}, is_deleted=row.is_deleted
        )
        rows = list(rows.newest_first()[: SHOWN + 1])
        lists.append(
            {
                "title": model._meta.verbose_name_plural,
                "rows": [(show.link(r), show.when(r.created_at)) for r in rows[:SHOWN]],
                "has_more": len(rows) > SHOWN,
                "url": show.list_url(model, **{f"{reference.name}__id__exact": row.pk}),
            }
        )
    return lists
