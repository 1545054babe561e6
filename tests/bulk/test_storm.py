"""Sixteen concurrent loads of the same keys: no deadlock, no lost update, no row of two writers.

Every writer says everything in its own way: a row tells whose line it is by each of its columns.
What is demanded: each row is, whole, the last line of one of its writers, a session's runs of the
same line as the session; the reports of all writers together are what has become of the tables.
Which writer was last is nobody's to say.
"""

import json
import subprocess
import sys
import threading
import time
from collections import defaultdict
from random import Random

import pytest

from tests.bulk.kills.harness import ROOT, Installation
from tests.bulk.kills.oracle import MEMORY, MESSAGE, SESSION, key_of
from tests.bulk.kills.stored import read

pytestmark = pytest.mark.embedded
WRITERS = ["sessions"] * 6 + ["memories"] * 6 + ["messages"] * 4
RUNS = 3
WORDS = ("name", "team_id", "workflow_id", "context", "text", "model", "step_id", "otid")


@pytest.fixture(scope="module")
def installation(tmp_path_factory):
    with Installation(tmp_path_factory.mktemp("storm")) as installation:
        yield installation


def test_sixteen_writers_over_the_same_keys(installation):
    storm(installation, "quick", keys=150, rounds=2, batch_size=40)


@pytest.mark.slow
def test_sixteen_writers_for_longer(installation):
    for number in range(5):
        storm(installation, f"long-{number}", keys=1000, rounds=3, batch_size=200)


def storm(installation, slug, *, keys, rounds, batch_size):
    organization = installation.make_organization(slug)
    random = Random(slug)
    deadlocks = count_deadlocks(installation)
    files = [lines_of(writer, what, random, keys, rounds) for writer, what in enumerate(WRITERS)]
    reports = run_at_once(installation, slug, files, batch_size)
    with installation.owner() as connection:
        stored = read(connection, organization)

    assert count_deadlocks(installation) == deadlocks
    last = defaultdict(dict)  # key -> writer -> its last line
    for writer, (what, lines) in enumerate(zip(WRITERS, files, strict=True)):
        for line in lines:
            last[key_of(what, line)][writer] = line
    of_sessions = {
        ("run", key[1], f"r-{n}") for key in last if key[0] == "session" for n in range(RUNS)
    }
    made = {
        ("session", line["session_id"])
        for what, lines in zip(WRITERS, files, strict=True)
        if what == "messages"
        for line in lines
    }
    assert stored.rows.keys() == last.keys() | of_sessions | made
    assert not stored.doubled
    writer_of = {key: whose(stored.rows[key]) for key in last}
    for key, writer in writer_of.items():
        assert writer in last[key], key
    for session, run in (key[1:] for key in of_sessions):
        assert whose(stored.rows["run", session, run]) == writer_of["session", session]
    assert sorted(stored.users) == sorted(named(files, "user_id"))
    assert sorted(stored.agents) == sorted(named(files, "agent_id"))

    counts = totals(reports)
    for what, kind in (("memories", "memory"), ("messages", "message")):
        assert counts[what, "inserted"] == sum(key[0] == kind for key in stored.rows)
    assert counts["runs", "inserted"] == len(of_sessions)
    assert counts["sessions", "inserted"] <= keys
    versions = stored.versions
    assert counts["memories", "updated"] == sum(versions.values()) - len(versions)
    for key, version in versions.items():
        assert stored.histories[stored.lives[key][0]] == (version, version), key


def whose(row):
    """The writer of all columns."""
    writers = {row["metadata"].get("writer")}
    writers |= {value.removeprefix("w-") for name in WORDS if (value := row.get(name))}
    assert len(writers) == 1, row
    return int(writers.pop())


def lines_of(writer, what, random, keys, rounds):
    """Each key in each round, in the writer's own order."""
    make = {"sessions": session_line, "memories": memory_line, "messages": message_line}[what]
    lines = []
    for _ in range(rounds):
        numbers = list(range(keys))
        random.shuffle(numbers)
        lines += [make(writer, n, random) for n in numbers]
    return lines


def own(writer, columns, random, keys=("user_id", "agent_id")):
    words = {name: f"w-{writer}" for name in WORDS if name in columns}
    people = {name: f"{name[:-3]}-{random.randrange(60)}" for name in keys}
    return {**words, **people, "metadata": {"writer": str(writer)}}


def session_line(writer, n, random):
    run = {"model": f"w-{writer}", "metadata": {"writer": str(writer)}}
    runs = [
        {"run_id": f"r-{number}", "content": str(random.random()), **run} for number in range(RUNS)
    ]
    random.shuffle(runs)
    return {"session_id": f"s-{n}", "runs": runs, **own(writer, SESSION, random)}


def memory_line(writer, n, random):
    line = {"content": f"Fact {n}", "importance": random.randrange(9) / 8}
    if n % 2:  # matched by its content: needs the same user and agent
        return line | own(writer, MEMORY, random, keys=())
    return line | own(writer, MEMORY, random) | {"external_id": f"m-{n}"}


def message_line(writer, n, random):
    line = {
        "external_id": f"g-{n}",
        "role": "user",
        "session_id": f"s-{random.randrange(2 * n + 1)}",
    }
    return line | own(writer, MESSAGE, random)


def named(files, column):
    return {line[column] for lines in files for line in lines if column in line}


def run_at_once(installation, slug, files, batch_size):
    """The reports of the commands, which all get their standard input at the same time."""
    commands = []
    for what in WRITERS:
        command = [str(ROOT / "manage.py"), "bulk_upsert", what, "-", f"--organization={slug}"]
        command += ["--json", f"--batch-size={batch_size}"]
        command += ["--embed=later"] if what == "memories" else []
        commands.append(
            subprocess.Popen(
                [sys.executable, *command],
                env=installation.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    await_connections(installation, len(commands))
    ended = [None] * len(commands)

    def feed(number):
        text = "".join(json.dumps(line) + "\n" for line in files[number])
        ended[number] = commands[number].communicate(text, timeout=120)

    threads = [threading.Thread(target=feed, args=[number]) for number in range(len(commands))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for command, (_, complained) in zip(commands, ended, strict=True):
        assert command.returncode == 0, complained
    return [json.loads(output) for output, _ in ended]


def totals(reports):
    sums = defaultdict(int)
    for report in reports:
        for counts, what in ((report, report["resource"]), (report.get("runs", {}), "runs")):
            for name in ("inserted", "updated"):
                sums[what, name] += counts.get(name, 0)
    return sums


def count_deadlocks(installation):
    with installation.owner() as connection:
        connection.execute("SELECT pg_stat_force_next_flush(), pg_stat_clear_snapshot()")
        return connection.execute(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()[0]


def await_connections(installation, number):
    deadline = time.monotonic() + 60
    while len(installation.proxy.links) < number:
        assert time.monotonic() < deadline, "the commands do not start"
        time.sleep(0.05)
