import io
import os
import statistics
import subprocess
import sys
import tracemalloc
from collections import Counter
from datetime import datetime
from itertools import islice
from pathlib import Path
from string import Formatter
from typing import Any

import msgspec
import pytest
from django.core.management import CommandError, call_command

from agentmem_site import samples
from agentmem_site.management.commands.make_sample import Command
from agentmem_site.samples import MEMORY_TYPES, RESOURCES, SCENARIOS, lines, population, rows

ROOT = Path(__file__).resolve().parents[2]
KEYS = {
    "users": "external_id",
    "agents": "external_id",
    "blocks": "external_id",
    "tools": "name",
    "sessions": "session_id",
    "messages": "external_id",
    "memories": "external_id",
}
FIELDS = {
    "users": "external_id name email timezone status metadata created_at updated_at",
    "agents": (
        "external_id name agent_type description system topic llm_config embedding_config "
        "tool_rules mcp_tools state metadata created_at updated_at"
    ),
    "blocks": (
        "external_id user_id label value limit description is_template template_name read_only "
        "metadata created_at updated_at"
    ),
    "tools": (
        "name description json_schema source_type source_code tags metadata created_at updated_at"
    ),
    "sessions": (
        "session_id agent_id user_id team_id workflow_id name metadata state agent_data runs "
        "summary created_at updated_at"
    ),
    "messages": (
        "external_id session_id run_id agent_id user_id role text content model name tool_calls "
        "tool_call_id metadata created_at"
    ),
    "memories": (
        "external_id user_id agent_id session_id content speaker context memory_type scope level "
        "importance metadata created_at updated_at"
    ),
}
RUN_FIELDS = (
    "run_id status started_at completed_at cancellation_reason model content messages metadata "
    "events metrics"
)


def take(resource: str, number: int, **options: int) -> list[dict[str, Any]]:
    return list(islice(rows(resource, **options), number))


def text(resource: str, row_count: int, **options: int) -> bytes:
    return b"".join(lines(resource, row_count=row_count, **options))


def run_command(*arguments: str) -> str:
    out = io.StringIO()
    call_command(Command(), *arguments, stdout=out)
    return out.getvalue()


