"""Pages of the console for organizations, members, API keys, end users and the audit log."""

import secrets
from typing import Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from unfold.contrib.filters.admin import ChoicesDropdownFilter
from unfold.decorators import display
from unfold.widgets import (
    UnfoldAdminCheckboxSelectMultipleWidget,
    UnfoldAdminPasswordWidget,
    UnfoldAdminSelectWidget,
)

from accounts.console import TenantAdmin, TenantForm, actor_of, show
from accounts.console.context import member_of, parsed_id
from accounts.console.lists import ExactTextFilter, search_term
from accounts.console.moves import ConfirmationText
from accounts.models import ApiKey, AuditEvent, Member, Organization, User
from accounts.roles import (
    ALL_PERMISSIONS,
    MANAGE_KEYS,
    MANAGE_MEMBERS,
    PERMISSIONS,
    VIEW_AUDIT,
    Role,
    permission,
)
from accounts.services.keys import api_keys, issue_key, revoke_key
from accounts.services.organizations import members, organizations
from accounts.services.records import Records
from accounts.services.users import users

GOOD, WARN = "success", "warning"


class UserAdmin(TenantAdmin):
    """Registered in sessions/admin.py, which knows all data of a person."""

    resource = "user"
    records = users
    list_display = ("__str__", "external_id", "email", "shown_status", "created")
    search_fields = ("external_id__startswith", "name__istartswith", "email__istartswith")
    search_help_text = "The start of an external id, a name or an email address"
    list_filter = (("status", ChoicesDropdownFilter),)
    fieldsets = ((None, {"fields": [("name", "external_id"), ("email", "status"), "timezone"]}),)
    shows_related = True
    change_form_outer_after_template = "console/related.html"

    @display(description="Status", label={"Active": GOOD})
    def shown_status(self, obj: User) -> str:
        return obj.get_status_display()


class OrganizationAdmin(TenantAdmin):
    """Registered in agentmem_site/admin.py, which knows the sweep."""

    resource = "organization"
    records = organizations
    can_purge = False
    list_display = ("name", "slug", "created")
    list_display_links = ("name",)
    search_fields = ("slug__startswith", "name__istartswith")
    fieldsets = (
        (None, {"fields": [("name", "slug")]}),
        ("Settings", {"fields": ["settings"]}),
    )
    folded = ()
    record_fields = (("id",), ("created", "created_by"), ("updated", "updated_by"))

    def organization_of(self, obj: Organization) -> Organization:
        return obj

    def has_add_permission(self, request: HttpRequest) -> bool:
        return bool(getattr(request.user, "is_superuser", False))

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return member_of(request).is_superuser and super().has_delete_permission(request, obj)

    def has_restore_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return member_of(request).is_superuser and super().has_restore_permission(request, obj)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        fixed = [] if obj is None or member_of(request).is_superuser else ["slug"]
        return [*super().get_readonly_fields(request, obj), *fixed]

    def create(self, request: HttpRequest, organization: Any, values: Any, form: Any) -> Any:
        return self.records.create(actor=actor_of(request), values=values)


