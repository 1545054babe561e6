"""Forms of tenant rows: their organization, references within it, indented JSON, and detection of
concurrent changes."""

import json
from datetime import datetime
from typing import Any
from uuid import UUID

from django import forms
from django.contrib.admin.widgets import AutocompleteSelect
from django.core.exceptions import NON_FIELD_ERRORS, ValidationError
from django.db import models
from django.db.models import Q
from django.http import HttpRequest
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.widgets import UnfoldAdminTextareaWidget

from accounts.console import show
from accounts.console.context import sole_organization
from accounts.console.form_digests import (
    FieldDigests,
    browser_value,
    put,
    read_digests,
    sent_digest,
    sign_digests,
)
from accounts.errors import ServiceError, Stale
from accounts.models import Organization
from accounts.services.seen import digest_of
from accounts.strict_json import RefusedJson, parse_json
from agentmem_site.db.fields import TenantForeignKey

AS_SHOWN = "as_shown"  # the hidden field with the digests of the shown values


class PrettyJsonField(forms.JSONField):
    """Indented JSON. `empty` is the value of an empty field: the column's default."""

    def __init__(self, *, empty: Any = None, **kwargs: Any) -> None:
        self.empty = empty
        super().__init__(**kwargs)

    def to_python(self, value: Any) -> Any:
        """Refuses what the API refuses: it could not be stored or displayed."""
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
    """Sets the organization before validation: Django would exclude it, as a field that cannot be
    edited, and then skip the unique constraints that include it.

    Changes only the fields that the person has edited: concurrent changes of other fields stay. If
    both have changed the same field, the form shows both values and writes nothing until the person
    saves again.
    """

    request: HttpRequest

    as_shown = forms.CharField(required=False, widget=forms.HiddenInput())

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, field in self.fields.items():
            reference = self._reference(name)
            if reference is not None and isinstance(field, forms.ModelChoiceField):
                self._limit_choices(field, reference)
        self._shown: dict[str, FieldDigests] = {}  # what the form showed to the person
        self._current: dict[str, FieldDigests] = {}
        self._untouched: set[str] = set()
        self._conflicts: set[str] = set()
        if self.instance._state.adding or AS_SHOWN not in self.fields:
            self.fields.pop(AS_SHOWN, None)
            return
        columns = {field.name for field in self._meta.model._meta.concrete_fields}
        for name in columns & self.fields.keys():
            sent = sent_digest(browser_value(self[name]))
            self._current[name] = FieldDigests(sent, digest_of(self.instance, name))
        if self.is_bound:
            self._compare()
        else:
            self.initial[AS_SHOWN] = sign_digests(self.instance.pk, self._current)

    def _compare(self) -> None:
        """Finds the fields that were not edited, and gives them the current values of the row."""
        self.data = self.data.copy()  # type: ignore[attr-defined]
        self._shown = read_digests(self.data.get(AS_SHOWN), self.instance.pk)
        for name, shown in self._shown.items():
            if name not in self._current or sent_digest(self[name].data) != shown.sent:
                continue
            self._untouched.add(name)
            if shown != self._current[name]:
                put(self.data, self[name], browser_value(self[name]))

    @property
    def seen(self) -> dict[str, str]:
        """Digests of the columns as the person has seen them, for the service."""
        return {name: shown.stored for name, shown in self._shown.items()}

    @cached_property
    def changed_data(self) -> list[str]:
        left_out = {AS_SHOWN, *self._untouched}
        return [name for name in super().changed_data if name not in left_out]

    def chosen_organization(self) -> Organization | None:
        """The organization of a new row: the member's, or the one that a superuser chose."""
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
        self._check_conflicts()
        return cleaned

    def _check_conflicts(self) -> None:
        for name in self._current.keys() & set(self.changed_data) & self.cleaned_data.keys():
            shown, yours = self._shown.get(name), self.cleaned_data[name]
            if shown is not None and shown.stored == self._current[name].stored:
                continue
            column: Any = self._meta.model._meta.get_field(name)
            if getattr(yours, "pk", yours) == getattr(self.instance, column.attname):
                continue
            self._conflicts.add(name)
            self.add_error(name, self._conflict_message(column, yours))

    def _post_clean(self) -> None:
        super()._post_clean()  # type: ignore[misc]
        refusal: ServiceError | None = getattr(self.request, "refusal", None)
        is_shown = isinstance(refusal, Stale) and self._conflicts
        if refusal is not None and not is_shown:  # the service has refused these values
            self.add_error(refusal.field if refusal.field in self.fields else None, str(refusal))
        if AS_SHOWN in self.fields:
            self._renew_digests()

    def _renew_digests(self) -> None:
        """The form is shown again with new digests. For a field in conflict it shows the current
        value beside the person's own: saving again writes theirs."""
        kept = self._shown.keys() - self._untouched - self._conflicts
        carried = {n: self._shown[n] if n in kept else d for n, d in self._current.items()}
        self.data[AS_SHOWN] = sign_digests(self.instance.pk, carried)  # type: ignore[index]

    def _conflict_message(self, column: Any, yours: Any) -> SafeString:
        row = self.instance
        whose = row if isinstance(row, Organization) else row.organization
        names = show.names_of([row.last_updated_by_id], whose)
        return format_html(
            '<div class="am-meanwhile"><p>Somebody changed this while you had it open: nothing is '
            "saved. {} was last changed by {}, {}.</p><p><b>Current value</b></p>{}"
            "<p><b>Your value</b></p>{}<p>Save again to overwrite the current value.</p></div>",
            f"The {column.model._meta.verbose_name}",
            names.get(row.last_updated_by_id, "someone"),
            show.when(row.updated_at),
            _shown_value(column, getattr(row, column.name)),
            _shown_value(column, yours),
        )

    def _get_validation_exclusions(self) -> set[str]:
        excluded = super()._get_validation_exclusions()  # type: ignore[misc]
        if getattr(self.instance, "organization_id", None) is None:
            return excluded
        return excluded - {"organization"}

    def validate_unique(self) -> None:
        if not self._belongs:
            super().validate_unique()

    def _update_errors(self, errors: ValidationError) -> None:
        """Shows a duplicate key at its field, with the message of the service."""
        by_field = getattr(errors, "error_dict", {})
        for error in [*by_field.get(NON_FIELD_ERRORS, ())]:
            own = [n for n in (error.params or {}).get("unique_check", ()) if n in self.fields]
            if error.code == "unique_together" and own:
                by_field[NON_FIELD_ERRORS].remove(error)
                label = self._meta.model._meta.verbose_name
                taken = f"There is another {label} with this {own[-1]}, perhaps in the trash."
                self.add_error(own[-1], taken)
        if not by_field.get(NON_FIELD_ERRORS, True):
            del by_field[NON_FIELD_ERRORS]
        super()._update_errors(errors)  # type: ignore[misc]

    @property
    def _belongs(self) -> bool:
        return any(f.name == "organization" for f in self._meta.model._meta.fields)

    def _reference(self, name: str) -> TenantForeignKey | None:
        field = next((f for f in self._meta.model._meta.fields if f.name == name), None)
        return field if isinstance(field, TenantForeignKey) else None

    def _limit_choices(self, field: forms.ModelChoiceField, reference: TenantForeignKey) -> None:
        """Offers live rows of the organization, and the current value, deleted or not."""
        rows: Any = reference.related_model._default_manager.all()
        current = getattr(self.instance, reference.attname)
        owner = getattr(self, "parent", None) or self.instance
        organization_id = getattr(owner, "organization_id", None)
        if (own := sole_organization(self.request)) is not None:
            organization_id = own.pk
        if organization_id is not None:
            rows = rows.for_organization(organization_id)
            autocomplete: Any = getattr(field.widget, "widget", field.widget)
            autocomplete.organization_id = organization_id
        field.queryset = rows.filter(Q(is_deleted=False) | Q(pk=current))


