"""Every table that the migrations create obeys the rules of the schema (catalog.py)."""

import pytest
from django.db import connection

from tests.schema import catalog

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("check", catalog.CHECKS, ids=lambda check: check.__name__)
def test_the_schema_obeys(check):
    with connection.cursor() as cursor:
        assert check(cursor) == []


def test_the_tests_sign_in_as_the_application():
    with connection.cursor() as cursor:
        cursor.execute("SELECT session_user, current_user")
        user = connection.settings_dict["USER"]
        assert cursor.fetchone() == (user, user)


def test_the_catalog_covers_all_models():
    assert {"accounts_user", "accounts_apikey", "memories_memory"} <= catalog.data_plane().keys()
    assert catalog.walled().keys() - catalog.data_plane().keys() == {"accounts_auditevent"}
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_proc WHERE prosecdef AND proname ~ '^agentmem'")
        assert cursor.fetchone()[0] >= 1
