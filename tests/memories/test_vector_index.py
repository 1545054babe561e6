"""The HNSW index, built after a first load: searches find the same rows at every moment."""

import io
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Timer

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection

from accounts.tenancy import tenant
from agentmem_site.db.roles import owner_beside
from memories.models import EMBEDDING_DIM, Memory
from memories.search.filters import MemoryFilter
from memories.search.ranking import QueryVector, Weights, rank
from memories.services import embed_worker, vector_index
from memories.services.embed_worker import EmbedWorker
from memories.services.vector_index import BUILDING, INDEX, first_load, index_state
from tests.makers import make_memory, make_organization
from tests.memories.test_worker import environment

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.django_db(transaction=True)


@contextmanager
def as_other(statement, *parameters):
    """Executes on a connection of the owner, in autocommit; open for as long as the block lasts."""
    with owner_beside(connection) as owner, owner.cursor() as cursor:
        cursor.execute(statement, parameters)
        yield cursor


@pytest.fixture(autouse=True)
def _restore_index():
    """Other tests use the same database."""
    before = definition()
    yield
    vector_index.repair_index()
    assert definition() == before


def definition():
    with connection.cursor() as cursor:
        cursor.execute("SELECT indexdef FROM pg_indexes WHERE indexname = %s", [INDEX])
        return cursor.fetchone()


def vector(direction):
    return [1.0, direction / 100] + [0.0] * (EMBEDDING_DIM - 2)


def load(organization, directions, *, is_built_after):
    """Stores a memory for each direction, `is_indexed` or not."""
    for direction in directions:
        row = make_memory(
            organization,
            embedding=vector(direction),
            embedding_model="compass",
            content=str(direction),
        )
        with tenant(organization):
            own = Memory.objects.for_organization(organization).filter(pk=row.pk)
            own.update(is_indexed=is_built_after)


def nearest(organization, *, limit=5, exact_rows=2):
    """Contents of the memories nearest to direction 0, nearest first, searched by the indexes."""
    with tenant(organization):
        hits = rank(
            organization=organization,
            query="",
            language="english",
            memory_filter=MemoryFilter(),
            vectors=[QueryVector("compass", str(vector(0)))],
            weights=Weights(dense=1, lexical=0),
            limit=limit,
            exact_rows=exact_rows,
        )
        contents = dict(Memory.objects.for_organization(organization).values_list("id", "content"))
    return [contents[hit.id] for hit in hits]


def uses_index(organization):
    with tenant(organization), connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")
        cursor.execute(
            "EXPLAIN SELECT id FROM memories_memory WHERE organization_id = %s AND is_indexed "
            "AND NOT is_deleted ORDER BY embedding <=> %s::halfvec LIMIT 5",
            [organization.pk, str(vector(0))],
        )
        return INDEX in str(cursor.fetchall())


def reindex():
    out = io.StringIO()
    call_command("reindex", vectors=True, no_progress=True, stdout=out)
    return out.getvalue().strip()


def drop_index():
    with as_other("DROP INDEX memories_memory_embedding"):
        pass


def test_a_large_first_load_is_searchable_and_its_index_is_built_at_the_end(monkeypatch):
    monkeypatch.setattr(vector_index, "POLL_EVERY_S", 0.0)
    acme, calls = make_organization("acme"), []
    with first_load(is_large=True, on_progress=lambda *call: calls.append(call)) as is_built_after:
        assert is_built_after
        assert index_state() == "missing"
        load(acme, range(9, 0, -1), is_built_after=is_built_after)
        assert nearest(acme) == ["1", "2", "3", "4", "5"]
    assert index_state() == "valid"
    assert uses_index(acme)
    assert nearest(acme) == ["1", "2", "3", "4", "5"]
    assert calls[0] == (0, 0, "counting rows")


def test_a_small_load_leaves_the_index_alone():
    with first_load(is_large=False) as is_built_after:
        assert not is_built_after
        assert index_state() == "valid"


def test_an_index_that_holds_vectors_is_not_dropped():
    load(make_organization("acme"), [1], is_built_after=True)
    with first_load(is_large=True) as is_built_after:
        assert not is_built_after
        assert index_state() == "valid"


def test_vectors_that_are_not_indexed_do_not_keep_the_index():
    load(make_organization("acme"), [1, 2], is_built_after=False)
    with first_load(is_large=True) as is_built_after:
        assert is_built_after


def test_rows_that_another_organization_adds_meanwhile_are_found():
    acme, globex = make_organization("acme"), make_organization("globex")
    with first_load(is_large=True) as is_built_after:
        load(acme, range(1, 6), is_built_after=is_built_after)
        load(globex, range(3, 0, -1), is_built_after=False)
        assert nearest(globex, limit=3) == ["1", "2", "3"]
    assert nearest(globex, limit=3) == ["1", "2", "3"]
    assert nearest(acme, limit=3) == ["1", "2", "3"]


