"""One file through the command, the API and the console, each into its own organization: equal
rows, equal reports, equal rejects."""

import io
import json

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import CommandError, call_command
from django.db import models
from django.urls import reverse
from django.utils.timezone import now

from accounts.models import User
from accounts.tenancy import tenant
from agentmem_site.bulk.rejects import as_json
from agentmem_site.db.fields import TenantForeignKey
from memories.models import Memory
from sessions.models import Run, Session
from tests.api.conftest import client_with
from tests.console.conftest import signed_in
from tests.makers import make_key, make_member, make_organization

pytestmark = [pytest.mark.unguarded, pytest.mark.django_db]

BAD = [b'{"nmae": "x"}', b"{", b'"text"', b'{"metadata": {"a": "\\u0000"}}']
# The rows before, the rows of the file; the key of the row in the trash.
FILES = {
    "users": (
        [{"external_id": n} for n in ("same", "changes", "trashed")],
        [
            {"external_id": "same"},
            {"external_id": "changes", "name": "Changed", "metadata": {"a": [1, 2.50, None]}},
            {"external_id": "trashed", "name": "Not now"},
            {"external_id": "new", "name": "Zoë 🎈", "email": "zoe@example.org"},
            {"external_id": "twice", "name": "first"},
            {"external_id": "twice", "name": "second"},
            {"external_id": 7.5},
        ],
        ("external_id", "trashed"),
    ),
    "sessions": (
        [{"session_id": n, "runs": [{"run_id": "1"}]} for n in ("same", "changes", "trashed")],
        [
            {"session_id": "same", "runs": [{"run_id": "1"}]},
            {
                "session_id": "changes",
                "agent_id": "barista",
                "user_id": "ann",
                "runs": [{"run_id": "1", "content": "Hello!"}, {"run_id": "2"}],
            },
            {"session_id": "trashed", "runs": [{"run_id": "2"}]},
            {"session_id": "new", "agent_id": "barista", "state": {"step": 1}},
            {"session_id": "twice", "name": "first"},
            {"session_id": "twice", "name": "second"},
            {"session_id": "bad", "runs": [{"run_id": "1", "input_tokens": -1}]},
        ],
        ("session_id", "trashed"),
    ),
    "memories": (
        [
            {"content": "Said before."},
            {"external_id": "changes", "content": "Likes tea."},
            {"external_id": "trashed", "content": "Gone."},
        ],
        [
            {"content": "Said before."},
            {"external_id": "changes", "content": "Likes coffee.", "user_id": "ann"},
            {"external_id": "trashed", "content": "Back?"},
            {"content": "New.", "speaker": "Ann", "agent_id": "barista", "importance": 0.25},
            {"content": "Said twice."},
            {"content": "Said twice."},
            {"content": ""},
        ],
        ("external_id", "trashed"),
    ),
}
MODELS = {"users": [User], "sessions": [Session, Run, User], "memories": [Memory, User]}


def by_command(organization, resource, path):
    out, rejects = io.StringIO(), path.with_name(f"{organization.slug}.rejects")
    options = {"organization": organization.slug, "on_error": "skip", "rejects": rejects}
    with pytest.raises(CommandError) as stopped:
        call_command("bulk_upsert", resource, str(path), json=True, stdout=out, **options)
    assert stopped.value.returncode == 3
    return json.loads(out.getvalue()), [json.loads(x) for x in rejects.read_bytes().splitlines()]


def by_request(organization, resource, path):
    client = client_with(make_key(organization))
    kind = "application/x-ndjson"
    answer = client.post(f"{resource}/bulk", path.read_bytes(), content_type=kind)
    assert answer.status_code == 207
    report = answer.json()
    return report, report.pop("rejects")


def by_page(organization, resource, path):
    client = signed_in(make_member(organization, "alice"))
    file = SimpleUploadedFile(path.name, path.read_bytes())
    form = {"resource": resource, "on_error": "skip", "file": file}
    report = client.post(reverse("admin:upload"), form).context["report"]
    as_told = {**report.as_dict(), "notices": list(report.notices)}
    return as_told, [as_json(reject) for reject in report.rejects]


DOORS = {"command": by_command, "request": by_request, "page": by_page}


def counted(report):
    return {k: v for k, v in report.items() if k not in ("seconds", "rows_per_second")}


def rows(organization, model):
    """All columns but ids, times and actors; references by their keys."""
    names = []
    for field in model._meta.concrete_fields:
        if isinstance(field, TenantForeignKey):
            key = "session_id" if field.name == "session" else "external_id"
            names.append(f"{field.name}__{key}")
        elif not isinstance(field, models.DateTimeField | models.UUIDField) and (
            field.name not in ("organization", "line_hash")  # (the hash contains a time)
        ):
            names.append(field.name)
    with tenant(organization):
        values = model.objects.for_organization(organization).values(*names)
        return sorted(repr(sorted(row.items())) for row in values)


@pytest.mark.parametrize("resource", FILES)
def test_three_doors_write_equal_rows_and_equal_reports(db, tmp_path, resource):
    before, after, (key, trashed) = FILES[resource]
    first, file = tmp_path / "before.jsonl", tmp_path / "file.jsonl"
    first.write_text("".join(json.dumps(row) + "\n" for row in before))
    good = [json.dumps(row).encode() for row in after]
    file.write_bytes(b"\n".join([*good[:3], b"", BAD[0], *good[3:], *BAD[1:]]))
    seen = {}
    for name, door in DOORS.items():
        organization = make_organization(f"by-{name}")
        call_command(
            "bulk_upsert",
            resource,
            str(first),
            organization=organization.slug,
            stdout=io.StringIO(),
        )
        with tenant(organization):
            MODELS[resource][0].objects.for_organization(organization).filter(
                **{key: trashed}
            ).update(is_deleted=True, deleted_at=now())
        report, rejects = door(organization, resource, file)
        seen[name] = (
            counted(report),
            rejects,
            [rows(organization, model) for model in MODELS[resource]],
        )
    report, rejects, _ = seen["command"]
    assert (report["read"], report["rejected"]) == (11, 5)
    kinds = ("inserted", "updated", "unchanged", "deleted", "duplicates")
    assert {kind: report[kind] for kind in kinds} == {
        "inserted": 2,
        "updated": 1,
        "unchanged": 1,
        "deleted": 1,
        "duplicates": 1,
    }
    assert [reject["line"] for reject in rejects] == [5, 9, 10, 11, 12]
    for name in ("request", "page"):
        for ours, theirs in zip(seen[name], seen["command"], strict=True):
            assert ours == theirs, name
