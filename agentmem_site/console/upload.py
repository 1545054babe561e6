"""The import page: loads a file in the console."""

import base64
import json
from typing import Any

from django import forms
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest
from unfold.widgets import (
    UnfoldAdminFileFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanSwitchWidget,
)

from accounts.console.context import actor_of, member_of, sole_organization
from accounts.console.forms import organization_choice
from accounts.roles import permission
from agentmem_site.api.bulk import SCOPED_BY, load_refusal
from agentmem_site.bulk import LoadOptions, LoadReport, LoadStopped
from agentmem_site.bulk.readers import UnreadableFile, read_options, source_of
from agentmem_site.bulk.reading import BadOption
from agentmem_site.bulk.rejects import as_json
from agentmem_site.bulk.times import zone_of
from agentmem_site.bulk.wording import reworded
from agentmem_site.services.loads import RESOURCES, run_load
from memories.models import Memory

SHOWN_REJECTS = 100
FILES = ".jsonl,.ndjson,.json,.csv,.tsv,.txt,.parquet,.gz,.zst"
_COUNTS = {
    "read": "Lines",
    "inserted": "Inserted",
    "updated": "Updated",
    "unchanged": "Unchanged",
    "deleted": "Left in the trash",
    "duplicates": "Duplicates",
    "rejected": "Rejected",
}


def _zone(name: str) -> None:
    try:
        zone_of(name)
    except ValueError as error:
        raise forms.ValidationError(str(error)) from error


class UploadForm(forms.Form):
    resource = forms.ChoiceField(label="Resource", widget=UnfoldAdminSelectWidget)
    file = forms.FileField(
        help_text="JSON, CSV or Parquet; gzip and zstd are unpacked. A line is a whole row: "
        "what it leaves out takes its default.",
        widget=UnfoldAdminFileFieldWidget(attrs={"accept": FILES}),
    )
    on_error = forms.ChoiceField(
        label="Bad lines",
        choices=[("skip", "Skip and report"), ("stop", "Stop the load")],
        widget=UnfoldAdminSelectWidget,
    )
    preserve_timestamps = forms.BooleanField(
        label="Keep created_at and updated_at of the file",
        required=False,
        initial=True,
        widget=UnfoldBooleanSwitchWidget,
    )
    dry_run = forms.BooleanField(
        label="Dry run: store nothing",
        required=False,
        widget=UnfoldBooleanSwitchWidget,
    )
    timezone = forms.CharField(
        label="Time zone",
        required=False,
        help_text="For times without one, like Europe/Berlin.",
        validators=[_zone],
        widget=UnfoldAdminTextInputWidget,
    )
    date_order = forms.ChoiceField(
        label="01/02/2026 is",
        required=False,
        choices=[("", "Refused"), ("dmy", "1 February"), ("mdy", "January 2")],
        widget=UnfoldAdminSelectWidget,
    )
    encoding = forms.CharField(
        label="Encoding",
        required=False,
        help_text="If it is not UTF-8, like cp1252.",
        widget=UnfoldAdminTextInputWidget,
    )
    null = forms.CharField(
        label="Null words",
        required=False,
        help_text="CSV cells that mean null, separated by commas: NULL, None.",
        widget=UnfoldAdminTextInputWidget,
    )
    map = forms.CharField(
        label="Rename fields",
        required=False,
        help_text="memory=content, user.id=user_id: a column or JSON key, then the field. "
        "notes= leaves one out.",
        widget=UnfoldAdminTextInputWidget,
    )
    set = forms.CharField(
        label="Constant fields",
        required=False,
        help_text="user_id=ann; separate several by commas.",
        widget=UnfoldAdminTextInputWidget,
    )
    ignore_unknown = forms.BooleanField(
        label="Ignore unknown fields",
        required=False,
        widget=UnfoldBooleanSwitchWidget,
    )

    def usual(self) -> list[forms.BoundField]:
        return [field for field in self if field.name not in _RARE]

    def rare(self) -> list[forms.BoundField]:
        return [field for field in self if field.name in _RARE]

    def is_rare_used(self) -> bool:
        return any(field.value() for field in self.rare())

    def clean(self) -> dict[str, Any]:
        chosen = super().clean() or {}
        if "resource" in chosen:
            try:
                chosen["reading"] = read_options(
                    RESOURCES[chosen["resource"]],
                    encoding=chosen.get("encoding", ""),
                    nulls=_several(chosen.get("null", "")) or None,
                    maps=_several(chosen.get("map", "")),
                    sets=_several(chosen.get("set", "")),
                    ignore_unknown=chosen.get("ignore_unknown", False),
                )
            except BadOption as error:
                self.add_error(error.option, _worded(str(error)))
        return chosen


