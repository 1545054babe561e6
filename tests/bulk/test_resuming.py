"""Loads that are interrupted, have several workers, bad lines or a failing database."""

import json
from functools import partial
from zlib import crc32

import pytest
from django.core.management import CommandError
from django.db import IntegrityError, OperationalError
from psycopg import errors

from accounts.models import AuditEvent, LoadPart, User
from accounts.services.users import users as users_of_agents
from accounts.tenancy import tenant
from agentmem_site.bulk import LoadOptions, bulk_upsert, worker
from agentmem_site.bulk.faults import RetryPolicy
from agentmem_site.bulk.packing import UnreadableFile
from agentmem_site.bulk.report import BadLine, ChangedFile, Interrupted, Refused, Unreadable
from agentmem_site.bulk.writing import Writer
from agentmem_site.services.loads import run_load
from memories.models import Agent
from memories.services.agents import agents
from sessions.models import Message, Run, Session
from sessions.services.conversations import sessions
from tests.bulk.loading import load
from tests.makers import TESTER, make_message, make_organization, make_user

AT_ONCE = RetryPolicy(tries=3, base_s=0, factor=1, cap_s=0)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(worker, "DISK_FULL_PAUSES_S", (0, 0))


def users(count, **over):
    return [{"external_id": f"u{n}", "name": f"User {n}", **over} for n in range(count)]


def lines(rows, *, broken_after=None):
    for number, row in enumerate(rows, start=1):
        if number - 1 == broken_after:
            raise UnreadableFile("The cable is out.")
        yield number, json.dumps(row).encode(), 0


def run(
    organization,
    rows,
    *,
    job="",
    is_new=False,
    broken_after=None,
    on_begin=None,
    on_batch=None,
    **options,
):
    return run_load(
        "users",
        lines(rows, broken_after=broken_after),
        organization=organization,
        actor=TESTER,
        options=LoadOptions(**{"batch_size": 3, "retry": AT_ONCE, **options}),
        on_begin=on_begin or (lambda report: None),
        on_batch=on_batch or (lambda report: None),
        job=job,
        is_new=is_new,
    )


def names(organization):
    with tenant(organization):
        rows = User.objects.for_organization(organization)
        return dict(rows.values_list("external_id", "name"))


def parts(organization):
    with tenant(organization):
        return LoadPart.objects.for_organization(organization).count()


# -- interrupted ----------------------------------------------------------------------------------


def test_an_interrupted_load_resumes_and_reports_the_whole(acme):
    rows = [*users(9), {"external_id": "u0", "name": "Other"}]
    with pytest.raises(Unreadable) as stopped:
        run(acme, rows, job="nightly", broken_after=7)
    assert (stopped.value.report.read, stopped.value.report.last_line) == (6, 6)
    begins = []
    report = run(acme, rows, job="nightly", on_begin=lambda r: begins.append((r.read, r.last_line)))
    assert begins == [(6, 6)]
    assert (report.read, report.read_here, report.resumed_after) == (10, 4, 6)
    assert (report.counts.inserted, report.counts.updated) == (9, 1)
    assert parts(acme) == 0
    with tenant(acme):
        events = AuditEvent.objects.filter(action="loaded").order_by("created_at")
        assert [(e.status, e.changes["read"]) for e in events] == [("failure", 6), ("success", 10)]


def test_a_load_of_a_changed_file_does_not_resume(acme):
    rows = users(9)
    with pytest.raises(Unreadable):
        run(acme, rows, job="nightly", broken_after=7)
    rows[1]["name"] = "Other"
    for changed in (rows, rows[:4]):
        with pytest.raises(ChangedFile):
            run(acme, changed, job="nightly")
    assert names(acme)["u1"] == "User 1"
    report = run(acme, rows, job="nightly", is_new=True)
    assert (report.read, report.counts.updated, report.counts.unchanged) == (9, 1, 5)


def test_a_load_with_other_options_does_not_resume(acme):
    with pytest.raises(Unreadable):
        run(acme, users(9), job="nightly", broken_after=7)
    with pytest.raises(ChangedFile):
        run(acme, users(9), job="nightly", preserve_timestamps=True)


def test_after_a_bad_line_the_corrected_file_is_loaded_from_its_start(acme):
    with pytest.raises(BadLine):
        run(acme, [*users(7), {"external_id": ""}], job="nightly")
    report = run(acme, users(8, name="Mended"), job="nightly")
    assert (report.counts.inserted, report.counts.updated) == (2, 6)


def test_a_load_without_a_name_leaves_no_checkpoint(acme):
    with pytest.raises(Unreadable):
        run(acme, users(9), broken_after=7)
    assert parts(acme) == 0


