"""The console's cast: alice (admin of acme), a viewer and a user of acme, mallory, a superuser."""

from typing import Any

import pytest
from django.contrib.contenttypes.models import ContentType
from django.test import Client

from accounts.models import Member, Organization
from tests.makers import make_member

PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True)
def plain_site(settings: Any) -> None:
    settings.WHITENOISE_AUTOREFRESH = True  # otherwise each client reads all static files
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


def signed_in(member: Member) -> Client:
    ContentType.objects.clear_cache()
    client = Client(raise_request_exception=True)
    client.force_login(member)
    return client


@pytest.fixture
def console(alice: Member) -> Client:
    return signed_in(alice)


@pytest.fixture
def foreign(mallory: Member) -> Client:
    return signed_in(mallory)


@pytest.fixture
def viewer(acme: Organization) -> Client:
    return signed_in(make_member(acme, "victor", role="viewer"))


@pytest.fixture
def writer(acme: Organization) -> Client:
    return signed_in(make_member(acme, "uma", role="user"))


@pytest.fixture
def root(db: None) -> Member:
    return Member.objects.create_superuser("root@example.org", PASSWORD, name="Root")


@pytest.fixture
def platform_console(root: Member) -> Client:
    return signed_in(root)