class MemberForm(TenantForm):
    password1 = forms.CharField(
        label="Password",
        required=False,
        strip=False,
        widget=UnfoldAdminPasswordWidget(attrs={"autocomplete": "new-password"}),
    )
    password2 = forms.CharField(
        label="Password again",
        required=False,
        strip=False,
        widget=UnfoldAdminPasswordWidget(attrs={"autocomplete": "new-password"}),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "password1" in self.fields:
            self.fields["password1"].help_text = (
                "If empty, a random password is set and shown once."
                if self.instance._state.adding
                else "If empty, the password does not change."
            )

    def clean(self) -> Any:
        cleaned = super().clean()
        if cleaned.get("password1") != cleaned.get("password2"):
            self.add_error("password2", "The two passwords do not match.")
        return cleaned


@admin.register(Member)
class MemberAdmin(TenantAdmin):
    resource = "organization"
    records = members
    can_purge = False
    form = MemberForm
    list_display = ("__str__", "email", "shown_role", "is_active", "seen", "created")
    search_fields = ("email__istartswith", "name__istartswith")
    search_help_text = "The start of a name or an email address"
    list_filter = (("role", ChoicesDropdownFilter),)
    fieldsets = (
        (None, {"fields": [("name", "email"), "role", ("is_active", "is_staff")]}),
        ("Password", {"fields": ["password1", "password2"]}),
    )
    folded = ()
    record_fields = (
        ("id", "organization_link"),
        "seen",
        ("created", "created_by"),
        ("updated", "updated_by"),
    )

    def permission_for(self, verb: str) -> str:
        return permission(self.resource, "read") if verb == "read" else MANAGE_MEMBERS

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return obj != request.user and super().has_delete_permission(request, obj)

    def _carry_out(self, request: HttpRequest, verb: Any, rows: Any) -> Any:
        return super()._carry_out(request, verb, rows.exclude(pk=request.user.pk))

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        # Nobody locks themselves out.
        own = ["role", "is_active", "is_staff"] if obj == request.user else []
        return [*super().get_readonly_fields(request, obj), *own]

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        sets = super().get_fieldsets(request, obj)
        if obj is None or self.has_change_permission(request, obj):
            return sets
        return [(name, options) for name, options in sets if name != "Password"]

    def create(self, request: HttpRequest, organization: Any, values: Any, form: Any) -> Any:
        password = form.cleaned_data["password1"]
        if not password:
            password = request.shown_once = secrets.token_urlsafe(15)  # type: ignore[attr-defined]
        values = {**values, "password": password}
        return super().create(request, organization, values, form)

    def update(self, request: HttpRequest, obj: Any, values: Any, form: Any) -> Any:
        if password := form.cleaned_data.get("password1"):
            values = {**values, "password": password}
        return super().update(request, obj, values, form)

    def response_add(self, request: HttpRequest, obj: Any, post_url_continue: Any = None) -> Any:
        secret = getattr(request, "shown_once", None)
        if secret is None:
            return super().response_add(request, obj, post_url_continue)
        return shown_once(self, request, obj, secret, f"The password of {obj.email}")

    @display(description="Role", label={"Owner": "info", "Admin": "info"})
    def shown_role(self, obj: Member) -> str:
        return "Superuser" if obj.is_superuser else obj.get_role_display()

    @display(description="Last signed in")
    def seen(self, obj: Member) -> Any:
        return show.when(obj.last_login)


def shown_once(
    page: TenantAdmin, request: HttpRequest, obj: Any, secret: str, label: str
) -> HttpResponse:
    """The response to the POST shows the secret, so that no session, cookie or URL holds it."""
    context = {
        **page.admin_site.each_context(request),
        "opts": page.opts,
        "title": label,
        "object": obj,
        "secret": secret,
        "label": label,
        "list_url": show.list_url(page.model),
        "object_url": show.url_of(obj),
    }
    request.current_app = page.admin_site.name
    return TemplateResponse(request, "console/shown_once.html", context)


class ApiKeyForm(TenantForm):
    CHOSEN = "chosen"
    template = forms.ChoiceField(
        label="Permissions",
        choices=[
            (Role.VIEWER, "Read everything"),
            (Role.USER, "Read everything, write memories, sessions and messages"),
            (Role.ADMIN, "Everything that an admin may do"),
            (CHOSEN, "The permissions selected below"),
        ],
        widget=UnfoldAdminSelectWidget(),
        initial=Role.USER,
    )
    scopes = forms.MultipleChoiceField(
        choices=[(name, name) for name in ALL_PERMISSIONS],
        required=False,
        widget=UnfoldAdminCheckboxSelectMultipleWidget(),
        help_text="Only for the last choice above.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.instance._state.adding:  # the scopes of a key never change
            del self.fields["template"], self.fields["scopes"]

    def clean(self) -> Any:
        cleaned = super().clean()
        template = cleaned.get("template")
        if template == self.CHOSEN and not cleaned.get("scopes"):
            self.add_error("scopes", "Select at least one.")
        elif template in PERMISSIONS:
            cleaned["scopes"] = sorted(PERMISSIONS[template])
        return cleaned


@admin.register(ApiKey)
class ApiKeyAdmin(TenantAdmin):
    resource = "organization"
    records = api_keys
    form = ApiKeyForm
    list_display = ("name", "shown_prefix", "state", "used", "expires", "created")
    search_fields = ("prefix__startswith", "name__istartswith")
    search_help_text = "The start of a name, or the visible start of a key"
    fieldsets = (
        (None, {"fields": ["name", ("shown_prefix", "state_badge"), ("expires", "used"), "may"]}),
    )
    readonly_fields = ("shown_prefix", "state_badge", "expires", "used", "may")
    add_form_fields = ((None, {"fields": ["name", "expires_at", "template", "scopes"]}),)
    folded = ()
    change_form_outer_before_template = "console/key_banner.html"

    def permission_for(self, verb: str) -> str:
        return MANAGE_KEYS

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        sets = super().get_fieldsets(request, obj)
        if obj is None:  # the scopes of a key never change
            return [*sets[: -len(self.fieldsets)], *self.add_form_fields]
        return sets

    def create(self, request: HttpRequest, organization: Any, values: Any, form: Any) -> Any:
        key, request.shown_once = issue_key(  # type: ignore[attr-defined]
            organization=organization,
            actor=actor_of(request),
            name=values["name"],
            scopes=values["scopes"],
            expires_at=values["expires_at"],
        )
        return key

    def response_add(self, request: HttpRequest, obj: Any, post_url_continue: Any = None) -> Any:
        secret = request.shown_once  # type: ignore[attr-defined]
        return shown_once(self, request, obj, secret, f"The key “{obj.name}”")

    def get_urls(self) -> list[URLPattern]:
        revoke = self.admin_site.admin_view(self.revoke_view)
        own = [path("<path:object_id>/revoke/", revoke, name="accounts_apikey_revoke")]
        return own + super().get_urls()

    def revoke_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        def revoke(rows: Any, **kwargs: Any) -> dict[str, int]:
            for key in rows:
                revoke_key(key, **kwargs)
            return {"apikey": len(rows)}

        text = ConfirmationText(
            "Revoke", "Revoked", "Requests with this key will be refused. This cannot be undone."
        )
        return self._verb_view(request, object_id, self.has_revoke_permission, revoke, text)

    def has_revoke_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_change_permission(request, obj) and obj.revoked_at is None

    def render_change_form(self, request: HttpRequest, context: Any, **kwargs: Any) -> Any:
        obj = kwargs.get("obj")
        if obj is not None and self.has_revoke_permission(request, obj):
            context["revoke_url"] = show.url_of(obj, "revoke")
        return super().render_change_form(request, context, **kwargs)

    @display(description="Key")
    def shown_prefix(self, obj: ApiKey) -> Any:
        return show.code(f"{obj.prefix}…")

    @display(description="State", label={"In use": GOOD, "Expired": WARN, "Revoked": "danger"})
    def state(self, obj: ApiKey) -> str:
        if obj.revoked_at is not None:
            return "Revoked"
        return "In use" if obj.is_usable or obj.is_deleted else "Expired"

    @display(description="State")
    def state_badge(self, obj: ApiKey) -> Any:
        kinds = {"In use": "good", "Expired": "warn", "Revoked": "bad"}
        return show.badge(self.state(obj), kinds[self.state(obj)])

    @display(description="Last used")
    def used(self, obj: ApiKey) -> Any:
        return show.when(obj.last_used_at)

    @display(description="Expires")
    def expires(self, obj: ApiKey) -> Any:
        return show.when(obj.expires_at) if obj.expires_at else "never"

    @display(description="Permissions")
    def may(self, obj: ApiKey) -> Any:
        return show.badges(obj.scopes)


@admin.register(AuditEvent)
class AuditEventAdmin(TenantAdmin):
    records = Records(AuditEvent)  # (never used to write: only services write events)
    list_display = (
        "happened",
        "actor_name",
        "shown_action",
        "resource",
        "changes_text",
        "shown_status",
    )
    list_display_links = ("happened",)
    sortable_by = ("happened",)
    search_fields = ("actor_name__istartswith", "request_id__exact")
    search_help_text = "The start of an actor's name, the id of a resource, or a request id"
    list_filter = (
        ("action", ExactTextFilter),
        ("resource_type", ExactTextFilter),
        ("status", ChoicesDropdownFilter),
    )
    trash_filters = ()
    folded = ()
    fieldsets = (
        (
            None,
            {
                "fields": [
                    ("happened", "shown_status"),
                    ("actor_name", "actor_kind"),
                    ("action", "resource"),
                    ("address", "request_id"),
                    "user_agent",
                    "organization_link",
                    "changed",
                ]
            },
        ),
    )
    record_fields = ()
    readonly_fields = (
        "happened",
        "address",
        "resource",
        "shown_status",
        "changed",
        "organization_link",
    )
    change_form_outer_before_template = ""

    def permission_for(self, verb: str) -> str:
        return VIEW_AUDIT

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    has_delete_permission = has_restore_permission = has_change_permission

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        return [*self.fieldsets]

    def get_search_results(self, request: HttpRequest, rows: Any, term: str) -> tuple[Any, bool]:
        matches, _ = super().get_search_results(request, rows, term)
        record_id = parsed_id(search_term(term))
        return (rows.filter(resource_id=record_id) if record_id else matches), False

    def render_change_form(self, request: HttpRequest, context: Any, **kwargs: Any) -> Any:
        response = super().render_change_form(request, context, **kwargs)
        context["show_history"] = False
        return response

    @display(description="When", ordering="created_at")
    def happened(self, obj: AuditEvent) -> Any:
        return show.when(obj.created_at)

    @display(description="IP address")
    def address(self, obj: AuditEvent) -> str:
        return obj.ip or show.NOTHING

    @display(description="Action")
    def shown_action(self, obj: AuditEvent) -> str:
        return obj.action

    @display(description="Resource")
    def resource(self, obj: AuditEvent) -> Any:
        return show.resource_link(obj.resource_type, obj.resource_id)

    @display(description="Changes")
    def changes_text(self, obj: AuditEvent) -> Any:
        return show.clipped(show.change_words(obj.changes))

    @display(description="Changes")
    def changed(self, obj: AuditEvent) -> Any:
        return show.json_tree(obj.changes)

    @display(description="Status", label={"Success": GOOD, "Failure": "danger"})
    def shown_status(self, obj: AuditEvent) -> str:
        return obj.get_status_display()