def test_the_next_load_builds_the_index_that_an_interrupted_one_left_out():
    acme, notices = make_organization("acme"), []
    with (
        pytest.raises(KeyboardInterrupt),
        first_load(is_large=True, on_notice=notices.append) as is_built_after,
    ):
        load(acme, [3, 2], is_built_after=is_built_after)
        raise KeyboardInterrupt
    assert notices == [vector_index.NOT_BUILT]
    assert index_state() == "missing"
    with first_load(is_large=False) as is_built_after:
        assert is_built_after
        load(acme, [1], is_built_after=is_built_after)
    assert uses_index(acme)
    assert nearest(acme, limit=3) == ["1", "2", "3"]


def test_of_two_loads_the_last_one_builds():
    acme, globex = make_organization("acme"), make_organization("globex")
    notices = []
    with first_load(is_large=True) as is_built_after:
        with first_load(is_large=True, on_notice=notices.append) as is_other_built_after:
            load(globex, [1, 2, 3], is_built_after=is_other_built_after)
        assert notices == ["Another load is running: the last one builds the index of vectors."]
        assert index_state() == "missing"
        load(acme, [1, 2, 3], is_built_after=is_built_after)
    for organization in (acme, globex):
        assert uses_index(organization)
        assert nearest(organization, limit=3) == ["1", "2", "3"]


def test_a_load_that_lost_its_owner_connection_still_builds_the_index():
    acme = make_organization("acme")
    with first_load(is_large=True) as is_built_after:
        load(acme, [2, 1], is_built_after=is_built_after)
        with as_other(
            "SELECT pg_terminate_backend(l.pid) FROM pg_locks l "
            "JOIN pg_database d ON d.oid = l.database AND d.datname = current_database() "
            "WHERE l.objid = %s",
            BUILDING,
        ):
            await_free_lock()
    assert uses_index(acme)


def test_a_load_during_a_build_leaves_indexing_to_the_worker():
    drop_index()
    with (
        as_other("SELECT pg_advisory_lock(%s)", BUILDING),
        first_load(is_large=True) as is_built_after,
    ):
        assert not is_built_after


def test_a_table_in_use_by_a_long_transaction_keeps_its_index(monkeypatch):
    monkeypatch.setattr(vector_index, "DROP_LOCK_TIMEOUT", "50ms")
    make_memory(make_organization("acme"))
    notices = []
    with as_other("BEGIN") as other:
        other.execute("SELECT FROM memories_memory")
        with first_load(is_large=True, on_notice=notices.append) as is_built_after:
            assert not is_built_after
        other.execute("ROLLBACK")
    assert "A long transaction is using" in notices[0]
    assert index_state() == "valid"


@pytest.fixture
def without_owner():
    owner = connection.settings_dict["OWNER"]
    connection.settings_dict["OWNER"] = {}
    yield
    connection.settings_dict["OWNER"] = owner


def test_without_the_owner_a_load_leaves_indexing_to_the_worker(without_owner):
    notices = []
    with first_load(is_large=True, on_notice=notices.append) as is_built_after:
        assert not is_built_after
    assert notices == []
    assert index_state() == "valid"


def test_without_the_owner_a_missing_index_is_reported(request):
    drop_index()
    request.getfixturevalue("without_owner")
    notices = []
    with first_load(is_large=False, on_notice=notices.append) as is_built_after:
        assert not is_built_after
    assert notices == [vector_index.WITHOUT_OWNER]
    with pytest.raises(CommandError, match="set DATABASE_OWNER_URL and run") as refusal:
        reindex()
    assert refusal.value.returncode == 77


def test_reindex_builds_a_missing_index():
    drop_index()
    assert reindex().startswith("Index of vectors built over ")
    assert index_state() == "valid"
    assert reindex() == "The index of vectors is valid: nothing to do."


def test_reindex_rebuilds_an_index_whose_build_was_interrupted():
    acme = make_organization("acme")
    load(acme, [3, 2, 1], is_built_after=True)
    drop_index()
    interrupt_a_build()
    assert index_state() == "invalid"
    assert nearest(acme, limit=3) == ["1", "2", "3"]
    assert reindex().startswith("Index of vectors built over ")
    assert uses_index(acme)


def test_a_first_load_drops_an_index_whose_build_was_interrupted():
    drop_index()
    interrupt_a_build()
    with first_load(is_large=False) as is_built_after:
        assert is_built_after
        assert index_state() == "missing"


def interrupt_a_build():
    """A build that waits for a writer until its lock_timeout."""
    with (
        as_other("BEGIN") as writer,
        owner_beside(connection) as owner,
        owner.cursor() as cursor,
    ):
        writer.execute("LOCK TABLE memories_memory IN ROW EXCLUSIVE MODE")
        cursor.execute("SET lock_timeout = '50ms'")
        with suppress(OperationalError):
            vector_index._create(owner)
        writer.execute("ROLLBACK")


def test_a_build_does_not_block_writers():
    acme = make_organization("acme")
    drop_index()
    with ThreadPoolExecutor() as pool, as_other("BEGIN") as writer:
        writer.execute("LOCK TABLE memories_memory IN ROW EXCLUSIVE MODE")
        building = pool.submit(in_thread, vector_index.repair_index)
        await_waiting_build()
        with tenant(acme), connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '1s'")
            cursor.execute("LOCK TABLE memories_memory IN ROW EXCLUSIVE MODE")
        writer.execute("ROLLBACK")
    building.result(timeout=60)
    assert index_state() == "valid"


