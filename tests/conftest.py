"""The cast: acme, where alice works, and globex, where mallory does and must see none of acme."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection

from accounts.models import Member, Organization
from tests.guard import refuse_without_organization
from tests.makers import make_key, make_member, make_organization


@pytest.fixture
def acme(db: None) -> Organization:
    return make_organization("acme")


@pytest.fixture
def globex(db: None) -> Organization:
    return make_organization("globex")


@pytest.fixture
def alice(acme: Organization) -> Member:
    return make_member(acme, "alice")


@pytest.fixture
def mallory(globex: Organization) -> Member:
    return make_member(globex, "mallory")


@pytest.fixture
def acme_key(acme: Organization) -> str:
    return make_key(acme)


@pytest.fixture
def globex_key(globex: Organization) -> str:
    return make_key(globex)


@pytest.fixture(autouse=True)
def hits_wait(settings: Any) -> None:
    """No thread writes what was found: a test does, by `write_hits`."""
    settings.FOUND_EVERY_S = 0


@pytest.fixture(autouse=True)
def guarded(request: Any) -> Iterator[None]:
    """Fails a statement that names a data-plane table and no organization. The console is exempt
    (stock admin goes by id), and what says `@pytest.mark.unguarded`."""
    uses_database = {"db", "transactional_db"} & set(request.fixturenames) or (
        request.node.get_closest_marker("django_db")
    )
    if not uses_database or request.node.get_closest_marker("unguarded"):
        yield
        return
    with connection.execute_wrapper(refuse_without_organization):
        yield
