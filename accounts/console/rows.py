"""Which rows a page of the console shows, and what its viewer may do with them."""

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

    # -- who may do what -------------------------------------------------------------------------

    def permission_for(self, verb: str) -> str:
        """`read`, `write` or `delete` -> the word that the role has to hold."""
        return permission(self.resource, verb)

    def is_allowed(self, request: HttpRequest, verb: str) -> bool:
        # The sign-in page asks too, for nobody.
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
        """The organization's rows, those in the trash too: lists leave them out by TrashFilter,
        a page of one shows it as it lies there."""
        rows = seen_by(request, self.model._default_manager.all())
        return rows.order_by(*self.get_ordering(request))

    def get_ordering(self, request: HttpRequest) -> Sequence[str]:
        """Newest first, along the index; a superuser's list goes organization by organization."""
        moment = "-deleted_at" if self._is_trash(request) else "-created_at"
        if member_of(request).is_superuser and self._has_organization:
            return ("-organization_id", moment, "-id")
        return (moment, "-id")

    def organization_of(self, obj: Any) -> Any:
        return obj.organization

    def rows_of(self, obj: Any) -> Any:
        """The row itself, as services take it."""
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
        found = list(rows.order_by().values_list("organization_id", flat=True).distinct())
        organizations: dict[Any, Any] = {
            **Organization.objects.in_bulk([i for i in found if i]),
            None: None,
        }
        return [
            (organizations[i], rows.order_by().for_organization(organizations[i])) for i in found
        ]

    def _list_url(self) -> str:
        return show.list_url(self.model)
