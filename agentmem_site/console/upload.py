"""The page that loads a file: the loader's door in the console."""

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
    UnfoldBooleanSwitchWidget,
)

from accounts.console.context import actor_of, member_of, sole_organization
from accounts.console.forms import organization_choice
from accounts.roles import permission
from agentmem_site.api.bulk import SCOPED_BY, load_refusal
from agentmem_site.bulk import LoadOptions, LoadReport, LoadStopped
from agentmem_site.bulk.readers import UnreadableFile, read_options, source_of
from agentmem_site.bulk.rejects import as_json
from agentmem_site.bulk.wording import reworded
from agentmem_site.services.loads import RESOURCES, run_load
from memories.models import Memory

SHOWN_REJECTS = 100
FILES = ".jsonl,.ndjson,.json,.csv,.parquet,.gz,.zst"
_COUNTS = {
    "read": "Lines",
    "inserted": "Inserted",
    "updated": "Updated",
    "unchanged": "Unchanged",
    "deleted": "Left in the trash",
    "duplicates": "Duplicates",
    "rejected": "Rejected",
}


class UploadForm(forms.Form):
    resource = forms.ChoiceField(label="What the file holds", widget=UnfoldAdminSelectWidget)
    file = forms.FileField(
        help_text="JSON lines, CSV or Parquet; also packed with gzip or zstd. A line is a whole "
        "row: what it leaves out takes its default.",
        widget=UnfoldAdminFileFieldWidget(attrs={"accept": FILES}),
    )
    on_error = forms.ChoiceField(
        label="A bad line",
        choices=[("skip", "is left out, and the load goes on"), ("stop", "ends the load")],
        widget=UnfoldAdminSelectWidget,
    )
    dry_run = forms.BooleanField(
        label="Only try it: nothing is stored",
        required=False,
        widget=UnfoldBooleanSwitchWidget,
    )


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
    options = LoadOptions(skips_bad=chosen["on_error"] == "skip", dry_run=chosen["dry_run"])
    resource, file = chosen["resource"], chosen["file"]
    reading = read_options(RESOURCES[resource])
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
        return {"stopped": str(error)}
    except LoadStopped as stopped:
        return {"stopped": str(load_refusal(stopped).detail), **_shown(stopped.report)}
    return _shown(report)


def _shown(report: LoadReport) -> dict[str, Any]:
    told = report.as_dict()
    lines = b"".join(json.dumps(as_json(reject)).encode() + b"\n" for reject in report.rejects)
    rows = [(report.resource, told), *((name, told[name]) for name in report.children)]
    return {
        "report": report,
        "headings": _COUNTS.values(),
        "rows": [(name, [counts.get(key, "") for key in _COUNTS]) for name, counts in rows],
        "notices": [reworded(notice, {}) for notice in report.notices],
        "rejects": report.rejects[:SHOWN_REJECTS],
        "kept_rejects": len(report.rejects),
        "rejects_url": "data:application/x-ndjson;base64," + base64.b64encode(lines).decode(),
    }
