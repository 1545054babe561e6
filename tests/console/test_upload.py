"""The page that loads a file: who may, what is told, and that it is the loader's own way."""

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


def test_a_file_is_loaded_for_the_members_organization_and_noted_as_theirs(console, acme, alice):
    page = upload(console, [{"external_id": "u1", "name": "Ann"}, {"external_id": "u2"}])
    assert page.status_code == 200
    assert page.context["report"].counts.inserted == 2
    assert "Loaded" in page.content.decode()
    with tenant(acme):
        made = User.objects.for_organization(acme).get(external_id="u1")
        assert (made.name, made.created_by_id) == ("Ann", alice.pk)
        event = AuditEvent.objects.for_organization(acme).get(action="loaded")
        assert (event.actor_kind, event.actor_name, event.ip) == (
            "member",
            alice.email,
            "127.0.0.1",
        )


def test_trying_stores_nothing(console, acme):
    page = upload(console, [{"external_id": "u1"}], dry_run="on")
    assert "nothing is stored" in page.content.decode()
    with tenant(acme):
        assert not User.objects.for_organization(acme).exists()


def test_a_bad_line_ends_the_load_where_that_is_asked_for(console, acme):
    page = upload(console, [{"external_id": "u1"}, {"nmae": "x"}], on_error="stop")
    told = page.content.decode()
    assert "line 2: nmae: Unknown field" in told
    assert "Nothing is stored." in told


def test_a_viewer_neither_sees_the_page_nor_loads(viewer, acme):
    assert viewer.get(reverse("admin:upload")).status_code == 403
    assert upload(viewer, [{"external_id": "u1"}]).status_code == 403
    assert "Import" not in viewer.get(reverse("admin:index")).content.decode()
    with tenant(acme):
        assert not User.objects.for_organization(acme).exists()


def test_a_member_loads_what_their_role_writes(writer):
    page = writer.get(reverse("admin:upload"))
    offered = [name for name, _ in page.context["form"].fields["resource"].choices]
    assert offered == ["sessions", "messages", "memories"]
    refused = upload(writer, [{"external_id": "u1"}])
    assert "Select a valid choice" in refused.content.decode()


def test_a_platform_superuser_says_whose_file_it_is(platform_console, acme, globex):
    refused = upload(platform_console, [{"external_id": "u1"}])
    assert "This field is required" in refused.content.decode()
    page = upload(platform_console, [{"external_id": "u1"}], organization=acme.pk)
    assert page.context["report"].counts.inserted == 1
    with tenant(acme):
        assert User.objects.for_organization(acme).get().external_id == "u1"
    with tenant(globex):
        assert not User.objects.for_organization(globex).exists()


def test_a_member_does_not_choose_another_organization(console, acme, globex):
    upload(console, [{"external_id": "u1"}], organization=globex.pk)
    with tenant(globex):
        assert not User.objects.for_organization(globex).exists()


def test_a_file_that_is_none_is_refused_in_words(console):
    assert "zip archive" in upload(console, b"PK\x03\x04 and more", name="a.zip").content.decode()
    assert "file is empty" in upload(console, b"").content.decode()


def test_a_spreadsheets_file_is_read_as_the_form_says(console, acme):
    text = "External ID;Full name;Since\nu1;Köln;01/02/2026\nu2;NULL;\n".encode("cp1252")
    page = upload(console, text, name="people.csv")
    told = page.content.decode()
    assert "“Rename fields”" in told
    assert "Full name" in told
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


def test_an_option_that_cannot_be_had_is_told_at_its_field(console):
    rows = [{"external_id": "u1"}]
    errors = upload(console, rows, map="x=nmae", timezone="Mars").context["form"].errors
    assert "there is no field 'nmae' (do you mean name?)" in errors["map"][0]
    assert "There is no time zone 'Mars'" in errors["timezone"][0]


def test_times_that_are_not_kept_are_told_by_the_forms_own_words(console):
    rows = [{"external_id": "u1", "created_at": "2026-01-31T10:00:00Z"}]
    told = upload(console, rows).content.decode()
    assert "“Keep created_at and updated_at of the file” keeps it." in told
    assert "not kept" not in upload(console, rows, preserve_timestamps="on").content.decode()


def test_a_stranger_is_sent_to_the_sign_in_page(client, db):
    assert upload(client, []).url.startswith(reverse("admin:login"))


def test_the_form_is_refused_without_its_token(alice):
    from django.test import Client

    careful = Client(enforce_csrf_checks=True)
    careful.force_login(alice)
    assert upload(careful, [{"external_id": "u1"}]).status_code == 403
