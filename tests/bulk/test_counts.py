"""What a load writes and what it leaves alone, and the exact counts in its report."""

from datetime import UTC, datetime

import pytest
from django.db import connection
from django.utils import timezone

from accounts.models import AuditEvent, User
from accounts.services.users import users
from accounts.tenancy import tenant
from agentmem_site import samples
from agentmem_site.services.loads import RESOURCES
from memories.models import Agent, Block, Memory, MemoryHistory
from memories.services.memories import memories
from sessions.models import Message, Run, Session
from sessions.services.conversations import sessions
from tests.bulk.loading import load
from tests.makers import TESTER, make_agent, make_memory, make_session, make_user

COUNTS = ("inserted", "updated", "unchanged", "deleted", "duplicates")


def counts(report):
    return {name: report[name] for name in COUNTS if report[name]}


def versions(acme, model):
    """xmin, ctid and xmax of each row: any write changes them."""
    with tenant(acme), connection.cursor() as cursor:
        cursor.execute(
            f"SELECT id, xmin::text, ctid::text, xmax::text FROM {model._meta.db_table} "
            "WHERE organization_id = %s ORDER BY id",
            [acme.pk],
        )
        return cursor.fetchall()


@pytest.mark.parametrize("resource", list(RESOURCES))
def test_the_same_file_again_writes_nothing(acme, tmp_path, resource):
    # (Messages refer to the runs of sessions.)
    load(
        tmp_path, "sessions", b"".join(samples.lines("sessions", row_count=40, seed=1)).split(b"\n")
    )
    data = b"".join(samples.lines(resource, row_count=200, seed=1)).splitlines()
    model = RESOURCES[resource].model
    load(tmp_path, resource, data, batch_size=64)
    before = versions(acme, model), versions(acme, Run)
    report = load(tmp_path, resource, data, batch_size=64)
    assert counts(report) == {"unchanged": len(data)}
    assert (versions(acme, model), versions(acme, Run)) == before


@pytest.mark.parametrize("resource", list(RESOURCES))
def test_rows_come_back_from_the_trash(acme, tmp_path, resource):
    data = b"".join(samples.lines(resource, row_count=5, seed=1)).splitlines()
    model = RESOURCES[resource].model
    if resource == "messages":  # they refer to the runs of sessions
        sessions_lines = b"".join(samples.lines("sessions", row_count=5, seed=1)).splitlines()
        load(tmp_path, "sessions", sessions_lines)
    load(tmp_path, resource, data)
    with tenant(acme):
        rows = model.objects.for_organization(acme)
        assert rows.update(is_deleted=True, deleted_at=timezone.now()) == 5
    load(tmp_path, resource, data, restore=True)
    with tenant(acme):
        assert rows.live().count() == 5


@pytest.mark.parametrize("resource", ["agents", "sessions", "memories"])
def test_another_version_of_every_row_is_an_update(acme, tmp_path, resource):
    first = b"".join(samples.lines(resource, row_count=100, seed=1)).splitlines()
    other = b"".join(samples.lines(resource, row_count=100, seed=2)).splitlines()
    load(tmp_path, resource, first)
    assert counts(load(tmp_path, resource, other)) == {"updated": 100}


def test_a_line_is_the_whole_row_and_absent_fields_take_their_default(acme, tmp_path):
    load(tmp_path, "users", [{"external_id": "u", "name": "Ann", "metadata": {"a": 1}}])
    report = load(tmp_path, "users", [{"external_id": "u", "metadata": None}])
    assert counts(report) == {"updated": 1}
    with tenant(acme):
        user = User.objects.for_organization(acme).get()
        assert (user.name, user.metadata, user.timezone) == ("", {}, "UTC")


def test_the_last_of_a_key_in_a_batch_counts(acme, tmp_path):
    rows = [{"external_id": "u", "name": name} for name in ("one", "two", "three")]
    assert counts(load(tmp_path, "users", rows)) == {"inserted": 1, "duplicates": 2}
    with tenant(acme):
        assert User.objects.for_organization(acme).get().name == "three"


