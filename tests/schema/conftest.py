from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection, transaction

from agentmem_site.db.roles import as_owner


@pytest.fixture
def owner(django_db_setup: None, django_db_blocker: Any) -> Iterator[Any]:
    """A cursor of the owner on the test database, in a transaction that is rolled back."""
    with django_db_blocker.unblock(), as_owner(connection), transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '5s'")
            yield cursor
        transaction.set_rollback(True)
