"""What an operator sees of an interrupted load. (test_kills.py checks what is stored.)"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from agentmem_site import samples
from tests.bulk.kills.harness import ROOT, Installation
from tests.bulk.kills.proxy import Trap

pytestmark = pytest.mark.embedded
ROWS = 12_000


@pytest.fixture(scope="module")
def installation(tmp_path_factory):
    with Installation(tmp_path_factory.mktemp("interrupted")) as installation:
        yield installation


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    file = tmp_path_factory.mktemp("file") / "sessions.jsonl"
    file.write_bytes(b"".join(samples.lines("sessions", row_count=ROWS, seed=1)))
    return file


def test_a_load_starts_its_killed_server_again(installation, file):
    installation.make_organization("server")
    with begin(installation, "server", file) as loading:
        await_rows(installation, "server", 1000)
        os.kill(installation.postmaster(), signal.SIGKILL)
        output, errors = loading.communicate(timeout=90)
    assert loading.returncode == 0, errors
    assert "Traceback" not in errors
    report = json.loads(output)
    assert (report["read"], report["inserted"]) == (ROWS, ROWS)
    assert report["retries"] >= 1
    assert count_rows(installation, "server") == ROWS


@pytest.mark.parametrize(("name", "code"), [("SIGKILL", -9), ("SIGTERM", 143), ("SIGINT", 130)])
def test_a_stopped_load_resumes(installation, file, name, code):
    installation.make_organization(name.lower())
    with begin(installation, name.lower(), file) as loading:
        await_rows(installation, name.lower(), 1000)
        loading.send_signal(signal.Signals[name])
        _, errors = loading.communicate(timeout=60)
    assert loading.returncode == code, errors
    assert "Traceback" not in errors
    if name != "SIGKILL":
        assert "the completed batches are committed" in errors
        assert f"bulk_upsert sessions {file}" in errors
    stored = count_rows(installation, name.lower())
    assert 1000 <= stored < ROWS
    assert stored % 500 == 0  # whole batches

    with begin(installation, name.lower(), file) as again:
        output, errors = again.communicate(timeout=90)
    assert f"Resuming after line {stored:,}" in errors
    report = json.loads(output)  # of both
    assert (report["read"], report["inserted"], report["unchanged"]) == (ROWS, ROWS, 0)
    assert report["batches"] == ROWS / 500
    assert count_rows(installation, name.lower()) == ROWS


def test_a_commit_in_doubt_is_done_once(installation, file):
    installation.make_organization("answer")
    # The first two COMMITs are lost on the way; of the others, only the answers are.
    for place in ("before", "half", "answered", "half answered"):
        began = installation.proxy.commits
        installation.proxy.trap = Trap("commit", 6, place, installation.proxy.drop)
        with begin(
            installation, "answer", file, "--no-resume", env=installation.environment
        ) as loading:
            output, errors = loading.communicate(timeout=90)
        assert loading.returncode == 0, errors
        assert installation.proxy.commits > began + 6
        assert installation.proxy.trap.is_sprung
        report = json.loads(output)
        assert report["read"] == report["inserted"] + report["unchanged"] == ROWS
        assert report["batches"] == ROWS / 500
    assert count_rows(installation, "answer") == ROWS


def test_references_of_a_lost_commit_are_created_again(installation, tmp_path):
    """The users that a batch refers to are created in its transaction, and rolled back with it."""
    installation.make_organization("made")
    for number in range(1, 6):  # one of these COMMITs is the batch's
        file = tmp_path / f"{number}.jsonl"
        file.write_text(f'{{"session_id": "s-{number}", "user_id": "user-{number}"}}\n')
        installation.proxy.trap = Trap("commit", number, "before", installation.proxy.drop)
        with begin(installation, "made", file, env=installation.environment) as loading:
            output, errors = loading.communicate(timeout=60)
        assert loading.returncode in (0, 75), errors
        if loading.returncode == 0:
            assert json.loads(output)["inserted"] == 1
    assert count_rows(installation, "made") >= 4


def test_a_reject_is_written_once_when_its_batch_is_retried(installation, tmp_path):
    installation.make_organization("rejects")
    file, rejects = tmp_path / "sessions.jsonl", tmp_path / "rejects"
    lines = [{"session_id": f"s-{n}", **({"nonsense": 1} if n % 3 else {})} for n in range(3000)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = (installation, "rejects", file, "--on-error=skip", f"--rejects={rejects}")
    with begin(*command, env=installation.environment) as loading:
        # Its rejects are written, its rows are not committed.
        installation.proxy.trap = Trap("commit", 5, "before", loading.kill, ends_client=True)
        loading.communicate(timeout=60)
    assert loading.returncode == -signal.SIGKILL
    stored = count_rows(installation, "rejects")
    assert 0 < stored < rejects.read_text().count("\n") / 2
    with rejects.open("a") as half:
        half.write('{"line": 4, "byte')  # as after a full disk

    with begin(*command, env=installation.environment) as again:
        output, errors = again.communicate(timeout=60)
    assert again.returncode == 3, errors
    named = [json.loads(line)["line"] for line in rejects.read_text().splitlines()]
    assert sorted(named) == [n + 1 for n in range(3000) if n % 3]
    assert json.loads(output)["rejected"] == len(named)


@pytest.mark.slow
def test_a_second_load_of_the_same_job_is_refused(installation, file):
    installation.make_organization("twice")
    with begin(installation, "twice", "-", "--job=nightly", stdin=subprocess.PIPE) as first:
        with file.open("rb") as lines:
            first.stdin.write("".join(next(lines).decode() for _ in range(600)))
            first.stdin.flush()
        await_rows(installation, "twice", 500)
        with begin(installation, "twice", str(file), "--job=nightly") as second:
            _, errors = second.communicate(timeout=60)
        assert second.returncode == 75, errors
        assert "Another process is loading the job 'nightly'" in errors
        first.communicate()
    assert first.returncode == 0
    assert count_rows(installation, "twice") == 600


def begin(installation, organization, file, *options, stdin=subprocess.DEVNULL, env=None):
    """`bulk_upsert` in batches of 500, with a server that it starts itself."""
    command = ["bulk_upsert", "sessions", str(file), f"--organization={organization}", "--json"]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "manage.py"), *command, "--batch-size=500", *options],
        env=env or installation.without_door,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def count_rows(installation, organization):
    with installation.owner() as connection:
        return connection.execute(
            "SELECT count(*) FROM agent_sessions_session WHERE organization_id = "
            "(SELECT id FROM accounts_organization WHERE slug = %s)",
            [organization],
        ).fetchone()[0]


def await_rows(installation, organization, number):
    deadline = time.monotonic() + 60
    while count_rows(installation, organization) < number:
        assert time.monotonic() < deadline, "the load does not get on"
        time.sleep(0.02)