def test_batches_with_all_most_and_few_rows_new(acme, tmp_path):
    """A wrong guess about the next batch costs only time."""
    there = [{"session_id": f"s{n}", "runs": [{"run_id": "1"}]} for n in range(20)]
    load(tmp_path, "sessions", there)
    new = [{"session_id": f"n{n}", "runs": [{"run_id": "1"}]} for n in range(49)]
    changed = [{**row, "name": "changed"} for row in there[:5]]
    # Batches of 10: all new, all new, 9 new and one existing, ..., 5 changed and 5 not.
    rows = [*new[:20], *new[20:29], there[0], *new[29:], *changed, *there[5:10]]
    for preserve in (False, True):
        report = load(
            tmp_path, "sessions", rows, batch_size=10, dry_run=True, preserve_timestamps=preserve
        )
        assert counts(report) == {"inserted": 49, "updated": 5, "unchanged": 6}
    report = load(tmp_path, "sessions", rows, batch_size=10)
    assert counts(report) == {"inserted": 49, "updated": 5, "unchanged": 6}
    assert report["runs"] == {
        "inserted": 49, "updated": 0, "unchanged": 11, "deleted": 0, "duplicates": 0
    }  # fmt: skip


def test_rows_in_the_trash_are_counted_and_left_there(acme, tmp_path):
    user = make_user(acme, external_id="gone")
    with tenant(acme):
        rows = User.objects.for_organization(acme).filter(pk=user.pk)
        users.delete(rows, organization=acme, actor=TESTER)
    report = load(tmp_path, "users", [{"external_id": "gone", "name": "x"}, {"external_id": "b"}])
    assert counts(report) == {"inserted": 1, "deleted": 1}
    with tenant(acme):
        assert rows.get().is_deleted


def test_the_same_keys_in_two_organizations_are_two_rows(acme, globex, tmp_path):
    theirs = make_user(globex, external_id="u", name="Theirs")
    load(tmp_path, "users", [{"external_id": "u", "name": "Ours"}])
    with tenant(globex):
        assert User.objects.for_organization(globex).get() == theirs
        assert User.objects.for_organization(globex).get().name == "Theirs"


def test_unknown_agents_and_users_are_created_once(acme, tmp_path):
    rows = [{"session_id": f"s{n}", "agent_id": "a", "user_id": "u"} for n in range(5)]
    assert counts(load(tmp_path, "sessions", rows, batch_size=2)) == {"inserted": 5}
    with tenant(acme):
        agent = Agent.objects.for_organization(acme).get(external_id="a")
        owners = Session.objects.for_organization(acme).values_list("agent", flat=True)
        assert set(owners) == {agent.pk}


def test_a_reference_may_be_an_id(acme, tmp_path):
    agent = make_agent(acme)
    load(tmp_path, "sessions", [{"session_id": "s", "agent_id": str(agent.pk)}])
    with tenant(acme):
        assert Session.objects.for_organization(acme).get().agent_id == agent.pk
        assert Agent.objects.for_organization(acme).count() == 1


def test_an_id_may_have_any_spelling_of_a_uuid_and_ours_takes_precedence(acme, tmp_path):
    agent = make_agent(acme)
    make_agent(acme, external_id=str(agent.pk))
    rows = [
        {"session_id": "hex", "agent_id": agent.pk.hex},
        {"session_id": "upper", "agent_id": str(agent.pk).upper()},
        {"session_id": "key", "agent_id": str(agent.pk)},
    ]
    load(tmp_path, "sessions", rows)
    with tenant(acme):
        owners = dict(Session.objects.for_organization(acme).values_list("session_id", "agent"))
        assert owners == {"hex": agent.pk, "upper": agent.pk, "key": agent.pk}
        assert Agent.objects.for_organization(acme).count() == 2


def test_another_organizations_id_is_no_reference(acme, globex, tmp_path):
    theirs = make_agent(globex)
    load(tmp_path, "sessions", [{"session_id": "s", "agent_id": str(theirs.pk)}])
    with tenant(acme):
        agent = Session.objects.for_organization(acme).select_related("agent").get().agent
        # Used as the caller's own key: ids look like that in many systems.
        assert agent.pk != theirs.pk
        assert agent.external_id == str(theirs.pk)


