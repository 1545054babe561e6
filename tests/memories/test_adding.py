"""The service that adds memories: what a single request does not show."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection

from accounts.models import User
from accounts.tenancy import tenant
from memories.models import Memory, MemoryHistory
from memories.services.adding import add_memories
from tests.makers import TESTER

WRITERS, ITEMS = 6, 40


@pytest.mark.django_db(transaction=True)
def test_concurrent_writers_store_each_memory_once(acme):
    items = [
        json.dumps(
            {"content": f"Fact {n}", "user_id": f"user-{n % 7}"}
            | ({"external_id": f"m-{n}"} if n % 2 else {})
        ).encode()
        for n in range(ITEMS)
    ]

    def add(writer):
        # Each in another order: unless the statements sort them, they deadlock.
        ordered = items[writer:] + items[:writer] if writer % 2 else items[::-1]
        try:
            return add_memories(organization=acme, actor=TESTER, items=ordered, embed="later")
        finally:
            connection.close()

    with ThreadPoolExecutor(WRITERS) as pool:
        added = [one for batch in pool.map(add, range(WRITERS)) for one in batch]
    assert {one.status for one in added} == {"created", "duplicate"}
    assert sum(one.status == "created" for one in added) == ITEMS
    with tenant(acme):
        ids = set(Memory.objects.for_organization(acme).values_list("id", flat=True))
        assert ids == {one.id for one in added}
        assert len(ids) == MemoryHistory.objects.for_organization(acme).count() == ITEMS
        assert User.objects.for_organization(acme).count() == 7


def test_no_transaction_is_open_during_encoding(acme):
    with tenant(acme), pytest.raises(RuntimeError, match="outside tenant"):
        add_memories(organization=acme, actor=TESTER, items=[b'{"content": "x"}'])
