"""The base of every list and form of the console: rows of one organization, changed by services."""

from collections.abc import Sequence
from typing import Any

from django.contrib.admin import ShowFacets
from django.contrib.admin.utils import flatten, unquote
from django.db import models
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from unfold.contrib.filters.admin import AutocompleteSelectFilter

from accounts.console import show
from accounts.console.addresses import CheckedParameters
from accounts.console.columns import RecordColumns
from accounts.console.context import actor_of, member_of, parsed_id, sole_organization
from accounts.console.form_digests import read_digests
from accounts.console.forms import (
    AS_SHOWN,
    JsonArea,
    PrettyJsonField,
    TenantForm,
    edited_texts,
    organization_choice,
)
from accounts.console.history import HistoryPage
from accounts.console.inlines import LinkFormSet
from accounts.console.lists import BoundedPaginator, DayRangeFilter, TenantChangeList, search_term
from accounts.console.moves import TrashMoves
from accounts.console.references import ReferenceFields
from accounts.console.related import related_lists
from accounts.errors import ServiceError
from accounts.roles import VIEW_AUDIT


class TenantAdmin(ReferenceFields, CheckedParameters, TrashMoves, HistoryPage, RecordColumns):
    """A subclass declares its `resource` (a name from accounts/roles.py), its `records` (the
    service), and the fields of its list and form."""

    shows_related = False
    view_on_site = False

    form = TenantForm
    paginator = BoundedPaginator
    show_full_result_count = False
    show_facets = ShowFacets.NEVER  # a count per choice, over the whole table
    list_per_page = 50
    list_max_show_all = 0
    list_disable_select_all = True
    list_filter_submit = True
    sortable_by: Sequence[str] = ("created",)
    change_form_before_template = "console/as_shown.html"
    change_form_outer_before_template = "console/trash_banner.html"
    formfield_overrides = {models.JSONField: {"form_class": PrettyJsonField, "widget": JsonArea}}
    # FieldDigests on every form below its own fields.
    folded: Sequence[tuple[str, Sequence[Any]]] = (("Metadata", ["metadata"]),)
    record_fields: Sequence[Any] = (
        ("id", "organization_link"),
        ("created", "created_by"),
        ("updated", "updated_by"),
    )

    # -- the list --------------------------------------------------------------------------------

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[TenantChangeList]:
        return TenantChangeList

    def get_list_display(self, request: HttpRequest) -> list[Any]:
        columns = [*super().get_list_display(request)]
        if member_of(request).is_superuser and self._has_organization:
            columns.insert(1, "organization")
        return [*columns, "deleted"] if self._is_trash(request) else columns

    def get_list_select_related(self, request: HttpRequest) -> Any:
        related = tuple(self.list_select_related or ())
        return (*related, "organization") if self._has_organization else related

    def get_list_filter(self, request: HttpRequest) -> list[Any]:
        filters: list[Any] = [*super().get_list_filter(request)]
        if member_of(request).is_superuser and self._has_organization:
            filters.insert(0, ("organization", AutocompleteSelectFilter))
        return [*filters, ("created_at", DayRangeFilter), *self.trash_filters]

    def get_search_results(self, request: HttpRequest, rows: Any, term: str) -> tuple[Any, bool]:
        """Rows where one of `search_fields` matches the term, or whose id it is."""
        term = search_term(term)
        if not term:
            return rows, False
        match = models.Q()
        for lookup in self.get_search_fields(request):
            match |= models.Q(**{lookup: term})
        if (record_id := parsed_id(term)) is not None:
            match |= models.Q(pk=record_id)
        return rows.filter(match), False

    # -- the form --------------------------------------------------------------------------------

    def get_form(self, request: HttpRequest, obj: Any = None, **kwargs: Any) -> Any:
        if obj is None and self._chooses_organization(request):
            choice = organization_choice(self.model, self.admin_site)
            kwargs["form"] = type("PlatformForm", (self.form,), {"for_organization": choice})
        form = super().get_form(request, obj, **kwargs)
        form.request = request
        return form

    def _chooses_organization(self, request: HttpRequest) -> bool:
        return self._has_organization and sole_organization(request) is None

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        sets = [*(self.fieldsets or ())]
        if obj is None and self._chooses_organization(request):
            sets.insert(0, (None, {"fields": ["for_organization"]}))
        sets += [
            (name, {"fields": fields, "classes": ["collapse"]}) for name, fields in self.folded
        ]
        if obj is not None:
            fields = self.record_fields
            sets.append(("Record", {"fields": fields, "classes": ["collapse"]}))
        return sets

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Sequence[Any]:
        return [
            *super().get_readonly_fields(request, obj),
            *flatten([*self.record_fields]),
        ]

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        """The form; or, if the service refuses the values, the form again with its message."""

        form_page = super().changeform_view

        def page() -> Any:
            refused = self._not_saved(request, object_id) if object_id is not None else None
            return refused or form_page(request, object_id, form_url, extra_context)

        try:
            return page()
        except ServiceError as refusal:
            request.refusal = refusal  # type: ignore[attr-defined]
            return page()

    def _not_saved(self, request: HttpRequest, object_id: str) -> HttpResponse | None:
        """The response to a save of a row that was purged or is in the trash, with the texts that
        the person typed. None if the row is live."""
        if request.method != "POST" or not self.has_change_permission(request):
            return None
        obj = self.get_object(request, unquote(object_id))
        if obj is None:
            is_deleted = bool(read_digests(request.POST.get(AS_SHOWN), unquote(object_id)))
        else:
            is_deleted = getattr(obj, "is_deleted", False)
        if not is_deleted:
            return None
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": "Not saved",
            "object": obj,
            "object_url": show.url_of(obj) if obj is not None else "",
            "list_url": self._list_url(),
            "typed": edited_texts(self.opts, request.POST, unquote(object_id)),
        }
        request.current_app = self.admin_site.name
        return TemplateResponse(request, "console/not_saved.html", context, status=409)

    def get_inline_formsets(
        self, request: HttpRequest, formsets: Any, inline_instances: Any, obj: Any = None
    ) -> Any:
        for formset in formsets:
            if formset.is_bound and isinstance(formset, LinkFormSet):
                formset.drop_deleted()
        return super().get_inline_formsets(request, formsets, inline_instances, obj)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        names = form.changed_data if change else list(form.cleaned_data)
        columns = {field.name for field in self.opts.concrete_fields}
        values = {name: form.cleaned_data[name] for name in names if name in columns}
        if change:
            saved = self.update(request, obj, values, form)
        else:
            saved = self.create(request, form.chosen_organization(), values, form)
        vars(obj).update(vars(saved))

    def create(self, request: HttpRequest, organization: Any, values: Any, form: Any) -> Any:
        return self.records.create(
            organization=organization, actor=actor_of(request), values=values
        )

    def update(self, request: HttpRequest, obj: Any, values: Any, form: Any) -> Any:
        return self.records.update(
            obj,
            organization=self.organization_of(obj),
            actor=actor_of(request),
            values=values,
            seen=form.seen,
        )

    def render_change_form(self, request: HttpRequest, context: Any, **kwargs: Any) -> Any:
        obj = kwargs.get("obj")
        context["show_history"] = member_of(request).has_perm(VIEW_AUDIT)
        context["show_save_and_add_another"] = False
        if obj is None:
            context["show_save_and_continue"] = False
        if obj is not None:
            if self.shows_related:
                organization = self.organization_of(obj)
                context["related"] = related_lists(self.admin_site, obj, organization)
            context["can_restore"] = self.has_restore_permission(request, obj)
            context["can_purge"] = self.has_purge_permission(request, obj)
            context["title"] = str(obj)
            context["subtitle"] = None
        return super().render_change_form(request, context, **kwargs)