def _several(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _worded(text: str) -> str:
    return reworded(text, _LABELS)


_RARE = ("timezone", "date_order", "encoding", "null", "map", "set", "ignore_unknown")
# The command's options by the labels that they have here.
_LABELS = {
    name.replace("_", "-"): f"“{UploadForm.base_fields[name].label}”"
    for name in (*_RARE, "preserve_timestamps")
}


def upload_form(site: AdminSite, request: HttpRequest) -> UploadForm:
    """What this member may load, and for a platform superuser into which organization.

    Raises: PermissionDenied, where that is nothing.
    """
    member = member_of(request)
    loads = [n for n, of in SCOPED_BY.items() if member.has_perm(permission(of, "write"))]
    if not loads:
        raise PermissionDenied
    is_sent = request.method == "POST"
    form = UploadForm(request.POST if is_sent else None, request.FILES if is_sent else None)
    form.fields["resource"].choices = [(name, name.capitalize()) for name in loads]  # type: ignore[attr-defined]
    if sole_organization(request) is None:
        whose = {"organization": organization_choice(Memory, site)}
        form.fields = {**whose, **form.fields}
    return form


def load_upload(request: HttpRequest, form: UploadForm) -> dict[str, Any]:
    """What the page shows of the load. Called outside any context: the loader enters it."""
    chosen = form.cleaned_data
    options = LoadOptions(
        skips_bad=chosen["on_error"] == "skip",
        dry_run=chosen["dry_run"],
        preserve_timestamps=chosen["preserve_timestamps"],
        timezone=chosen["timezone"],
        date_order=chosen["date_order"],
        ignore_unknown=chosen["ignore_unknown"],
    )
    resource, file, reading = chosen["resource"], chosen["file"], chosen["reading"]
    try:
        with source_of(file, name=file.name, size=file.size, options=reading) as source:
            report = run_load(
                resource,
                source.lines(),
                organization=sole_organization(request) or chosen["organization"],
                actor=actor_of(request),
                options=options,
                notices=source.notices,
            )
    except UnreadableFile as error:
        return {"stopped": _worded(str(error))}
    except LoadStopped as stopped:
        detail = load_refusal(stopped, says=_worded).detail
        return {"stopped": str(detail), **_shown(stopped.report)}
    return _shown(report)


def _shown(report: LoadReport) -> dict[str, Any]:
    summary = report.as_dict()
    rejects = [{**as_json(error), "message": _worded(error.message)} for error in report.rejects]
    lines = b"".join(json.dumps(reject).encode() + b"\n" for reject in rejects)
    rows = [(report.resource, summary), *((name, summary[name]) for name in report.children)]
    return {
        "report": report,
        "headings": _COUNTS.values(),
        "rows": [(name, [counts.get(key, "") for key in _COUNTS]) for name, counts in rows],
        "notices": [_worded(notice) for notice in report.notices],
        "rejects": rejects[:SHOWN_REJECTS],
        "kept_rejects": len(report.rejects),
        "rejects_url": "data:application/x-ndjson;base64," + base64.b64encode(lines).decode(),
    }
