"""The rows of a page of the console, and what the member may do with them."""

from collections.abc import Sequence
from typing import Any

from django.http import HttpRequest
from unfold.admin import ModelAdmin

from accounts.console import show
from accounts.console.context import member_of, seen_by
from accounts.console.lists import TrashFilter
from accounts.models import Member, Organization
from accounts.roles import permission
from accounts.services.records import Records

IN_TRASH = "is_deleted"


class TenantRows(ModelAdmin):
    """The rows of one organization (a platform superuser sees all), and permissions by role."""

    resource: str
    records: Records[Any]
    can_purge = True
    trash_filters: Sequence[Any] = (TrashFilter,)

    # -- permissions -----------------------------------------------------------------------------

    def permission_for(self, verb: str) -> str:
        """The permission that the role needs to `read`, `write` or `delete`."""
        return permission(self.resource, verb)

    def is_allowed(self, request: HttpRequest, verb: str) -> bool:
        # The sign-in page calls this too, without a member.
        return isinstance(request.user, Member) and request.user.has_perm(self.permission_for(verb))

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.is_allowed(request, "read")

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.is_allowed(request, "read")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return self.is_allowed(request, "write")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.is_allowed(request, "write") and not getattr(obj, "is_deleted", False)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.is_allowed(request, "delete") and not getattr(obj, "is_deleted", False)

    def has_restore_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.is_allowed(request, "delete") and getattr(obj, "is_deleted", True)

    def has_purge_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.can_purge and self.has_restore_permission(request, obj)

    # -- rows ------------------------------------------------------------------------------------

    def get_queryset(self, request: HttpRequest) -> Any:
        """The organization's rows, including the trash: TrashFilter hides those in lists, and a
        row in the trash has a page."""
        rows = seen_by(request, self.model._default_manager.all())
        return rows.order_by(*self.get_ordering(request))

    def get_ordering(self, request: HttpRequest) -> Sequence[str]:
        """Newest first, in index order; for a superuser by organization first."""
        moment = "-deleted_at" if self._is_trash(request) else "-created_at"
        if member_of(request).is_superuser and self._has_organization:
            return ("-organization_id", moment, "-id")
        return (moment, "-id")

    def organization_of(self, obj: Any) -> Any:
        return obj.organization

    def rows_of(self, obj: Any) -> Any:
        """A queryset of only this row, for the services."""
        rows: Any = self.model._default_manager.all()
        return rows.for_organization(self.organization_of(obj)).filter(pk=obj.pk)

    @property
    def _has_organization(self) -> bool:
        return any(field.name == "organization" for field in self.opts.fields)

    def _is_trash(self, request: HttpRequest) -> bool:
        return bool(self.trash_filters) and request.GET.get(IN_TRASH) == "1"

    def _by_organization(self, rows: Any) -> list[tuple[Any, Any]]:
        if not self._has_organization:
            return [(row, rows.filter(pk=row.pk)) for row in rows]
        ids = list(rows.order_by().values_list("organization_id", flat=True).distinct())
        organizations: dict[Any, Any] = {
            **Organization.objects.in_bulk([i for i in ids if i]),
            None: None,
        }
        return [(organizations[i], rows.order_by().for_organization(organizations[i])) for i in ids]

    def _list_url(self) -> str:
        return show.list_url(self.model)