def test_the_load_sets_timestamps_by_default(acme, tmp_path):
    row = {"external_id": "u", "created_at": "2024-01-01T00:00:00Z"}
    load(tmp_path, "users", [row])
    with tenant(acme):
        made = User.objects.for_organization(acme).get().created_at
    assert (datetime.now(UTC) - made).total_seconds() < 60
    load(tmp_path, "users", [{**row, "name": "changed"}])
    with tenant(acme):
        user = User.objects.for_organization(acme).get()
        assert user.created_at == made
        assert user.updated_at > made


def test_preserved_timestamps_take_part_in_the_comparison(acme, tmp_path):
    row = {"external_id": "u", "created_at": "2024-01-01T00:00:00Z", "updated_at": 1704153600}
    missing = {"external_id": "v", "created_at": None}
    first = load(tmp_path, "users", [row, missing], preserve_timestamps=True)
    assert counts(first) == {"inserted": 2}
    again = load(tmp_path, "users", [row, missing], preserve_timestamps=True)
    assert counts(again) == {"unchanged": 2}
    moved = [{**row, "updated_at": "2024-02-02T00:00:00+02:00"}, missing]
    report = load(tmp_path, "users", moved, preserve_timestamps=True)
    assert counts(report) == {"updated": 1, "unchanged": 1}
    with tenant(acme):
        user = User.objects.for_organization(acme).get(external_id="u")
        assert user.created_at == datetime(2024, 1, 1, tzinfo=UTC)
        assert user.updated_at == datetime(2024, 2, 1, 22, tzinfo=UTC)


def test_runs_are_rows_and_absent_ones_stay(acme, tmp_path):
    runs = [
        {"run_id": "1", "status": "completed", "metrics": {"input_tokens": 3, "total_tokens": 7}},
        {"run_id": "2", "messages": [{"role": "user", "content": "Hi"}]},
    ]
    report = load(tmp_path, "sessions", [{"session_id": "s", "runs": runs}])
    assert report["runs"]["inserted"] == 2
    report = load(
        tmp_path, "sessions", [{"session_id": "s", "runs": [{**runs[1], "status": "failed"}]}]
    )
    assert counts(report) == {"updated": 1}  # a session whose run changed has changed
    assert report["runs"]["updated"] == 1
    with tenant(acme):
        stored = Run.objects.for_organization(acme).order_by("run_id")
        assert [(r.run_id, r.status, r.total_tokens) for r in stored] == [
            ("1", "completed", 7),
            ("2", "failed", 0),
        ]
        session = Session.objects.for_organization(acme).get()
        assert session.updated_at > session.created_at


def test_a_run_is_not_added_to_a_session_in_the_trash(acme, tmp_path):
    session = make_session(acme, session_id="s")
    with tenant(acme):
        rows = Session.objects.for_organization(acme).filter(pk=session.pk)
        sessions.delete(rows, organization=acme, actor=TESTER)
    report = load(tmp_path, "sessions", [{"session_id": "s", "runs": [{"run_id": "1"}]}])
    assert counts(report) == {"deleted": 1}
    assert (report["runs"]["deleted"], report["runs"]["unchanged"]) == (1, 0)
    with tenant(acme):
        assert not Run.objects.for_organization(acme).exists()


def test_a_message_finds_its_run_within_its_session(acme, tmp_path):
    for name in ("s", "t"):
        load(tmp_path, "sessions", [{"session_id": name, "runs": [{"run_id": "1"}]}])
    row = {"external_id": "m", "role": "user", "session_id": "t", "run_id": "1"}
    load(tmp_path, "messages", [row])
    with tenant(acme):
        message = Message.objects.for_organization(acme).select_related("run__session").get()
        assert message.run.session.session_id == "t"


def test_a_memory_without_external_id_is_matched_by_its_content(acme, tmp_path):
    there = make_memory(acme, content="Likes tea")
    rows = [{"content": "Likes tea"}, {"content": "  Likes tea"}, {"content": "Likes milk"}]
    report = load(tmp_path, "memories", rows)
    assert counts(report) == {"inserted": 1, "updated": 1, "duplicates": 1}
    with tenant(acme):
        contents = Memory.objects.for_organization(acme).values_list("content", flat=True)
        assert sorted(contents) == ["  Likes tea", "Likes milk"]
        assert Memory.objects.for_organization(acme).filter(pk=there.pk).exists()


