"""The import page: who may load, its messages, and that it has the loader's results."""

import json

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.urls import reverse

from accounts.models import AuditEvent, User
from accounts.tenancy import tenant

pytestmark = pytest.mark.unguarded


def upload(client, rows, resource="users", name="people.jsonl", **more):
    data = (
        rows if isinstance(rows, bytes) else b"".join(json.dumps(r).encode() + b"\n" for r in rows)
    )
    form = {"resource": resource, "on_error": "skip", **more}
    return client.post(reverse("admin:upload"), {**form, "file": SimpleUploadedFile(name, data)})


def test_a_file_is_loaded_into_the_members_organization_and_audited(console, acme, alice):
    page = upload(console, [{"external_id": "u1", "name": "Ann"}, {"external_id": "u2"}])
    assert page.status_code == 200
    assert page.context["report"].counts.inserted == 2
    assert "Loaded" in page.content.decode()
    with tenant(acme):
        user = User.objects.for_organization(acme).get(external_id="u1")
        assert (user.name, user.created_by_id) == ("Ann", alice.pk)
        event = AuditEvent.objects.for_organization(acme).get(action="loaded")
        assert (event.actor_kind, event.actor_name, event.ip) == (
            "member",
            alice.email,
            "127.0.0.1",
        )


def test_a_dry_run_stores_nothing(console, acme):
    page = upload(console, [{"external_id": "u1"}], dry_run="on")
    assert "nothing is stored" in page.content.decode()
    with tenant(acme):
        assert not User.objects.for_organization(acme).exists()


def test_a_bad_line_ends_the_load_if_the_form_says_so(console, acme):
    page = upload(console, [{"external_id": "u1"}, {"nmae": "x"}], on_error="stop")
    html = page.content.decode()
    assert "line 2: nmae: Unknown field" in html
    assert "Nothing is stored." in html


def test_a_viewer_cannot_open_the_page_or_load(viewer, acme):
    assert viewer.get(reverse("admin:upload")).status_code == 403
    assert upload(viewer, [{"external_id": "u1"}]).status_code == 403
    assert "Import" not in viewer.get(reverse("admin:index")).content.decode()
    with tenant(acme):
        assert not User.objects.for_organization(acme).exists()


def test_a_member_loads_what_their_role_may_write(writer):
    page = writer.get(reverse("admin:upload"))
    offered = [name for name, _ in page.context["form"].fields["resource"].choices]
    assert offered == ["sessions", "messages", "memories"]
    refused = upload(writer, [{"external_id": "u1"}])
    assert "Select a valid choice" in refused.content.decode()


def test_a_platform_superuser_chooses_the_organization(platform_console, acme, globex):
    refused = upload(platform_console, [{"external_id": "u1"}])
    assert "This field is required" in refused.content.decode()
    page = upload(platform_console, [{"external_id": "u1"}], organization=acme.pk)
    assert page.context["report"].counts.inserted == 1
    with tenant(acme):
        assert User.objects.for_organization(acme).get().external_id == "u1"
    with tenant(globex):
        assert not User.objects.for_organization(globex).exists()


def test_a_member_cannot_choose_another_organization(console, acme, globex):
    upload(console, [{"external_id": "u1"}], organization=globex.pk)
    with tenant(globex):
        assert not User.objects.for_organization(globex).exists()


def test_an_unreadable_file_is_refused_with_a_message(console):
    assert "zip archive" in upload(console, b"PK\x03\x04 and more", name="a.zip").content.decode()
    assert "file is empty" in upload(console, b"").content.decode()


def test_a_spreadsheets_file_is_read_as_the_form_says(console, acme):
    text = "External ID;Full name;Since\nu1;Köln;01/02/2026\nu2;NULL;\n".encode("cp1252")
    page = upload(console, text, name="people.csv")
    html = page.content.decode()
    assert "“Rename fields”" in html
    assert "Full name" in html
    assert "--" not in page.context["stopped"]
    page = upload(
        console,
        text,
        name="people.csv",
        encoding="cp1252",
        map="Full name=name, Since=created_at",
        null="NULL",
        timezone="Europe/Berlin",
        date_order="dmy",
        preserve_timestamps="on",
        set="status=inactive",
    )
    assert page.context["report"].counts.inserted == 2
    assert "External ID" in page.content.decode()
    with tenant(acme):
        ann = User.objects.for_organization(acme).get(external_id="u1")
    assert (ann.name, ann.status) == ("Köln", "inactive")
    assert ann.created_at.isoformat() == "2026-01-31T23:00:00+00:00"


def test_an_invalid_option_is_an_error_of_its_field(console):
    rows = [{"external_id": "u1"}]
    errors = upload(console, rows, map="x=nmae", timezone="Mars").context["form"].errors
    assert "there is no field 'nmae' (do you mean name?)" in errors["map"][0]
    assert "There is no time zone 'Mars'" in errors["timezone"][0]


def test_the_notice_of_ignored_times_names_the_fields_of_the_form(console):
    rows = [{"external_id": "u1", "created_at": "2026-01-31T10:00:00Z"}]
    html = upload(console, rows).content.decode()
    assert "“Keep created_at and updated_at of the file” keeps it." in html
    assert "not kept" not in upload(console, rows, preserve_timestamps="on").content.decode()


def test_an_anonymous_request_is_sent_to_the_sign_in_page(client, db):
    assert upload(client, []).url.startswith(reverse("admin:login"))


def test_the_form_is_refused_without_its_csrf_token(alice):
    from django.test import Client

    careful = Client(enforce_csrf_checks=True)
    careful.force_login(alice)
    assert upload(careful, [{"external_id": "u1"}]).status_code == 403
