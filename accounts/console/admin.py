"""The base of every list and form of the console: rows of one organization, changed by services."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.contrib import messages
from django.contrib.admin import ShowFacets, action
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.options import IS_POPUP_VAR, TO_FIELD_VAR
from django.contrib.admin.utils import flatten, flatten_fieldsets, unquote
from django.contrib.admin.views.main import (
    ALL_VAR,
    ERROR_FLAG,
    ORDER_VAR,
    PAGE_VAR,
    SEARCH_VAR,
)
from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import PermissionDenied
from django.db import models, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from unfold.admin import ModelAdmin, TabularInline
from unfold.contrib.filters.admin import AutocompleteSelectFilter
from unfold.decorators import display
from unfold.forms import PaginationInlineFormSet

from accounts.console import show
from accounts.console.context import actor_of, member_of, parsed_id, seen_by, sole_organization
from accounts.console.forms import (
    AS_SHOWN,
    Autocomplete,
    JsonArea,
    PrettyJsonField,
    TenantForm,
    empty_of,
    organization_choice,
    touched_texts,
)
from accounts.console.lists import (
    BoundedPaginator,
    DayRangeFilter,
    TenantChangeList,
    TrashFilter,
    typed,
)
from accounts.console.parameters import (
    Check,
    check_parameters,
    check_sent,
    filter_parameters,
    fits,
    is_address,
    is_flag,
    is_id,
    is_number,
    is_text,
    one_of,
    refusals,
)
from accounts.console.shown import unsealed
from accounts.errors import ServiceError
from accounts.models import AuditEvent, Member, Organization
from accounts.roles import VIEW_AUDIT, permission
from accounts.services.hanging import Counts
from accounts.services.records import Records
from agentmem_site.db.fields import TenantForeignKey

# How far a confirmation page counts what hangs on a row.
REACH = 1_000
AUDIT_PAGE = 50
RELATED = 5  # rows of each kind on the page of what they refer to
IN_TRASH = "is_deleted"
PRESERVED = "_changelist_filters"  # the list's own parameters, carried along by its pages


@dataclass(frozen=True)
class Words:
    """How a confirmation page asks, and what is said when it is done."""

    question: str
    done: str
    consequence: str = ""
    is_danger: bool = True
    for_good: bool = False  # counts what lies in the trash too


TO_TRASH = Words(
    "Move to the trash",
    "Moved to the trash",
    "It can be restored from there, with all that went with it.",
)
RESTORE = Words(
    "Restore",
    "Restored",
    "What was deleted together with it comes back as well.",
    is_danger=False,
)
FOR_GOOD = Words("Delete for good", "Deleted for good", "This cannot be undone.", for_good=True)


class ReferenceFields:
    """How columns become form fields: JSON one can read, references by autocomplete, live rows."""

    admin_site: Any

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if isinstance(db_field, models.JSONField):
            kwargs["empty"] = empty_of(db_field)
        field = super().formfield_for_dbfield(  # type: ignore[misc]
            db_field, request, **kwargs
        )
        if isinstance(db_field, models.TextField) and field is not None:
            field.strip = False  # source code, prompts: what surrounds a text belongs to it
            if db_field.null:
                field.empty_value = None
        if isinstance(db_field, models.ForeignKey) and field is not None:
            wrapper = field.widget
            wrapper.can_add_related = wrapper.can_change_related = False
            wrapper.can_delete_related = False
        return field

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if isinstance(db_field, TenantForeignKey):
            kwargs["widget"] = Autocomplete(db_field, self.admin_site)
            kwargs["queryset"] = db_field.related_model._default_manager.none()
        return super().formfield_for_foreignkey(  # type: ignore[misc]
            db_field, request, **kwargs
        )


class TenantAdmin(ReferenceFields, ModelAdmin):
    """A subclass says its `resource` (a word of accounts/roles.py), its `records` (the services),
    and what stands on its list and form."""

    resource: str
    records: Records[Any]
    can_purge = True
    for_good = FOR_GOOD
    shows_related = False
    view_on_site = False
    # What the page of one row takes beside what all such pages do.
    takes: Mapping[str, Check] = {}

    form = TenantForm
    paginator = BoundedPaginator
    show_full_result_count = False
    show_facets = ShowFacets.NEVER  # a count per choice, over the whole table
    list_per_page = 50
    list_max_show_all = 0
    list_disable_select_all = True
    list_filter_submit = True
    sortable_by: Sequence[str] = ("created",)
    actions = ("move_to_trash", "restore_selected", "purge_selected")
    delete_confirmation_template = "console/confirm.html"
    object_history_template = "console/history.html"
    change_form_before_template = "console/as_shown.html"
    change_form_outer_before_template = "console/trash_banner.html"
    formfield_overrides = {models.JSONField: {"form_class": PrettyJsonField, "widget": JsonArea}}
    # Shown on every form below its own fields.
    folded: Sequence[tuple[str, Sequence[Any]]] = (("Metadata", ["metadata"]),)
    record_fields: Sequence[Any] = (
        ("id", "organization_link"),
        ("created", "created_by"),
        ("updated", "updated_by"),
    )

    # -- who may do what -------------------------------------------------------------------------

    def permission_for(self, verb: str) -> str:
        """`read`, `write` or `delete` -> the word that the role has to hold."""
        return permission(self.resource, verb)

    def _may(self, request: HttpRequest, verb: str) -> bool:
        # The sign-in page asks too, for nobody.
        return isinstance(request.user, Member) and request.user.has_perm(self.permission_for(verb))

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self._may(request, "read")

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may(request, "read")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return self._may(request, "write")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may(request, "write") and not getattr(obj, "is_deleted", False)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may(request, "delete") and not getattr(obj, "is_deleted", False)

    def has_restore_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may(request, "delete") and getattr(obj, "is_deleted", True)

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

    # -- what an address may ask -----------------------------------------------------------------

    def check_request(self, request: HttpRequest, view: str) -> None:
        """Before each view of this page, by its method's name: `changelist_view`, `add_view`, ...

        Raises: RefusedParameters.
        """
        if view == "changelist_view":
            check_parameters(request, self.list_parameters(request))
            check_sent(request, self._sent_by_list)
        else:
            check_parameters(request, self.page_parameters(request, view))
            check_sent(request, {TO_FIELD_VAR: self._takes_key})

    def list_parameters(self, request: HttpRequest) -> dict[str, Check]:
        return {
            SEARCH_VAR: is_text,
            ORDER_VAR: self._order_of(request),
            PAGE_VAR: is_number,
            ALL_VAR: is_flag,
            ERROR_FLAG: is_flag,
            IS_POPUP_VAR: is_flag,
            TO_FIELD_VAR: self._takes_key,
            **filter_parameters(self, request),
        }

    def page_parameters(self, request: HttpRequest, view: str) -> dict[str, Check]:
        declared: dict[str, Check] = {
            PRESERVED: lambda value: self._takes_preserved(request, value),
            IS_POPUP_VAR: is_flag,
            TO_FIELD_VAR: self._takes_key,
        }
        match view:
            case "add_view":
                declared |= {name: fits(c) for name, c in self._filled_in(request).items()}
            case "change_view":
                declared |= self.takes
                declared |= dict.fromkeys(self._pages_of_inlines(request), is_number)
            case "history_view":
                declared[PAGE_VAR] = is_number
        return declared

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        """A second look at what filters a list: Django would let every column through."""
        return request is not None and not refusals(
            _query({lookup: value}), self.list_parameters(request)
        )

    def to_field_allowed(self, request: HttpRequest, to_field: str) -> bool:
        return self._takes_key(to_field)

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        columns = self._filled_in(request)
        return {
            name: columns[name].to_python(value)
            for name, value in request.GET.items()
            if name in columns and value
        }

    def _filled_in(self, request: HttpRequest) -> dict[str, Any]:
        """The columns of the add form that its address may fill in."""
        shown = set(flatten_fieldsets(self.get_fieldsets(request)))
        shown -= set(self.get_readonly_fields(request))
        return {
            column.name: column
            for column in self.opts.concrete_fields
            if column.name in shown and not isinstance(column, models.JSONField | ArrayField)
        }

    def _pages_of_inlines(self, request: HttpRequest) -> list[str]:
        paged = [inline for inline in self.get_inline_instances(request) if inline.per_page]
        return [f"{i.get_formset(request).get_default_prefix()}-page" for i in paged]

    def _takes_key(self, value: str) -> bool:
        """Rows are known by their key, and by no other column."""
        return value in ("", self.opts.pk.name)

    def _takes_preserved(self, request: HttpRequest, value: str) -> bool:
        return is_address(value) and not refusals(QueryDict(value), self.list_parameters(request))

    def _order_of(self, request: HttpRequest) -> Check:
        """By columns that the list offers to sort by; others have no index."""
        columns = [*self.get_list_display(request)]
        if self.get_actions(request):
            columns.insert(0, "action_checkbox")
        offered = self.get_sortable_by(request)
        numbers = {str(number) for number, column in enumerate(columns) if column in offered}
        return lambda value: (
            value == ""
            or (is_text(value) and all(n.removeprefix("-") in numbers for n in value.split(".")))
        )

    @property
    def _sent_by_list(self) -> dict[str, Check]:
        return {
            ACTION_CHECKBOX_NAME: is_id,
            "action": is_text,
            "index": is_text,
            "select_across": one_of("", "0"),  # the rows that were seen, and no others
            TO_FIELD_VAR: self._takes_key,
        }

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

    trash_filters: Sequence[Any] = (TrashFilter,)

    def get_search_results(self, request: HttpRequest, rows: Any, term: str) -> tuple[Any, bool]:
        """The whole term at the start of one of `search_fields`, or the id itself."""
        term = typed(term)
        if not term:
            return rows, False
        found = models.Q()
        for lookup in self.get_search_fields(request):
            found |= models.Q(**{lookup: term})
        if (record_id := parsed_id(term)) is not None:
            found |= models.Q(pk=record_id)
        return rows.filter(found), False

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
        """The form; when the service refuses what was sent, the form again with its words."""

        def page() -> Any:
            gone = self._gone_meanwhile(request, object_id) if object_id is not None else None
            return gone or super(TenantAdmin, self).changeform_view(
                request, object_id, form_url, extra_context
            )

        try:
            return page()
        except ServiceError as refusal:
            request.refusal = refusal  # type: ignore[attr-defined]
            return page()

    def _gone_meanwhile(self, request: HttpRequest, object_id: str) -> HttpResponse | None:
        """The answer to a save where the row is not there any more, or lies in the trash: it says
        so, and gives back the texts that the person typed."""
        if request.method != "POST" or not self.has_change_permission(request):
            return None
        obj = self.get_object(request, unquote(object_id))
        if obj is None:
            is_gone = bool(unsealed(request.POST.get(AS_SHOWN), unquote(object_id)))
        else:
            is_gone = getattr(obj, "is_deleted", False)
        if not is_gone:
            return None
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": "Not saved",
            "object": obj,
            "object_url": show.url_of(obj) if obj is not None else "",
            "list_url": self._list_url(),
            "typed": touched_texts(self.opts, request.POST, unquote(object_id)),
        }
        request.current_app = self.admin_site.name
        return TemplateResponse(request, "console/gone_meanwhile.html", context, status=409)

    def get_inline_formsets(
        self, request: HttpRequest, formsets: Any, inline_instances: Any, obj: Any = None
    ) -> Any:
        for formset in formsets:
            if formset.is_bound and isinstance(formset, LinkFormSet):
                formset.forget_gone()
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

    # -- the trash -------------------------------------------------------------------------------

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        self._carry_out(request, self.records.delete, self.rows_of(obj))

    def delete_queryset(self, request: HttpRequest, queryset: Any) -> None:
        self._carry_out(request, self.records.delete, queryset)

    def _carry_out(self, request: HttpRequest, verb: Callable[..., Counts], rows: Any) -> Counts:
        """The same verb for each organization among the rows (a superuser may see many)."""
        counts: Counts = {}
        for organization, part in self._by_organization(rows):
            done = verb(part, organization=organization, actor=actor_of(request))
            counts = {k: counts.get(k, 0) + done.get(k, 0) for k in {**counts, **done}}
        return counts

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

    def _refusable(
        self, request: HttpRequest, page: Callable[[], HttpResponse], elsewhere: str
    ) -> HttpResponse:
        """The page; when a service refuses, nothing is changed and its words stand elsewhere."""
        try:
            with transaction.atomic():
                return page()
        except ServiceError as refusal:
            self.message_user(request, str(refusal), messages.ERROR)
            return HttpResponseRedirect(elsewhere)

    def get_urls(self) -> list[URLPattern]:
        name = f"{self.opts.app_label}_{self.opts.model_name}"
        view = self.admin_site.admin_view
        own = [
            path("<path:object_id>/restore/", view(self.restore_view), name=f"{name}_restore"),
            path("<path:object_id>/purge/", view(self.purge_view), name=f"{name}_purge"),
        ]
        return own + super().get_urls()

    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> Any:
        allowed = self.has_delete_permission
        return self._verb_view(request, object_id, allowed, self.records.delete, TO_TRASH)

    def restore_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        allowed = self.has_restore_permission
        return self._verb_view(request, object_id, allowed, self.records.restore, RESTORE)

    def purge_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        allowed = self.has_purge_permission
        return self._verb_view(request, object_id, allowed, self.records.purge, self.for_good)

    def _verb_view(
        self,
        request: HttpRequest,
        object_id: str,
        allowed: Callable[..., bool],
        verb: Callable[..., Counts],
        words: Words,
    ) -> HttpResponse:
        """Asks on GET, does it on POST."""
        obj = self.get_object(request, unquote(object_id))
        if obj is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)
        if not allowed(request, obj):
            raise PermissionDenied
        if request.method != "POST":
            reach = self._reach(self.rows_of(obj), words) if words.is_danger else ""
            return self._confirm(request, words, object=obj, reach=reach)

        def page() -> HttpResponse:
            self._do(request, verb, self.rows_of(obj), words)
            return HttpResponseRedirect(self._after(request, obj, words))

        return self._refusable(request, page, self._after(request, obj, words))

    def _do(
        self, request: HttpRequest, verb: Callable[..., Counts], rows: Any, words: Words
    ) -> None:
        counts = show.counted(self._carry_out(request, verb, rows), at_most=10**9)
        self.message_user(request, f"{words.done}: {counts}.", messages.SUCCESS)

    def _reach(self, rows: Any, words: Words) -> str:
        """What the verb is going to take, in words; bounded."""
        counts: Counts = {}
        for organization, part in self._by_organization(rows):
            reached = self.records.reach(
                part, organization=organization, at_most=REACH, for_good=words.for_good
            )
            counts = {k: counts.get(k, 0) + reached.get(k, 0) for k in {**counts, **reached}}
        return show.counted(counts, at_most=REACH)

    def _confirm(self, request: HttpRequest, words: Words, **context: Any) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": words.question,
            "words": words,
            "back": self._list_url(),
            **context,
        }
        request.current_app = self.admin_site.name
        return TemplateResponse(request, self.delete_confirmation_template, context)

    def _after(self, request: HttpRequest, obj: Any, words: Words) -> str:
        if "trash" in request.POST:
            return reverse(f"{self.admin_site.name}:trash")
        return show.url_of(obj) if words is RESTORE else self._list_url()

    def _list_url(self) -> str:
        return show.list_url(self.model)

    # -- what can be done with the rows picked in a list -----------------------------------------

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        wanted = {"restore_selected", "purge_selected"}
        if not self._is_trash(request):
            wanted = {"move_to_trash"}
        return {k: v for k, v in super().get_actions(request).items() if k in wanted}

    def response_action(self, request: HttpRequest, queryset: Any) -> Any:
        return self._refusable(
            request,
            lambda: super(TenantAdmin, self).response_action(request, queryset),
            request.get_full_path(),
        )

    @action(description="Move to the trash", permissions=["delete"])
    def move_to_trash(self, request: HttpRequest, rows: Any) -> Any:
        return self._ask_first(request, rows, "move_to_trash", self.records.delete, TO_TRASH)

    @action(description="Restore", permissions=["restore"])
    def restore_selected(self, request: HttpRequest, rows: Any) -> None:
        self._do(request, self.records.restore, rows, RESTORE)

    @action(description="Delete for good", permissions=["purge"])
    def purge_selected(self, request: HttpRequest, rows: Any) -> Any:
        return self._ask_first(request, rows, "purge_selected", self.records.purge, self.for_good)

    def _ask_first(
        self,
        request: HttpRequest,
        rows: Any,
        name: str,
        verb: Callable[..., Counts],
        words: Words,
    ) -> Any:
        if "confirmed" in request.POST:
            self._do(request, verb, rows, words)
            return None
        picked = request.POST.getlist(ACTION_CHECKBOX_NAME)
        return self._confirm(
            request,
            words,
            reach=self._reach(rows, words),
            objects=list(rows[: self.list_per_page]),
            hidden=[("action", name), *((ACTION_CHECKBOX_NAME, pk) for pk in picked)],
        )

    # -- what happened to it ---------------------------------------------------------------------

    def log_addition(self, *args: Any) -> None:
        """Not Django's own log, which has no wall: services write audit events."""

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

    def render_change_form(self, request: HttpRequest, context: Any, **kwargs: Any) -> Any:
        obj = kwargs.get("obj")
        context["show_history"] = member_of(request).has_perm(VIEW_AUDIT)
        context["show_save_and_add_another"] = False
        if obj is None:
            context["show_save_and_continue"] = False
        if obj is not None:
            context["related"] = self.related(obj) if self.shows_related else []
            context["can_restore"] = self.has_restore_permission(request, obj)
            context["can_purge"] = self.has_purge_permission(request, obj)
            context["title"] = str(obj)
            context["subtitle"] = None
        return super().render_change_form(request, context, **kwargs)

    def related(self, obj: Any) -> list[dict[str, Any]]:
        """The newest rows of each kind that refer to this one. One bounded statement per kind."""
        found = []
        for relation in obj._meta.related_objects:
            model, reference = relation.related_model, relation.field
            if not isinstance(reference, TenantForeignKey) or not self._has_page(model):
                continue
            rows = model._default_manager.for_organization(self.organization_of(obj)).filter(
                **{reference.name: obj.pk}, is_deleted=obj.is_deleted
            )
            rows = list(rows.newest_first()[: RELATED + 1])
            found.append(
                {
                    "title": model._meta.verbose_name_plural,
                    "rows": [(show.link(row), show.when(row.created_at)) for row in rows[:RELATED]],
                    "has_more": len(rows) > RELATED,
                    "url": show.list_url(model, **{f"{reference.name}__id__exact": obj.pk}),
                }
            )
        return found

    def _has_page(self, model: type[models.Model]) -> bool:
        return self.admin_site.is_registered(model)

    # -- how columns look --------------------------------------------------------------------------

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
        return obj._names.get(record_id, show.NOTHING if record_id is None else "someone gone")