def test_one_name_serves_several_resources(acme, tmp_path):
    with pytest.raises(Unreadable):
        run(acme, users(9), job="nightly", broken_after=7)
    load(tmp_path, "agents", [{"external_id": "a"}], job="nightly")
    assert run(acme, users(9), job="nightly").resumed_after == 6


def test_a_load_that_another_process_has_taken_over_stops(acme):
    def take_over(report):
        with tenant(acme):
            LoadPart.objects.for_organization(acme).update(line=5)

    with pytest.raises(Interrupted, match="Another process"):
        run(acme, users(9), job="nightly", on_begin=take_over)
    assert names(acme) == {}


# -- workers --------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_lines_of_one_key_keep_their_order_with_several_workers():
    acme = make_organization("acme")
    rows = [{"external_id": f"u{n % 40}", "name": f"{n}"} for n in range(400)]
    report = run(acme, rows, workers=3, batch_size=10)
    assert report.read == 400
    assert names(acme) == {f"u{n}": f"{360 + n}" for n in range(40)}
    counts = report.counts
    assert (counts.inserted, counts.inserted + counts.updated + counts.duplicates) == (40, 400)
    again = run(acme, rows[-40:], workers=2)
    assert (again.counts.unchanged, again.last_line) == (40, 40)


@pytest.mark.django_db(transaction=True)
def test_each_worker_resumes_at_its_checkpoint():
    acme = make_organization("acme")
    with pytest.raises(Unreadable):
        run(acme, users(100), job="nightly", workers=3, broken_after=80)
    assert parts(acme) == 3
    stored = len(names(acme))
    assert 0 < stored < 100
    # (With as many workers as at its start, whatever the option says now.)
    report = run(acme, users(100), job="nightly", workers=1)
    assert (report.read, report.counts.inserted, report.counts.unchanged) == (100, 100, 0)
    assert (len(names(acme)), parts(acme)) == (100, 0)


@pytest.mark.django_db(transaction=True)
def test_a_bad_line_stops_all_workers():
    acme = make_organization("acme")
    with pytest.raises(BadLine, match="line 51"):
        run(acme, [*users(50), {"external_id": ""}, *users(200)[50:]], workers=3)
    # Each worker reads at most two batches ahead, so none gets near the end.
    assert "u199" not in names(acme)


@pytest.mark.django_db(transaction=True)
def test_a_stopped_load_reports_what_one_of_two_workers_stored(tmp_path):
    acme = make_organization("acme")
    here, there = (
        [u for u in users(40) if crc32(u["external_id"].encode()) % 2 == n] for n in (0, 1)
    )
    with pytest.raises(CommandError) as stopped:
        load(tmp_path, "users", [*here, {**there[0], "nmae": "x"}], workers=2, batch_size=4)
    assert len(names(acme)) >= 4
    assert f"{len(names(acme))} lines are committed" in str(stopped.value)


# -- bad lines ------------------------------------------------------------------------------------


def test_bad_lines_are_named_in_a_file_and_the_others_stored(acme, tmp_path):
    rejects = tmp_path / "rejects.jsonl"
    rows = [*users(4), b"{", {"external_id": "u4", "nmae": "x"}, {"external_id": "u5"}]
    options = {"on_error": "skip", "rejects": rejects, "batch_size": 2}
    for _ in range(2):  # a new load starts a new file
        with pytest.raises(CommandError, match="2 lines are rejected") as stopped:
            load(tmp_path, "users", rows, **options)
        assert stopped.value.returncode == 3
        named = [json.loads(line) for line in rejects.read_text().splitlines()]
        assert [(r["line"], r["code"], r["field"]) for r in named] == [
            (5, "malformed_json", ""),
            (6, "unknown_field", "nmae"),
        ]
        starts = [len(b"".join(json.dumps(r).encode() + b"\n" for r in rows[:4]))]
        assert [r["byte_offset"] for r in named] == [*starts, starts[0] + 2]
    assert sorted(names(acme)) == ["u0", "u1", "u2", "u3", "u5"]


def test_without_a_file_the_first_rejects_are_shown(acme, tmp_path):
    with pytest.raises(CommandError) as stopped:
        load(tmp_path, "users", [{"external_id": ""}], on_error="skip")
    assert "line 1: external_id: A key must not be empty." in str(stopped.value)


def test_more_rejects_than_allowed_stop_the_load(acme, tmp_path):
    rows = [{"external_id": ""}, *users(3), {"external_id": ""}]
    with pytest.raises(CommandError, match="More than 1 lines are rejected") as stopped:
        load(tmp_path, "users", rows, on_error="skip", max_rejects=1, batch_size=2)
    assert stopped.value.returncode == 65
    assert "Lines up to 4 are committed" in str(stopped.value)


