from collections.abc import Callable
from contextlib import nullcontext
from functools import update_wrapper
from typing import Any
from uuid import UUID

from django import forms
from django.contrib.admin.views.autocomplete import AutocompleteJsonView
from django.contrib.auth import REDIRECT_FIELD_NAME, authenticate
from django.contrib.auth.views import PasswordChangeView
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.http.response import HttpResponseBase
from django.template.response import SimpleTemplateResponse, TemplateResponse
from django.urls import URLPattern, path, reverse
from unfold.dataclasses import SearchResult
from unfold.forms import AdminOwnPasswordChangeForm, AuthenticationForm
from unfold.sites import UnfoldAdminSite
from unfold.widgets import UnfoldAdminTextInputWidget

from accounts.access import PLATFORM, member_actor, normalized_email
from accounts.actors import Actor
from accounts.console import TenantAdmin, show
from accounts.console.context import actor_of, context_of, from_here, member_of, parsed_id
from accounts.console.parameters import (
    RefusedParameters,
    check_parameters,
    is_address,
    is_flag,
    is_id,
    is_number,
    is_text,
    parameters_of,
    takes,
)
from accounts.models import Member
from accounts.services.organizations import members
from accounts.services.sign_in import AmbiguousSignIn, may_sign_in, record_sign_in
from accounts.tenancy import is_inside
from agentmem_site.console.dashboard import dashboard
from agentmem_site.console.navigation import sidebar
from agentmem_site.console.trash import trash_lists
from agentmem_site.console.upload import load_upload, upload_form


class SignInForm(AuthenticationForm):
    organization = forms.CharField(
        required=False,
        help_text=f"The slug of the organization; {PLATFORM} for the platform.",
        # (The template renders it outside the form.)
        widget=UnfoldAdminTextInputWidget(attrs={"form": "login-form"}),
    )

    def clean(self) -> Any:
        values = self.cleaned_data
        if not (values.get("username") and values.get("password")):
            return values
        try:
            self.user_cache = authenticate(self.request, **values)
        except AmbiguousSignIn as error:
            self.add_error("organization", str(error))
            return values
        if self.user_cache is None:
            raise self.get_invalid_login_error()
        return values

    @property
    def asks_organization(self) -> bool:
        """Whether the form asks for the organization: only if the sign-in is ambiguous."""
        return "organization" in self.errors or bool(self.data.get("organization"))


class OwnPasswordForm(AdminOwnPasswordChangeForm):
    """Changes the member's own password through the service, which writes an audit event."""

    actor: Actor

    def save(self, commit: bool = True) -> Any:
        member = self.user
        saved = members.update(
            member,
            organization=member.organization,
            actor=self.actor,
            values={"password": self.cleaned_data["new_password1"]},
        )
        member.password = saved.password  # Django keeps this session and ends the others
        return member


class ScopedAutocomplete(AutocompleteJsonView):
    """Offers live rows of the member's organization; for a superuser, of the form's."""

    def process_request(self, request: HttpRequest) -> Any:
        """Serves only references of models that the console has a page or inline for."""
        term, page, source, key = super().process_request(request)
        pages = page.admin_site._registry
        held = {*pages, *(inline.model for p in pages.values() for inline in p.inlines)}
        if not (source.concrete and source.many_to_one and source.model in held):
            raise PermissionDenied
        return term, page, source, key

    def get_queryset(self) -> Any:
        rows: Any = super().get_queryset()
        if any(field.name == "is_deleted" for field in rows.model._meta.fields):
            rows = rows.live()
        if (organization_id := self._organization_id()) is not None:
            rows = rows.for_organization(organization_id)
        return rows.select_related("organization") if self._shows_organization else rows

    def serialize_result(self, obj: Any, to_field_name: str) -> dict[str, Any]:
        result = super().serialize_result(obj, to_field_name)
        if self._shows_organization:
            result["text"] += f" · {obj.organization}"
        return result

    def _organization_id(self) -> UUID | None:
        return parsed_id(self.request.GET.get("organization", ""))

    @property
    def _shows_organization(self) -> bool:
        fields = self.model_admin.model._meta.fields
        return (
            member_of(self.request).is_superuser
            and self._organization_id() is None
            and any(field.name == "organization" for field in fields)
        )


