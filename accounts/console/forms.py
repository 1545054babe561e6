"""Forms of tenant rows: their organization, references that stay within it, JSON one can read."""

import json
from typing import Any
from uuid import UUID

from django import forms
from django.contrib.admin.widgets import AutocompleteSelect
from django.core.exceptions import NON_FIELD_ERRORS, ValidationError
from django.db import models
from django.db.models import Q
from django.http import HttpRequest
from unfold.widgets import UnfoldAdminTextareaWidget

from accounts.console.context import sole_organization
from accounts.errors import ServiceError
from accounts.models import Organization
from accounts.strict_json import RefusedJson, parse_json
from agentmem_site.db.fields import TenantForeignKey


class PrettyJsonField(forms.JSONField):
    """JSON, indented. `empty` is what an emptied box means: the column's default."""

    def __init__(self, *, empty: Any = None, **kwargs: Any) -> None:
        self.empty = empty
        super().__init__(**kwargs)

    def to_python(self, value: Any) -> Any:
        """What the API would refuse is refused here too: it could not be kept, or not be shown."""
        if isinstance(value, str) and value not in self.empty_values:
            _parsed(value)
        return super().to_python(value)

    def bound_data(self, data: Any, initial: Any) -> Any:
        try:
            return initial if self.disabled or data is None else _parsed(data)
        except ValidationError:
            return forms.fields.InvalidJSONInput(data)

    def prepare_value(self, value: Any) -> Any:
        if isinstance(value, forms.fields.InvalidJSONInput):
            return value
        if value is None:
            return ""
        return json.dumps(value, indent=2, ensure_ascii=False)

    def clean(self, value: Any) -> Any:
        cleaned = super().clean(value)
        return self.empty if cleaned is None else cleaned


def _parsed(text: str) -> Any:
    try:
        return parse_json(text.encode())
    except RefusedJson as refusal:
        raise ValidationError(str(refusal)) from refusal


class JsonArea(UnfoldAdminTextareaWidget):
    def __init__(self, attrs: dict[str, Any] | None = None) -> None:
        super().__init__(
            {"class": "am-json-area", "spellcheck": "false", "rows": 6, **(attrs or {})}
        )


class TenantForm(forms.ModelForm):
    """The organization is set before anything is validated: excluded, as an uneditable field is,
    it would switch off the unique constraints that name it."""

    request: HttpRequest

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, field in self.fields.items():
            reference = self._reference(name)
            if reference is not None and isinstance(field, forms.ModelChoiceField):
                self._narrow(field, reference)

    def chosen_organization(self) -> Organization | None:
        """Whose row this is going to be: the member's, or the one that a superuser chose."""
        return sole_organization(self.request) or self.cleaned_data.get("for_organization")

    def _clean_fields(self) -> None:
        super()._clean_fields()  # type: ignore[misc]
        for name, value in self.cleaned_data.items():
            field = self.fields[name]
            if isinstance(value, str) and not isinstance(field, forms.JSONField):
                self.cleaned_data[name] = _as_typed(value, getattr(self.instance, name, None))

    def clean(self) -> Any:
        cleaned = super().clean()
        if self._belongs and self.instance._state.adding:
            self.instance.organization = self.chosen_organization()
        organization_id = getattr(self.instance, "organization_id", None)
        for name in list(self.cleaned_data):
            other = self.cleaned_data[name]
            if self._reference(name) is None or other is None or organization_id is None:
                continue
            if other.organization_id != organization_id:
                self.add_error(name, "This belongs to another organization.")
        return cleaned

    def _post_clean(self) -> None:
        super()._post_clean()  # type: ignore[misc]
        refusal: ServiceError | None = getattr(self.request, "refusal", None)
        if refusal is not None:  # the service said no to these very values
            self.add_error(refusal.field if refusal.field in self.fields else None, str(refusal))

    def _get_validation_exclusions(self) -> set[str]:
        excluded = super()._get_validation_exclusions()  # type: ignore[misc]
        if getattr(self.instance, "organization_id", None) is None:
            return excluded
        return excluded - {"organization"}

    def validate_unique(self) -> None:
        if not self._belongs:
            super().validate_unique()

    def _update_errors(self, errors: ValidationError) -> None:
        """A taken key is told at its field, in the words that the service has for it."""
        found = getattr(errors, "error_dict", {})
        for error in [*found.get(NON_FIELD_ERRORS, ())]:
            own = [n for n in (error.params or {}).get("unique_check", ()) if n in self.fields]
            if error.code == "unique_together" and own:
                found[NON_FIELD_ERRORS].remove(error)
                label = self._meta.model._meta.verbose_name
                taken = f"There is another {label} with this {own[-1]}, perhaps in the trash."
                self.add_error(own[-1], taken)
        if not found.get(NON_FIELD_ERRORS, True):
            del found[NON_FIELD_ERRORS]
        super()._update_errors(errors)  # type: ignore[misc]

    @property
    def _belongs(self) -> bool:
        return any(f.name == "organization" for f in self._meta.model._meta.fields)

    def _reference(self, name: str) -> TenantForeignKey | None:
        field = next((f for f in self._meta.model._meta.fields if f.name == name), None)
        return field if isinstance(field, TenantForeignKey) else None

    def _narrow(self, field: forms.ModelChoiceField, reference: TenantForeignKey) -> None:
        """Live rows of the organization, and the one that is referred to now, deleted or not."""
        rows: Any = reference.related_model._default_manager.all()
        current = getattr(self.instance, reference.attname)
        whose = getattr(self, "parent", None) or self.instance
        organization_id = getattr(whose, "organization_id", None)
        if (own := sole_organization(self.request)) is not None:
            organization_id = own.pk
        if organization_id is not None:
            rows = rows.for_organization(organization_id)
            autocomplete: Any = getattr(field.widget, "widget", field.widget)
            autocomplete.organization_id = organization_id
        field.queryset = rows.filter(Q(is_deleted=False) | Q(pk=current))


def _as_typed(value: str, before: Any) -> str:
    """A browser sends each line break as CR LF, and fields strip what surrounds a text: what nobody
    changed stays as it is stored."""
    value = value.replace("\r\n", "\n")
    if isinstance(before, str) and value.strip() == before.replace("\r\n", "\n").strip():
        return before
    return value


class Autocomplete(AutocompleteSelect):
    """Offers the rows of one organization, where the form knows which."""

    organization_id: UUID | None = None

    def get_url(self) -> str:
        url = super().get_url()
        return f"{url}?organization={self.organization_id}" if self.organization_id else url


def organization_choice(model: type[models.Model], admin_site: Any) -> forms.ModelChoiceField:
    """For a platform superuser, who is of no organization: whose row is it going to be?"""
    return forms.ModelChoiceField(
        queryset=Organization.objects.live(),
        label="Organization",
        widget=AutocompleteSelect(model._meta.get_field("organization"), admin_site),
    )


def empty_of(field: models.Field) -> Any:
    """What an emptied JSON box means for this column."""
    return None if field.null else field.get_default()