def test_a_build_without_shared_memory_continues_without_parallel_workers(monkeypatch):
    acme = make_organization("acme")
    load(acme, [2, 1], is_built_after=True)
    drop_index()
    too_much = "SELECT set_config('maintenance_work_mem', '1TB', false), %s"
    monkeypatch.setattr(vector_index, "_RAISE_WORK_MEM", too_much)
    with as_other("ALTER TABLE memories_memory SET (parallel_workers = 1)") as owner:
        with pytest.raises(OperationalError, match="shared memory"):
            create_with_parallel_workers()
        assert reindex().startswith("Index of vectors built over ")
        owner.execute("ALTER TABLE memories_memory RESET (parallel_workers)")
    assert nearest(acme, limit=2) == ["1", "2"]


def create_with_parallel_workers():
    with owner_beside(connection) as owner, owner.cursor() as cursor:
        cursor.execute("SET maintenance_work_mem = '1TB'")
        vector_index._create(owner)


def test_a_build_waits_for_writers(monkeypatch):
    monkeypatch.setattr(vector_index, "DROP_LOCK_TIMEOUT", "50ms")  # not for the build
    notices = []
    with as_other("SELECT") as writer, first_load(is_large=True, on_notice=notices.append):
        writer.execute("BEGIN; LOCK TABLE memories_memory IN ROW EXCLUSIVE MODE")
        Timer(0.5, writer.execute, ["ROLLBACK"]).start()
    assert notices == []
    assert index_state() == "valid"


def in_thread(work):
    try:
        return work()
    finally:
        connection.close()


def await_waiting_build():
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) "
                "WHERE NOT granted AND datname = current_database()"
            )
            if cursor.fetchone()[0]:
                return
        time.sleep(0.02)
    raise AssertionError("No build is waiting.")


def test_reindex_refuses_while_a_load_is_running():
    with (
        first_load(is_large=True),
        pytest.raises(CommandError, match="it builds the index of vectors") as refusal,
    ):
        reindex()
    assert refusal.value.returncode == 75


def test_the_index_is_rebuilt_after_a_load_was_killed():
    acme = make_organization("acme")
    load(acme, [3, 2, 1], is_built_after=False)
    loading = subprocess.Popen(
        [sys.executable, "-c", LOADING],
        cwd=ROOT,
        env={**environment("static"), "DATABASE_OWNER_URL": owner_url()},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert loading.stdout.readline() == "True\n"
        assert index_state() == "missing"
    finally:
        loading.kill()
        loading.communicate()
    with tenant(acme):
        Memory.objects.for_organization(acme).update(is_indexed=True)  # as it had written them
    assert nearest(acme, limit=3) == ["1", "2", "3"]
    await_free_lock()
    assert reindex().startswith("Index of vectors built over ")
    assert uses_index(acme)


LOADING = """
import os, sys, time
os.environ["DJANGO_SETTINGS_MODULE"] = "agentmem_site.settings"
import django
django.setup()
from memories.services.vector_index import first_load
with first_load(is_large=True) as is_built_after:
    print(is_built_after, flush=True)
    time.sleep(60)
"""


def owner_url():
    settings, owner = connection.settings_dict, connection.settings_dict["OWNER"]
    url = environment("static")["DATABASE_URL"]
    return url.replace(
        f"{settings['USER']}:{settings['PASSWORD']}", f"{owner['USER']}:{owner['PASSWORD']}"
    )


def await_free_lock():
    """The server releases the lock when it notices that the process has ended."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
                "WHERE objid = %s AND datname = current_database()",
                [BUILDING],
            )
            if not cursor.fetchone()[0]:
                return
        time.sleep(0.02)
    raise AssertionError("The killed load holds its lock.")


def test_a_worker_builds_an_index_that_no_load_came_back_for(monkeypatch, caplog):
    drop_index()
    EmbedWorker().drain()
    assert index_state() == "missing"  # the load may be run again
    monkeypatch.setattr(embed_worker, "REPAIR_AFTER_S", 0.0)
    EmbedWorker().drain()
    assert index_state() == "valid"
    assert "it has been built" in caplog.text


def test_a_worker_leaves_the_index_to_a_running_load(monkeypatch):
    monkeypatch.setattr(embed_worker, "REPAIR_AFTER_S", 0.0)
    with first_load(is_large=True):
        EmbedWorker().drain()
        assert index_state() == "missing"


def test_a_worker_that_is_not_the_owner_warns_once(monkeypatch, caplog, request):
    drop_index()
    request.getfixturevalue("without_owner")
    monkeypatch.setattr(embed_worker, "REPAIR_AFTER_S", 0.0)
    monkeypatch.setattr(embed_worker, "INDEX_EVERY_S", 0.0)
    worker = EmbedWorker()
    worker.drain()
    worker.drain()
    assert caplog.text.count("set DATABASE_OWNER_URL and run") == 1