def in_another_process(*arguments: str, **environment: str) -> subprocess.Popen[bytes]:
    program = (
        "from agentmem_site.management.commands.make_sample import Command;"
        f"Command().run_from_argv(['manage.py', 'make_sample', *{list(arguments)!r}])"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


# ------------------------------------------------------------------------------ same every time


@pytest.mark.parametrize("resource", RESOURCES)
def test_the_same_bytes_in_another_process(resource: str) -> None:
    process = in_another_process(resource, "--count", "50", "--seed", "7", PYTHONHASHSEED="11")
    out, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (0, b"")
    assert out == text(resource, 50, seed=7)


@pytest.mark.parametrize("resource", RESOURCES)
def test_a_shorter_sample_is_the_beginning_of_a_longer_one(resource: str) -> None:
    shorter = text(resource, 100)
    assert shorter.count(b"\n") == 100
    assert text(resource, 1000).startswith(shorter)


@pytest.mark.parametrize("resource", RESOURCES)
@pytest.mark.parametrize("start", [2, 3, 4, 5, 64, 65, 500, 701])
def test_a_sample_may_start_anywhere(resource: str, start: int) -> None:
    assert take(resource, 20, start=start) == take(resource, start + 19)[start - 1 :]


@pytest.mark.parametrize("resource", RESOURCES)
def test_another_seed_changes_contents_and_keeps_ids(resource: str) -> None:
    first, second = take(resource, 300, seed=1), take(resource, 300, seed=2)
    key = KEYS[resource]
    assert [row[key] for row in first] == [row[key] for row in second]
    assert sum(a == b for a, b in zip(first, second, strict=True)) <= 3


def test_another_seed_keeps_a_message_in_its_session_and_run() -> None:
    places = [
        [(row["session_id"], row["run_id"], row["role"]) for row in take("messages", 2000, seed=s)]
        for s in (1, 2)
    ]
    assert places[0] == places[1]


# ------------------------------------------------------------------------------ form and limits


@pytest.mark.parametrize("resource", RESOURCES)
def test_fields_are_known_and_keys_unique(resource: str) -> None:
    sample = take(resource, 3000)
    assert {field for row in sample for field in row} == set(FIELDS[resource].split())
    assert len({row[KEYS[resource]] for row in sample}) == 3000
    assert all(value is not None for row in sample for value in row.values())


@pytest.mark.parametrize("resource", RESOURCES)
def test_dates_lie_in_the_year_before_november_2026(resource: str) -> None:
    sample = take(resource, 5000)
    for row in sample:
        stamps = [row["created_at"], row.get("updated_at", row["created_at"])]
        for run in row.get("runs", ()):
            stamps += [run["started_at"], run.get("completed_at", run["started_at"])]
            assert row["created_at"] <= run["started_at"] <= row["updated_at"]
        assert stamps[0] <= stamps[1]
        for stamp in stamps:
            assert "2025-11-01T00:00:00Z" <= stamp < "2026-11-01T00:00:00Z"
            assert stamp == datetime.fromisoformat(stamp).strftime("%Y-%m-%dT%H:%M:%SZ")
    if resource in ("sessions", "messages", "memories"):
        assert len({row["created_at"][:7] for row in sample}) == 12


def test_ids_have_the_documented_form() -> None:
    first = {resource: take(resource, 1)[0][KEYS[resource]] for resource in RESOURCES}
    assert first == {
        "users": "user-00001",
        "agents": "agent-001",
        "blocks": "block-00001",
        "tools": "lookup_order",
        "sessions": "session-0000001",
        "messages": "message-00000001",
        "memories": "memory-00000001",
    }


def test_sessions_are_two_to_three_kilobytes_with_two_to_five_runs() -> None:
    sizes = [len(line) for line in text("sessions", 4000).splitlines()]
    assert 2000 < statistics.median(sizes) < 3000
    assert max(sizes) < 6000
    sample = take("sessions", 4000)
    assert {len(row["runs"]) for row in sample} == {2, 3, 4, 5}
    assert {field for row in sample for run in row["runs"] for field in run} == set(
        RUN_FIELDS.split()
    )
    for row in sample:
        assert len({run["run_id"] for run in row["runs"]}) == len(row["runs"])
        if "summary" in row:
            assert row["summary"]["run_count"] == len(row["runs"])
            assert row["summary"]["total_tokens"] == sum(
                run["metrics"]["total_tokens"] for run in row["runs"] if "metrics" in run
            )


def test_a_run_has_what_its_status_calls_for() -> None:
    runs = [run for row in take("sessions", 2000) for run in row["runs"]]
    share = Counter(run["status"] for run in runs)
    assert set(share) == {"pending", "running", "completed", "failed", "cancelled"}
    assert share["completed"] > 0.9 * len(runs)
    for run in runs:
        assert ("content" in run) == ("metrics" in run) == (run["status"] == "completed")
        assert ("completed_at" in run) == (run["status"] not in ("pending", "running"))
        assert ("cancellation_reason" in run) == (run["status"] == "cancelled")
        if run["status"] == "completed":
            metrics = run["metrics"]
            assert metrics["total_tokens"] == metrics["input_tokens"] + metrics["output_tokens"]
            assert run["messages"][-1]["content"] == run["content"]


def test_memories_are_80_to_200_characters_whatever_is_drawn() -> None:
    def filled(template: str, slots: dict[str, tuple[str, ...]], choose: Any) -> int:
        names = {name for _, name, _, _ in Formatter().parse(template) if name}
        return len(template.format_map({name: choose(slots[name], key=len) for name in names}))

    common = {
        "first": samples.FIRST_NAMES,
        "number": ("12345",),
        "date": samples.DATE_TEXTS,
        "weekday": samples.WEEKDAYS,
        "month": samples.MONTHS,
        "amount": samples.AMOUNTS,
    }
    for scenario in SCENARIOS:
        assert len(scenario.memories) == len(MEMORY_TYPES)
        for kind, memory in zip(MEMORY_TYPES, scenario.memories, strict=True):
            for tail in samples.TAILS[kind]:
                template = f"{memory} {tail}"
                assert filled(template, common | scenario.pools, min) >= 80, template
                assert filled(template, common | scenario.pools, max) <= 200, template


def test_memories_use_every_choice_and_rarely_repeat() -> None:
    sample = take("memories", 20_000)
    assert all(80 <= len(row["content"]) <= 200 for row in sample)
    assert len({row["content"] for row in sample}) > 19_000
    assert {row["memory_type"] for row in sample} == set(MEMORY_TYPES)
    assert {row.get("scope") for row in sample} == {
        None,
        "organization",
        "agent",
        "user",
        "session",
    }
    assert {row.get("level") for row in sample} == {None, "strategic", "tactical", "operational"}
    assert all(0 <= row.get("importance", 0) <= 1 for row in sample)
    for row in sample:
        assert ("user_id" in row) == (row.get("scope", "user") != "organization") or (
            "scope" not in row
        )
        assert row.get("scope") != "session" or "session_id" in row
        assert ("speaker" in row) == ("context" in row) == (row["memory_type"] == "episodic")


def test_blocks_keep_their_limits() -> None:
    for row in take("blocks", 5000):
        assert len(row["label"]) <= 50
        assert 0 < len(row["value"]) <= row.get("limit", 2000)
        assert row.get("is_template", False) == ("template_name" in row)


def test_texts_are_filled_in() -> None:
    for resource in RESOURCES:
        for row in take(resource, 1500):
            for field in ("content", "text", "name", "value", "context", "system"):
                value = row.get(field)
                # A tool answers in JSON, the only text that has braces.
                if isinstance(value, str) and row.get("role") != "tool":
                    assert "{" not in value and "  " not in value, value
                    assert value == value.strip()
                    # A question about a failing test opens with the name of that test.
                    opens_with_code = "_" in value.split()[0]
                    assert value[0].isupper() or field == "name" or opens_with_code, value


def test_every_topic_has_an_agent_and_every_scenario_a_known_tool() -> None:
    topics = {topic for _, _, topic, _ in samples.ROLES}
    assert {scenario.topic for scenario in SCENARIOS} == topics
    arguments = {name: set(names.split()) for name, _, names, _ in samples.TOOLS}
    for scenario in SCENARIOS:
        assert set(scenario.arguments) == arguments[scenario.tool]


# ------------------------------------------------------------------------------- rows that agree


def test_messages_are_those_of_the_sessions() -> None:
    messages = iter(take("messages", 3000))
    seen = 0
    for session in rows("sessions"):
        for run in session["runs"]:
            for said in run["messages"]:
                message = next(messages, None)
                if message is None:
                    assert seen == 3000
                    return
                seen += 1
                assert message["session_id"] == session["session_id"]
                assert message["run_id"] == run["run_id"]
                assert message["user_id"] == session["user_id"]
                assert message["agent_id"] == session.get("agent_id", message["agent_id"])
                assert (message["role"], message["text"]) == (said["role"], said["content"])
                assert message.get("tool_calls") == said.get("tool_calls")
                assert message["created_at"] >= run["started_at"]


def test_the_order_of_messages_is_the_order_of_their_dates_within_a_session() -> None:
    last: dict[str, str] = {}
    for row in take("messages", 5000):
        assert last.get(row["session_id"], "") < row["created_at"]
        last[row["session_id"]] = row["created_at"]


def test_memories_share_user_and_agent_with_their_session() -> None:
    sessions = {row["session_id"]: row for row in take("sessions", 1000)}
    sample = take("memories", 4000)
    linked = [row for row in sample if "session_id" in row]
    assert len(linked) == 3000
    for row in linked:
        session = sessions[row["session_id"]]
        assert row.get("user_id", session["user_id"]) == session["user_id"]
        assert row["agent_id"] == session.get("agent_id", row["agent_id"])
        assert row["created_at"] > session["created_at"]


def test_nobody_speaks_before_being_created() -> None:
    users = {row["external_id"]: row for row in take("users", 500)}
    agents = {row["external_id"]: row for row in take("agents", 60)}
    for row in take("sessions", 3000):
        assert users[row["user_id"]]["created_at"] < row["created_at"]
        if "agent_id" in row:
            assert agents[row["agent_id"]]["created_at"] < row["created_at"]


@pytest.mark.parametrize("number", [1, 100, 2000])
def test_a_load_refers_to_no_more_than_its_population(number: int) -> None:
    users, agents = population(number)
    sample = take("sessions", number) + take("memories", 4 * number)
    assert max(row["user_id"] for row in sample if "user_id" in row) <= f"user-{users:05}"
    assert max(row["agent_id"] for row in sample if "agent_id" in row) <= f"agent-{agents:03}"


@pytest.mark.parametrize("resource", ["sessions", "memories"])
def test_a_tenth_of_the_users_hold_more_than_two_fifths(resource: str) -> None:
    held = Counter(row["user_id"] for row in take(resource, 40_000) if "user_id" in row)
    top = sum(number for _, number in held.most_common(len(held) // 10))
    assert 0.4 < top / held.total() < 0.9
    assert held.most_common(1)[0][1] < 0.1 * held.total()


# ------------------------------------------------------------------------------------- streaming


@pytest.mark.parametrize("resource", RESOURCES)
def test_a_billion_rows_are_made_only_as_they_are_taken(resource: str) -> None:
    stream = lines(resource, row_count=10**9)
    for _ in range(2):  # the caches of users and agents fill first
        next(stream)
    tracemalloc.start()
    try:
        for _ in range(20):
            next(stream)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20
    assert take(resource, 1, start=10**9) == take(resource, 1, start=10**9)


def test_messages_far_out_belong_to_sessions_far_out() -> None:
    (message,) = take("messages", 1, start=10**8)
    number = int(message["session_id"].removeprefix("session-"))
    (session,) = take("sessions", 1, start=number)
    said = [said["content"] for run in session["runs"] for said in run["messages"]]
    assert message["text"] in said


# --------------------------------------------------------------------------------------- refusals


def test_no_rows_are_no_lines() -> None:
    assert run_command("users", "--count", "0") == ""


def test_rows_are_numbered_from_one() -> None:
    with pytest.raises(ValueError, match=r"Rows are numbered from 1, not from 0\."):
        rows("users", start=0)


def test_a_negative_number_of_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"The number of rows cannot be negative: -1\."):
        next(lines("users", row_count=-1))


# ------------------------------------------------------------------------------------ the command


def test_the_command_writes_the_lines_asked_for() -> None:
    out = run_command("memories", "--count", "300", "--seed", "5", "--start", "11")
    assert out.encode() == text("memories", 300, seed=5, start=11)


def test_the_command_has_defaults() -> None:
    assert run_command("tools").encode() == text("tools", 1000, seed=0, start=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs"], "invalid choice: 'runs'"),
        (["users", "--count", "-1"], "'-1' is not a whole number of 0 or more"),
        (["users", "--count", "many"], "'many' is not a whole number of 0 or more"),
        (["users", "--start", "0"], "'0' is not a whole number of 1 or more"),
    ],
)
def test_the_command_refuses(arguments: list[str], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        run_command(*arguments)


def test_a_reader_that_leaves_is_no_error() -> None:
    process = in_another_process("sessions", "--count", "1000000000")
    assert process.stdout is not None and process.stderr is not None
    first = msgspec.json.decode(process.stdout.readline())
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 0
    assert error == b""
    assert first == take("sessions", 1)[0]