class ConsoleSite(UnfoldAdminSite):
    login_form = SignInForm
    login_template = "console/sign_in.html"
    index_template = "console/dashboard.html"
    empty_value_display = show.NOTHING

    def __init__(self, name: str = "admin") -> None:
        super().__init__(name)
        self.disable_action("delete_selected")  # it would load all dependent rows

    def register(self, models: Any, admin_class: Any = None, **options: Any) -> None:
        """Accepts only subclasses of TenantAdmin: others (Django's own, for groups) do not know
        organizations, the trash and the services."""
        if admin_class is not None and issubclass(admin_class, TenantAdmin):
            super().register(models, admin_class, **options)

    def has_permission(self, request: HttpRequest) -> bool:
        return isinstance(request.user, Member) and may_sign_in(request.user)

    def admin_view(self, view: Callable[..., Any], cacheable: bool = False) -> Any:
        """The view in the context of the member's organization; for a superuser, of all. The
        response is rendered there too, because templates query rows."""
        if view in (self.logout, self.i18n_javascript):
            return super().admin_view(view, cacheable)  # no rows
        inner = super().admin_view(self._checked(view), cacheable)
        if view == self.upload:
            return inner  # it enters the context itself, as the loader does

        def in_context(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            if not self.has_permission(request):
                return inner(request, *args, **kwargs)  # to the sign-in page
            with context_of(request):
                response = inner(request, *args, **kwargs)
                if isinstance(response, SimpleTemplateResponse):
                    response.render()
            return response

        return update_wrapper(in_context, inner)

    def _checked(self, view: Callable[..., Any]) -> Callable[..., Any]:
        """The view, with a check of its parameters before it."""

        def checked(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            page = getattr(view, "__self__", None)
            try:
                parameters_of(request)  # (before a page reads them)
                if isinstance(page, TenantAdmin):
                    page.check_request(request, view.__name__)
                else:
                    check_parameters(request, getattr(view, "takes", {}))
                return view(request, *args, **kwargs)
            except RefusedParameters as refusal:
                return self._refused(request, refusal)

        return update_wrapper(checked, view)

    def _refused(self, request: HttpRequest, refusal: RefusedParameters) -> HttpResponse:
        """A page with the refused parameters, and a link without them."""
        left: Any = QueryDict(mutable=True)
        if "" not in refusal.reasons:
            left.update({n: v for n, v in request.GET.items() if n not in refusal.reasons})
        request.GET = QueryDict()  # so that no part of the page uses a refused parameter
        request.current_app = self.name
        context = {
            "title": "Invalid parameters",
            "refused": refusal.shown,
            "url": f"{request.path}?{left.urlencode()}" if left else request.path,
        }
        if not self.has_permission(request):  # at the sign-in page
            return TemplateResponse(request, "console/refused_plain.html", context, status=400)
        with nullcontext() if is_inside() else context_of(request):
            context = {**self.each_context(request), **context}
            page = TemplateResponse(request, "console/refused.html", context, status=400)
            return page.render()

    def login(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        try:
            check_parameters(request, {REDIRECT_FIELD_NAME: is_address})
        except RefusedParameters as refusal:
            return self._refused(request, refusal)
        response = super().login(request, extra_context)
        if request.method == "POST":
            email = normalized_email(request.POST.get("username", "")[:254])
            succeeded = isinstance(response, HttpResponseRedirect)
            actor = Actor(kind="member", name=email)
            if succeeded:
                actor = member_actor(member_of(request))
            record_sign_in(
                email=email,
                slug=request.POST.get("organization", "").replace("\0", ""),
                succeeded=succeeded,
                actor=from_here(actor, request),
            )
        return response

    def password_change(self, request: HttpRequest, extra_context: Any = None) -> HttpResponseBase:
        form = type("Form", (OwnPasswordForm,), {"actor": actor_of(request)})
        request.current_app = self.name
        return PasswordChangeView.as_view(
            form_class=form,
            success_url=reverse(f"{self.name}:password_change_done"),
            extra_context={**self.each_context(request), **(extra_context or {})},
        )(request)

    def get_urls(self) -> list[URLPattern]:
        return [
            path("import/", self.admin_view(self.upload), name="upload"),
            path("trash/", self.admin_view(self.trash), name="trash"),
            # Rows have no pages outside the console.
            *(url for url in super().get_urls() if getattr(url, "name", "") != "view_on_site"),
        ]

    def index(self, request: HttpRequest, extra_context: Any = None) -> TemplateResponse:
        context = {
            **self.each_context(request),
            "title": "Overview",
            **dashboard(request),
            **(extra_context or {}),
        }
        request.current_app = self.name
        return TemplateResponse(request, self.index_template, context)

    def app_index(
        self, request: HttpRequest, app_label: str, extra_context: Any = None
    ) -> HttpResponse:
        """Apps have no page of their own: redirects to the overview."""
        return HttpResponseRedirect(reverse(f"{self.name}:index"))

    def trash(self, request: HttpRequest) -> HttpResponse:
        """The rows of each model that were deleted last."""
        context = {
            **self.each_context(request),
            "title": "Trash",
            "lists": trash_lists(self, request),
        }
        request.current_app = self.name
        return TemplateResponse(request, "console/trash.html", context)

    def upload(self, request: HttpRequest) -> HttpResponse:
        """The import page, and the report of a load."""
        form = upload_form(self, request)
        result = load_upload(request, form) if form.is_valid() else {}
        context = {**self.each_context(request), "title": "Import", "form": form, **result}
        request.current_app = self.name
        with context_of(request):
            return TemplateResponse(request, "console/upload.html", context).render()

    @takes(s=is_text, extended=is_flag)
    def search(self, request: HttpRequest, extra_context: Any = None) -> TemplateResponse:
        """Pages of the sidebar by name, for Ctrl+K."""
        term = request.GET.get("s", "").strip().lower()
        results = [
            SearchResult(item["title"], group["title"] or "AgentMem", item["link"], item["icon"])
            for group in sidebar(request)
            for item in group["items"]
            if term and term in item["title"].lower()
        ]
        is_palette = "extended" in request.GET
        template = "command_results" if is_palette else "search_results"
        page = Paginator(results, max(len(results), 1)).page(1)
        context = {"page_obj": page.paginator, "results": page, "page_counter": 0}
        return TemplateResponse(
            request, f"unfold/helpers/{template}.html", context, headers={"HX-Trigger": "search"}
        )

    @takes(
        app_label=is_text,
        model_name=is_text,
        field_name=is_text,
        term=is_text,
        page=is_number,
        organization=is_id,
    )
    def autocomplete_view(self, request: HttpRequest) -> HttpResponseBase:
        return ScopedAutocomplete.as_view(admin_site=self)(request)