def test_rejects_that_cannot_be_written_stop_the_load_before_its_batch(acme, tmp_path):
    with pytest.raises(CommandError) as stopped:
        load(tmp_path, "users", users(1), on_error="skip", rejects=tmp_path / "no" / "file")
    assert stopped.value.returncode == 73
    full = {"on_error": "skip", "rejects": "/dev/full"}
    with pytest.raises(CommandError, match="No space left") as stopped:
        load(tmp_path, "users", [*users(1), {"external_id": ""}], **full)
    assert stopped.value.returncode == 73
    assert names(acme) == {}


def test_unknown_fields_can_be_ignored(acme, tmp_path):
    runs = [{"run_id": "r", "mood": "good"}]
    row = {"session_id": "s", "weather": "fine", "runs": runs}
    assert load(tmp_path, "sessions", [row], ignore_unknown=True)["runs"]["inserted"] == 1
    with pytest.raises(CommandError, match="weather: Unknown field"):
        load(tmp_path, "sessions", [row])


def test_a_row_that_only_postgresql_refuses_is_found_and_named(acme, monkeypatch):
    write = Writer.write

    def refuse(self, batch):
        if any(row.number in (7, 12) for row in batch.rows):
            raise IntegrityError("It is refused") from errors.CheckViolation()
        return write(self, batch)

    monkeypatch.setattr(Writer, "write", refuse)
    with pytest.raises(BadLine, match="line 7: It is refused") as stopped:
        run(acme, users(16), batch_size=16)
    assert (stopped.value.report.last_line, len(names(acme))) == (6, 6)
    report = run(acme, users(16), batch_size=16, skips_bad=True)
    assert [(e.line, e.code) for e in report.rejects] == [(7, "refused"), (12, "refused")]
    assert (report.read, len(names(acme))) == (16, 14)


def test_rejected_lines_keep_nothing_of_their_batch(acme):
    report = run(acme, [{"external_id": ""}, *users(3), {"nmae": 1}], skips_bad=True)
    for error in report.rejects:
        assert (error.__traceback__, error.__cause__, error.__context__) == (None, None, None)
    assert len(report.rejects) == 2


# -- a failing database ---------------------------------------------------------------------------


@pytest.fixture
def failing(monkeypatch):
    """Makes batches fail: `failing(error, when)`, if `when(rows, try)`."""
    write = Writer.write
    tries = []

    def fail(error, when):
        def write_or_fail(self, batch):
            tries.append(len(batch.rows))
            if when(len(batch.rows), len(tries)):
                raise OperationalError("It is refused") from error()
            return write(self, batch)

        monkeypatch.setattr(Writer, "write", write_or_fail)
        return tries

    return fail


@pytest.mark.parametrize(
    "error",
    [
        errors.AdminShutdown,
        errors.SerializationFailure,
        errors.DeadlockDetected,
        errors.LockNotAvailable,
        errors.OutOfMemory,
        errors.TooManyConnections,
        errors.IdleInTransactionSessionTimeout,
        errors.ConnectionFailure,
        errors.OperationalError,  # libpq's own
    ],
)
def test_a_transient_error_is_retried(acme, failing, error):
    failing(error, lambda rows, tries: tries in (1, 2, 4, 5))
    report = run(acme, users(6))
    assert (report.counts.inserted, report.tally.retries) == (6, 4)


def test_an_error_that_persists_stops_the_load(acme, failing):
    tries = failing(errors.DeadlockDetected, lambda rows, tries: tries > 1)
    with pytest.raises(Interrupted) as stopped:
        run(acme, users(6))
    assert (stopped.value.report.last_line, len(tries)) == (3, 1 + 1 + AT_ONCE.tries)


def test_a_load_waits_twice_for_a_full_disk(acme, failing):
    tries = failing(errors.DiskFull, lambda rows, tries: True)
    with pytest.raises(Interrupted):
        run(acme, users(3))
    assert len(tries) == 3


def test_a_damaged_database_is_not_retried(acme, failing):
    tries = failing(errors.DataCorrupted, lambda rows, tries: True)
    with pytest.raises(Refused):
        run(acme, users(3))
    assert len(tries) == 1


def test_a_batch_that_takes_too_long_is_halved_and_grows_again(acme, failing):
    tries = failing(errors.QueryCanceled, lambda rows, tries: rows > 4 and tries < 4)
    report = run(acme, users(40), batch_size=16, min_batch_size=2)
    assert tries == [16, 8, 4, 4, 4, 4, 4, 8, 4, 8]
    assert report.counts.inserted == 40