def _shown_value(column: Any, value: Any) -> SafeString:
    """A value as the form displays it."""
    if isinstance(column, models.JSONField):
        text = json.dumps(value, indent=2, ensure_ascii=False)
    elif isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, datetime):
        text = f"{timezone.localtime(value):%Y-%m-%d %H:%M:%S}"
    elif isinstance(value, list):
        text = ", ".join(map(str, value))
    else:
        text = str(dict(column.flatchoices).get(value, "" if value is None else value))
    return format_html('<pre class="am-json">{}</pre>', text[: show.MAX_SHOWN] or "(empty)")


def _as_typed(value: str, before: Any) -> str:
    """Undoes what browsers and fields change: line breaks become CR LF, surrounding whitespace is
    stripped. An unchanged text stays as it is stored."""
    value = value.replace("\r\n", "\n")
    if isinstance(before, str) and value.strip() == before.replace("\r\n", "\n").strip():
        return before
    return value


class Autocomplete(AutocompleteSelect):
    """Offers the rows of one organization, if the form has one."""

    organization_id: UUID | None = None

    def get_url(self) -> str:
        url = super().get_url()
        return f"{url}?organization={self.organization_id}" if self.organization_id else url


def organization_choice(model: type[models.Model], admin_site: Any) -> forms.ModelChoiceField:
    """For a platform superuser: the organization of a new row."""
    return forms.ModelChoiceField(
        queryset=Organization.objects.live(),
        label="Organization",
        widget=AutocompleteSelect(model._meta.get_field("organization"), admin_site),
    )


def empty_value_of(field: models.Field) -> Any:
    """The value of this JSON column if its field is empty."""
    return None if field.null else field.get_default()


def edited_texts(opts: Any, data: Any, record_id: str) -> list[tuple[str, str]]:
    """(Label, text) of each field that the person has edited, as the form was sent."""
    shown = read_digests(data.get(AS_SHOWN), record_id)
    texts = []
    for column in opts.concrete_fields:
        text = data.get(column.name)
        is_text = not column.is_relation and not isinstance(column, models.BooleanField)
        if not text or not column.editable or not is_text:
            continue
        if column.name not in shown or sent_digest(text) != shown[column.name].sent:
            texts.append((str(column.verbose_name), text))
    return texts
