"""The organization's page. It shows what stricter retention would delete before it is saved."""

import json
from typing import Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest

from accounts.admin import OrganizationAdmin
from accounts.console import TenantForm
from accounts.errors import Invalid
from accounts.models import Organization
from accounts.organization_settings import is_stricter, retention_of
from agentmem_site.services.sweep import MAX_COUNT, Swept, would_sweep


class OrganizationForm(TenantForm):
    # The rules whose counts were shown. If the same rules are sent again, they are saved.
    counted_retention = forms.CharField(required=False, widget=forms.HiddenInput())

    def clean(self) -> Any:
        cleaned = super().clean()
        if self.instance.pk and isinstance(cleaned.get("settings"), dict):
            self._show_counts(cleaned["settings"])
        return cleaned

    def _show_counts(self, settings: dict[str, Any]) -> None:
        stored = Organization.objects.filter(pk=self.instance.pk).first()
        try:
            after = retention_of(settings)
            before = retention_of(stored.settings if stored else {})
        except Invalid:  # the service raises it again, with the message
            return
        rules = json.dumps(settings.get("retention"), sort_keys=True)
        if not is_stricter(after, before) or self.cleaned_data["counted_retention"] == rules:
            return
        swept = would_sweep(organization=self.instance, settings=settings)
        self.data = {**self.data.dict(), "counted_retention": rules}  # type: ignore[attr-defined]
        self.add_error("settings", f"{_message(swept)} Save again to confirm.")


def _message(swept: Swept) -> str:
    trashed = {
        "expired": swept.expired,
        "over the age limit": swept.aged,
        "that no search found": swept.unfound,
    }
    parts = [f"{_number(n)} memories {why} (to the trash)" for why, n in trashed.items() if n]
    parts += [f"{_number(n)} {name} (for good)" for name, n in swept.purged.items()]
    if swept.cached_vectors:
        parts.append(f"{_number(swept.cached_vectors)} cached vectors")
    if not parts:
        return "Under these rules the next sweep would remove nothing yet."
    return f"Under these rules the next sweep would remove: {', '.join(parts)}."


def _number(count: int) -> str:
    return f"more than {MAX_COUNT:,}" if count > MAX_COUNT else f"{count:,}"


@admin.register(Organization)
class SweptOrganizationAdmin(OrganizationAdmin):
    form = OrganizationForm

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        sets = super().get_fieldsets(request, obj)
        if obj is None or not self.has_change_permission(request, obj):
            return sets
        return [
            (name, {**options, "fields": [*options["fields"], "counted_retention"]})
            if name == "Settings"
            else (name, options)
            for name, options in sets
        ]