def test_a_slow_batch_of_the_minimum_size_stops_the_load(acme, failing):
    failing(errors.QueryCanceled, lambda rows, tries: True)
    with pytest.raises(Interrupted, match="A batch of 2 rows takes longer than 30 s"):
        run(acme, users(8), batch_size=8, min_batch_size=2)


def test_a_referenced_row_that_is_purged_meanwhile_is_created_again(acme):
    from sessions.bulk import MESSAGES

    def purge(report):
        if report.read == 1:
            with tenant(acme):
                everyone = User.objects.for_organization(acme)
                users_of_agents.purge(everyone, organization=acme, actor=TESTER)

    report = bulk_upsert(
        MESSAGES,
        [{"external_id": f"m{n}", "role": "user", "user_id": "u"} for n in range(3)],
        organization_id=acme.pk,
        transaction=partial(tenant, acme),
        options=LoadOptions(batch_size=1, retry=AT_ONCE),
        on_batch=purge,
    )
    assert (report.counts.inserted, report.tally.retries) == (3, 1)


def test_unchanged_lines_count_once_when_a_batch_is_split(acme, failing):
    known = users(12)
    run(acme, known, batch_size=12)
    rows = [
        row for pair in zip(known, users(24)[12:], strict=True) for row in pair
    ]  # every other line is unchanged
    # A batch of 24 is written in pieces of 3; after the first two, the database goes away.
    failing(errors.QueryCanceled, lambda rows, tries: rows > 3)
    interrupted = iter([False, False, True])

    def is_away(report):
        if next(interrupted, False):
            raise UnreadableFile("The cable is out.")

    with pytest.raises(Unreadable) as stopped:
        run(acme, rows, job="nightly", batch_size=24, min_batch_size=1, on_batch=is_away)
    report = stopped.value.report
    assert report.read == report.last_line
    report = run(acme, rows, job="nightly", batch_size=24, min_batch_size=1)
    counts = report.counts
    assert (report.read, counts.inserted, counts.unchanged) == (24, 12, 12)


# -- the trash ------------------------------------------------------------------------------------


def test_restored_rows_come_back_with_everything_deleted_with_them(acme, tmp_path):
    rows = [
        {"session_id": "s1", "name": "One", "runs": [{"run_id": "r1"}, {"run_id": "r2"}]},
        {"session_id": "s2", "runs": [{"run_id": "r1"}]},
    ]
    load(tmp_path, "sessions", rows)
    with tenant(acme):
        one = Session.objects.for_organization(acme).filter(session_id="s1")
        session = one.get()
    make_message(acme, session=session)
    with tenant(acme):
        sessions.delete(one, organization=acme, actor=TESTER)
    rows[0]["runs"] = rows[0]["runs"][:1]
    assert load(tmp_path, "sessions", rows)["deleted"] == 1
    report = load(tmp_path, "sessions", rows, restore=True)
    assert (report["updated"], report["unchanged"], report["deleted"]) == (1, 1, 0)
    with tenant(acme):
        for model in (Session, Run, Message):
            assert not model.objects.for_organization(acme).deleted().exists()


def test_a_row_that_cannot_be_restored_is_a_bad_line(acme, tmp_path):
    """A session whose agent is in the trash would be purged with it."""
    load(tmp_path, "sessions", [{"session_id": "s", "agent_id": "a"}])
    with tenant(acme):
        rows = Session.objects.for_organization(acme).filter(session_id="s")
        sessions.delete(rows, organization=acme, actor=TESTER)
        agents.delete(Agent.objects.for_organization(acme), organization=acme, actor=TESTER)
    rows = [{"session_id": "t"}, {"session_id": "s"}]
    with pytest.raises(CommandError, match=r"line 2: .*restore that first") as stopped:
        load(tmp_path, "sessions", rows, restore=True)
    assert stopped.value.returncode == 65
    rows[1]["agent_id"] = "a"
    report = load(tmp_path, "sessions", rows, restore=True)
    assert (report["updated"], report["unchanged"], report["deleted"]) == (1, 1, 0)


# -- from Python ----------------------------------------------------------------------------------


def test_rows_are_loaded_from_python(acme):
    from accounts.bulk import USERS

    make_user(acme, external_id="u0", name="Old")
    batches = []
    report = bulk_upsert(
        USERS,
        (row for row in users(5)),
        organization_id=acme.pk,
        transaction=partial(tenant, acme),
        options=LoadOptions(batch_size=2),
        on_batch=lambda report: batches.append(report.read),
    )
    assert (report.counts.inserted, report.counts.updated, batches) == (4, 1, [2, 4, 5])
    assert names(acme)["u0"] == "User 0"