def test_content_in_the_trash_can_be_added_again(acme, tmp_path):
    there = make_memory(acme, content="Likes tea")
    with tenant(acme):
        rows = Memory.objects.for_organization(acme).filter(pk=there.pk)
        memories.delete(rows, organization=acme, actor=TESTER)
    assert counts(load(tmp_path, "memories", [{"content": "Likes tea"}])) == {"inserted": 1}


def test_a_vector_stays_while_the_embedded_text_does(acme, tmp_path):
    vector = [0.5] * 384
    row = {"external_id": "m", "content": "Likes tea", "embedding": vector}
    load(tmp_path, "memories", [row])

    def state():
        with tenant(acme):
            return Memory.objects.for_organization(acme).values_list(
                "embedding_state", "importance", "version"
            )[0]

    assert state() == ("ready", 0.5, 1)
    bare = {"external_id": "m", "content": "Likes tea"}
    assert counts(load(tmp_path, "memories", [bare])) == {"unchanged": 1}
    assert counts(load(tmp_path, "memories", [{**bare, "importance": 1}])) == {"updated": 1}
    assert state() == ("ready", 1.0, 2)
    load(tmp_path, "memories", [{**bare, "content": "Likes coffee"}], embed="later")
    assert state() == ("pending", 0.5, 3)
    with tenant(acme):
        history = MemoryHistory.objects.for_organization(acme).order_by("version")
        assert [(h.version, h.change_type, h.content) for h in history] == [
            (1, "created", "Likes tea"),
            (2, "updated", "Likes tea"),
            (3, "updated", "Likes coffee"),
        ]


def test_a_changed_block_gets_a_new_version(acme, tmp_path):
    load(tmp_path, "blocks", [{"external_id": "b", "label": "human", "value": "Ann"}])
    load(tmp_path, "blocks", [{"external_id": "b", "label": "human", "value": "Ann, 40"}])
    with tenant(acme):
        assert Block.objects.for_organization(acme).get().version == 2


def test_a_dry_run_counts_everything_and_stores_nothing(acme, tmp_path):
    rows = [{"external_id": f"u{n % 3}", "name": str(n)} for n in range(5)]
    report = load(tmp_path, "users", rows, dry_run=True, batch_size=2)
    assert (report["read"], report["inserted"], report["updated"]) == (5, 3, 2)
    with tenant(acme):
        assert not User.objects.for_organization(acme).exists()
        assert not AuditEvent.objects.for_organization(acme).filter(action="loaded").exists()


def test_a_load_leaves_one_audit_event_with_its_counts(acme, alice, tmp_path):
    load(tmp_path, "users", [{"external_id": "u"}], actor=alice.email)
    with tenant(acme):
        event = AuditEvent.objects.for_organization(acme).get(action="loaded")
        assert (event.resource_type, event.actor_id) == ("users", alice.pk)
        assert event.changes["inserted"] == 1
        assert User.objects.for_organization(acme).get().created_by_id == alice.pk


@pytest.mark.parametrize("batch_size", [1, 5000])
def test_runs_of_a_repeated_session_do_not_depend_on_the_batch_size(acme, tmp_path, batch_size):
    rows = [
        {"session_id": "s", "name": "one", "runs": [{"run_id": "a"}, {"run_id": "b"}]},
        {"session_id": "t", "runs": [{"run_id": "a"}]},
        {"session_id": "s", "name": "two", "runs": [{"run_id": "b", "content": "new"}]},
    ]
    report = load(tmp_path, "sessions", rows, batch_size=batch_size)
    runs = report["runs"]
    assert report["inserted"] == 2
    assert sum(runs.values()) == 4
    assert runs["inserted"] == 3
    with tenant(acme):
        stored = Run.objects.for_organization(acme).values_list(
            "session__session_id", "session__name", "run_id", "content"
        )
        assert sorted(stored) == [
            ("s", "two", "a", ""),
            ("s", "two", "b", "new"),
            ("t", "", "a", ""),
        ]
