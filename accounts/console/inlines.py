"""Inlines: rows that can be attached to the row of a page, and detached from it."""

from typing import Any

from django.http import HttpRequest
from unfold.admin import TabularInline
from unfold.forms import PaginationInlineFormSet

from accounts.console.context import seen_by
from accounts.console.forms import TenantForm
from accounts.console.references import ReferenceFields
from accounts.models import Organization


class LinkForm(TenantForm):
    """A row of an inline, in the organization of its parent.

    A row that somebody else has detached in the meantime is ignored.
    """

    parent: Any = None
    is_deleted = False
    as_shown = None  # type: ignore[assignment]  # (links are never edited)

    def full_clean(self) -> None:
        if self.is_deleted:
            self._errors, self.cleaned_data = self.error_class(), {}
        else:
            super().full_clean()

    def has_changed(self) -> bool:
        return not self.is_deleted and super().has_changed()

    def chosen_organization(self) -> Organization | None:
        return self.parent.organization


class LinkFormSet(PaginationInlineFormSet):
    dropped = 0

    def _construct_form(self, i: int, **kwargs: Any) -> Any:
        form = super()._construct_form(i, **kwargs)
        form.parent = self.instance
        is_of_a_row = self.is_bound and i < self.initial_form_count()
        form.is_deleted = is_of_a_row and form.instance._state.adding
        return form

    def initial_form_count(self) -> int:
        return super().initial_form_count() - self.dropped

    def drop_deleted(self) -> None:
        """Removes the forms of rows that no longer exist, before the forms are shown again."""
        kept = [form for form in self if not form.is_deleted]
        self.dropped += len(self) - len(kept)
        self.forms = kept


class LinkInline(ReferenceFields, TabularInline):
    """Links of a row: attached and detached here, never edited. The parent's page does that in
    `save_formset`, through the services."""

    form = LinkForm
    formset = LinkFormSet
    extra = 0
    hide_title = True

    def get_formset(self, request: HttpRequest, obj: Any = None, **kwargs: Any) -> Any:
        formset = super().get_formset(request, obj, **kwargs)
        formset.form.request, formset.form.parent = request, obj
        return formset

    def get_queryset(self, request: HttpRequest) -> Any:
        rows = seen_by(request, self.model._default_manager.live())
        return rows.select_related(*self.fields).order_by("created_at", "id")

    def _is_allowed(self, request: HttpRequest, verb: str) -> bool:
        page = self.admin_site.get_model_admin(self.parent_model)
        return page.is_allowed(request, verb)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._is_allowed(request, "read")

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._is_allowed(request, "write")

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._is_allowed(request, "write")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