def _query(values: Mapping[str, str]) -> QueryDict:
    query = QueryDict(mutable=True)
    query.update(values)
    return query


class LinkForm(TenantForm):
    """A row of an inline: it belongs where its parent does.

    One that somebody has detached meanwhile stands in nobody's way: it is gone already.
    """

    parent: Any = None
    is_gone = False
    as_shown = None  # type: ignore[assignment]  # (never changed in place)

    def full_clean(self) -> None:
        if self.is_gone:
            self._errors, self.cleaned_data = self.error_class(), {}
        else:
            super().full_clean()

    def has_changed(self) -> bool:
        return not self.is_gone and super().has_changed()

    def chosen_organization(self) -> Organization | None:
        return self.parent.organization


class LinkFormSet(PaginationInlineFormSet):
    forgotten = 0

    def _construct_form(self, i: int, **kwargs: Any) -> Any:
        form = super()._construct_form(i, **kwargs)
        form.parent = self.instance
        is_of_a_row = self.is_bound and i < self.initial_form_count()
        form.is_gone = is_of_a_row and form.instance._state.adding
        return form

    def initial_form_count(self) -> int:
        return super().initial_form_count() - self.forgotten

    def forget_gone(self) -> None:
        """Before the forms are shown again: without those of rows that are not there any more."""
        kept = [form for form in self if not form.is_gone]
        self.forgotten += len(self) - len(kept)
        self.forms = kept


class LinkInline(ReferenceFields, TabularInline):
    """What is attached to a row: attached and detached here, never changed in place. The parent's
    page does it in `save_formset`, through the services."""

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

    def _parent_may(self, request: HttpRequest, verb: str) -> bool:
        page = self.admin_site.get_model_admin(self.parent_model)
        return page._may(request, verb)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._parent_may(request, "read")

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._parent_may(request, "write")

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._parent_may(request, "write")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
