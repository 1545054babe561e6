"""The HNSW index apart from a first load: search says the same at every moment of it."""

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
    """On a connection of the owner's, in autocommit, for as long as the block lasts."""
    with owner_beside(connection) as owner, owner.cursor() as cursor:
        cursor.execute(statement, parameters)
        yield cursor


@pytest.fixture(autouse=True)
def _index_stands():
    """Other tests' database is this one."""
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


def load(organization, directions, *, is_apart):
    """What a load writes: vectors in ever other directions, in the index or not (yet)."""
    for direction in directions:
        made = make_memory(
            organization,
            embedding=vector(direction),
            embedding_model="compass",
            content=str(direction),
        )
        with tenant(organization):
            own = Memory.objects.for_organization(organization).filter(pk=made.pk)
            own.update(is_indexed=is_apart)


def found(organization, *, limit=5, exact_rows=2):
    """By meaning, through the indexes: the nearest to direction 0, the nearest first."""
    with tenant(organization):
        hits = rank(
            organization=organization,
            query="",
            language="english",
            narrowed=MemoryFilter(),
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


def nothing_but_no_index():
    with as_other("DROP INDEX memories_memory_embedding"):
        pass


def test_a_large_first_load_is_found_during_it_and_has_its_index_at_the_end(monkeypatch):
    monkeypatch.setattr(vector_index, "LOOK_EVERY_S", 0.0)
    acme, told = make_organization("acme"), []
    with first_load(is_large=True, on_progress=lambda *how: told.append(how)) as is_apart:
        assert is_apart
        assert index_state() == "missing"
        load(acme, range(9, 0, -1), is_apart=is_apart)
        assert found(acme) == ["1", "2", "3", "4", "5"]
    assert index_state() == "valid"
    assert uses_index(acme)
    assert found(acme) == ["1", "2", "3", "4", "5"]
    assert told[0] == (0, 0, "rows are counted")


def test_a_small_load_leaves_the_index_alone():
    with first_load(is_large=False) as is_apart:
        assert not is_apart
        assert index_state() == "valid"


def test_an_index_that_holds_vectors_is_not_taken_from_those_who_search():
    load(make_organization("acme"), [1], is_apart=True)
    with first_load(is_large=True) as is_apart:
        assert not is_apart
        assert index_state() == "valid"


def test_vectors_that_stand_outside_the_index_do_not_keep_it():
    load(make_organization("acme"), [1, 2], is_apart=False)
    with first_load(is_large=True) as is_apart:
        assert is_apart


def test_what_another_organization_adds_meanwhile_is_found_during_it_and_after():
    acme, globex = make_organization("acme"), make_organization("globex")
    with first_load(is_large=True) as is_apart:
        load(acme, range(1, 6), is_apart=is_apart)
        load(globex, range(3, 0, -1), is_apart=False)
        assert found(globex, limit=3) == ["1", "2", "3"]
    assert found(globex, limit=3) == ["1", "2", "3"]
    assert found(acme, limit=3) == ["1", "2", "3"]


def test_the_next_load_builds_what_one_that_stopped_has_not():
    acme, notices = make_organization("acme"), []
    with (
        pytest.raises(KeyboardInterrupt),
        first_load(is_large=True, on_notice=notices.append) as is_apart,
    ):
        load(acme, [3, 2], is_apart=is_apart)
        raise KeyboardInterrupt
    assert notices == [vector_index.NOT_BUILT]
    assert index_state() == "missing"
    with first_load(is_large=False) as is_apart:
        assert is_apart
        load(acme, [1], is_apart=is_apart)
    assert uses_index(acme)
    assert found(acme, limit=3) == ["1", "2", "3"]


def test_of_two_loads_the_last_one_builds():
    acme, globex = make_organization("acme"), make_organization("globex")
    notices = []
    with first_load(is_large=True) as is_apart:
        with first_load(is_large=True, on_notice=notices.append) as is_other_apart:
            load(globex, [1, 2, 3], is_apart=is_other_apart)
        assert notices == ["Another load is at work: the last one builds the index of vectors."]
        assert index_state() == "missing"
        load(acme, [1, 2, 3], is_apart=is_apart)
    for organization in (acme, globex):
        assert uses_index(organization)
        assert found(organization, limit=3) == ["1", "2", "3"]


def test_a_load_whose_connection_for_the_index_was_cut_builds_all_the_same():
    acme = make_organization("acme")
    with first_load(is_large=True) as is_apart:
        load(acme, [2, 1], is_apart=is_apart)
        with as_other(
            "SELECT pg_terminate_backend(l.pid) FROM pg_locks l "
            "JOIN pg_database d ON d.oid = l.database AND d.datname = current_database() "
            "WHERE l.objid = %s",
            BUILDING,
        ):
            await_free_lock()
    assert uses_index(acme)


def test_a_load_during_a_build_takes_the_worker_s_way():
    nothing_but_no_index()
    with as_other("SELECT pg_advisory_lock(%s)", BUILDING), first_load(is_large=True) as is_apart:
        assert not is_apart


def test_a_table_that_is_in_use_for_long_keeps_its_index(monkeypatch):
    monkeypatch.setattr(vector_index, "WAITS_AT_MOST", "50ms")
    make_memory(make_organization("acme"))
    notices = []
    with as_other("BEGIN") as other:
        other.execute("SELECT FROM memories_memory")
        with first_load(is_large=True, on_notice=notices.append) as is_apart:
            assert not is_apart
        other.execute("ROLLBACK")
    assert "in use by a long transaction" in notices[0]
    assert index_state() == "valid"


@pytest.fixture
def without_owner():
    owner = connection.settings_dict["OWNER"]
    connection.settings_dict["OWNER"] = {}
    yield
    connection.settings_dict["OWNER"] = owner


def test_without_the_owner_a_load_takes_the_worker_s_way(without_owner):
    notices = []
    with first_load(is_large=True, on_notice=notices.append) as is_apart:
        assert not is_apart
    assert notices == []
    assert index_state() == "valid"


def test_without_the_owner_a_missing_index_is_told(request):
    nothing_but_no_index()
    request.getfixturevalue("without_owner")
    notices = []
    with first_load(is_large=False, on_notice=notices.append) as is_apart:
        assert not is_apart
    assert notices == [vector_index.WITHOUT_OWNER]
    with pytest.raises(CommandError, match="set DATABASE_OWNER_URL and run") as refusal:
        reindex()
    assert refusal.value.returncode == 77


def test_reindex_builds_a_missing_index():
    nothing_but_no_index()
    assert reindex().startswith("Index of vectors built over ")
    assert index_state() == "valid"
    assert reindex() == "The index of vectors stands: nothing to do."


def test_reindex_builds_an_index_anew_that_was_broken_off():
    acme = make_organization("acme")
    load(acme, [3, 2, 1], is_apart=True)
    nothing_but_no_index()
    break_off_a_build()
    assert index_state() == "invalid"
    assert found(acme, limit=3) == ["1", "2", "3"]
    assert reindex().startswith("Index of vectors built over ")
    assert uses_index(acme)


def test_a_first_load_drops_an_index_that_was_broken_off():
    nothing_but_no_index()
    break_off_a_build()
    with first_load(is_large=False) as is_apart:
        assert is_apart
        assert index_state() == "missing"


def break_off_a_build():
    """It waits for a writer until it may not wait any longer."""
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


def test_nobody_who_writes_waits_for_a_build():
    acme = make_organization("acme")
    nothing_but_no_index()
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


def test_a_build_without_shared_memory_for_helpers_goes_on_alone(monkeypatch):
    acme = make_organization("acme")
    load(acme, [2, 1], is_apart=True)
    nothing_but_no_index()
    more_than_there_is = "SELECT set_config('maintenance_work_mem', '1TB', false), %s"
    monkeypatch.setattr(vector_index, "_MAKE_ROOM", more_than_there_is)
    with as_other("ALTER TABLE memories_memory SET (parallel_workers = 1)") as owner:
        with pytest.raises(OperationalError, match="shared memory"):
            create_with_helpers()
        assert reindex().startswith("Index of vectors built over ")
        owner.execute("ALTER TABLE memories_memory RESET (parallel_workers)")
    assert found(acme, limit=2) == ["1", "2"]


def create_with_helpers():
    with owner_beside(connection) as owner, owner.cursor() as cursor:
        cursor.execute("SET maintenance_work_mem = '1TB'")
        vector_index._create(owner)


def test_a_build_waits_for_whoever_is_writing(monkeypatch):
    monkeypatch.setattr(vector_index, "WAITS_AT_MOST", "50ms")  # that is for the drop
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


def test_reindex_leaves_it_to_a_load_that_is_at_work():
    with (
        first_load(is_large=True),
        pytest.raises(CommandError, match="that builds the index of vectors") as refusal,
    ):
        reindex()
    assert refusal.value.returncode == 75


def test_a_load_that_is_killed_leaves_nothing_that_the_next_command_cannot_mend():
    acme = make_organization("acme")
    load(acme, [3, 2, 1], is_apart=False)
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
    assert found(acme, limit=3) == ["1", "2", "3"]
    await_free_lock()
    assert reindex().startswith("Index of vectors built over ")
    assert uses_index(acme)


LOADING = """
import os, sys, time
os.environ["DJANGO_SETTINGS_MODULE"] = "agentmem_site.settings"
import django
django.setup()
from memories.services.vector_index import first_load
with first_load(is_large=True) as is_apart:
    print(is_apart, flush=True)
    time.sleep(60)
"""


def owner_url():
    settings, owner = connection.settings_dict, connection.settings_dict["OWNER"]
    url = environment("static")["DATABASE_URL"]
    return url.replace(
        f"{settings['USER']}:{settings['PASSWORD']}", f"{owner['USER']}:{owner['PASSWORD']}"
    )


def await_free_lock():
    """The server sees at once that a process is gone, but not before it looks."""
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


def test_a_worker_builds_what_nobody_came_back_for(monkeypatch, caplog):
    nothing_but_no_index()
    EmbedWorker().drain()
    assert index_state() == "missing"  # whoever was loading may come back
    monkeypatch.setattr(embed_worker, "MEND_AFTER_S", 0.0)
    EmbedWorker().drain()
    assert index_state() == "valid"
    assert "it has been built" in caplog.text


def test_a_worker_leaves_it_to_a_load_that_is_at_work(monkeypatch):
    monkeypatch.setattr(embed_worker, "MEND_AFTER_S", 0.0)
    with first_load(is_large=True):
        EmbedWorker().drain()
        assert index_state() == "missing"


def test_a_worker_that_is_not_the_owner_says_so_once(monkeypatch, caplog, request):
    nothing_but_no_index()
    request.getfixturevalue("without_owner")
    monkeypatch.setattr(embed_worker, "MEND_AFTER_S", 0.0)
    monkeypatch.setattr(embed_worker, "INDEX_EVERY_S", 0.0)
    worker = EmbedWorker()
    worker.drain()
    worker.drain()
    assert caplog.text.count("set DATABASE_OWNER_URL and run") == 1
