"""Retention rules: who may set them, and the preview of what they will delete."""

import html
import json

import pytest

from accounts.models import Organization
from accounts.roles import ALL_PERMISSIONS
from accounts.services.organizations import organizations
from accounts.services.users import users
from accounts.tenancy import tenant
from memories.models import Memory
from tests.api.conftest import client_with
from tests.console.conftest import signed_in
from tests.console.sending import sent
from tests.console.test_pages import url
from tests.makers import TESTER, make_key, make_memory, make_user
from tests.memories.test_sweep import days_ago, swept

pytestmark = pytest.mark.unguarded  # (the console's pages)

STRICT = {"retention": {"memory_days": 30, "trash_days": 7}}


@pytest.fixture
def filled(acme, settings):
    settings.WHITENOISE_AUTOREFRESH = True
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    make_memory(acme)
    for age in (31, 40):
        make_memory(acme, created_at=days_ago(age))
    user = make_user(acme)
    with tenant(acme):
        rows = type(user).objects.for_organization(acme).filter(pk=user.pk)
        users.delete(rows, organization=acme, actor=TESTER)
        rows.update(deleted_at=days_ago(8))
    return acme


def stored(organization):
    return Organization.objects.get(pk=organization.pk).settings


def test_setting_retention_requires_its_own_permission(filled):
    without = [scope for scope in ALL_PERMISSIONS if scope != "organization:retention"]
    client = client_with(make_key(filled, without))
    for path in ("organizations/acme", "organizations/acme?preview=true"):
        refused = client.patch(path, {"settings": STRICT})
        assert refused.status_code == 403
        assert "organization:retention" in refused.json()["detail"]
    assert stored(filled) == {}
    assert client.patch("organizations/acme", {"settings": {"language": "german"}}).data
    keeper = client_with(make_key(filled, ["organization:write", "organization:retention"]))
    changed = {"settings": {"language": "german", **STRICT}}
    assert keeper.patch("organizations/acme", changed).status_code == 200
    assert stored(filled) == changed["settings"]
    # Unchanged rules may be sent back with another change.
    again = {"settings": {**STRICT, "language": "english"}}
    assert client.patch("organizations/acme", again).status_code == 200
    for settings in ({}, {"retention": {}}, {"retention": {"memory_days": 3650}}):
        assert client.patch("organizations/acme", {"settings": settings}).status_code == 403


@pytest.mark.parametrize("method", ["patch", "put"])
def test_a_preview_counts_what_the_next_sweep_would_remove(filled, method):
    api = client_with(make_key(filled))
    body = {"name": "Other", "settings": STRICT}
    preview = getattr(api, method)("organizations/acme?preview=true", body).json()
    assert preview["preview"] is True
    assert preview["would_take"] == {
        "expired": 0,
        "aged": 2,
        "unfound": 0,
        "purged": {"user": 1},
        "cached_vectors": 0,
        "abandoned_loads": 0,
    }
    organization = Organization.objects.get(pk=filled.pk)
    assert (organization.settings, organization.name) == ({}, "Acme")
    with tenant(filled):
        assert Memory.objects.for_organization(filled).live().count() == 3
    wrong = api.patch(
        "organizations/acme?preview=true", {"settings": {"retention": {"memory_days": 0}}}
    )
    assert wrong.status_code == 400
    assert wrong.json()["detail"].startswith("settings.retention.memory_days is a whole number")


def test_the_console_shows_counts_before_it_saves_stricter_rules(filled, alice):
    console = signed_in(alice)
    page_url = url(Organization, "change", filled.pk)
    form = sent(console.get(page_url)) | {"settings": json.dumps(STRICT)}
    page = console.post(page_url, form)
    text = html.unescape(page.content.decode())
    assert (
        "the next sweep would remove: 2 memories over the age limit (to the trash), "
        "1 user (for good). Save again to confirm."
    ) in text
    assert stored(filled) == {}
    counted = page.context["adminform"].form["counted_retention"].value()
    assert counted in text
    other = json.dumps({"retention": {"memory_days": 1}})  # not what was counted
    page = console.post(page_url, {**form, "settings": other, "counted_retention": counted})
    assert stored(filled) == {}
    assert console.post(page_url, {**form, "counted_retention": counted}).status_code == 302
    assert stored(filled) == STRICT
    # Looser rules, and other settings, are saved at once.
    looser = {"retention": {"memory_days": 60, "trash_days": 7}, "language": "german"}
    form = sent(console.get(page_url)) | {"settings": json.dumps(looser)}
    assert console.post(page_url, form).status_code == 302
    assert stored(filled) == looser


def test_a_sweep_removes_what_the_preview_counted(filled):
    api = client_with(make_key(filled))
    preview = api.patch("organizations/acme?preview=true", {"settings": STRICT}).json()
    with tenant(filled):
        organizations.update(filled, organization=filled, actor=TESTER, values={"settings": STRICT})
    assert swept(filled) == preview["would_take"]
