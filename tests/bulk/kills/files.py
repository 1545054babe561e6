"""Random files: new, changed and unchanged rows, repeated keys, bad lines."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.bulk.kills.oracle import Row, Tables, key_of

DIMENSIONS = 384
WORDS = ["tea", "rain", "lisbon", "ferry", "ledger", "orchard", "harbour", "copper", "meadow"]
USERS, AGENTS = 9, 7


@dataclass
class File:
    """One file, and which of its lines are good."""

    resource: str
    path: Path
    lines: list[tuple[Row, bool]] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)

    @property
    def bad(self) -> dict[int, int]:
        """Line number -> byte offset of the bad lines."""
        offsets, offset = {}, 0
        for number, ((_, is_good), raw) in enumerate(zip(self.lines, self.raw, strict=True), 1):
            if not is_good:
                offsets[number] = offset
            offset += len(raw)
        return offsets

    def write(self) -> None:
        data = b"".join(self.raw)
        self.path.write_bytes(gzip.compress(data, 1) if self.path.suffix == ".gz" else data)


def make_file(
    random: Random,
    tables: Tables,
    resource: str,
    path: Path,
    *,
    rows: int,
    bad_share: float,
    before: Sequence[Row] = (),
) -> File:
    """A file for tables with these rows; some lines are repeated from files `before`."""
    file = File(resource, path)
    lines: list[Row] = []
    make = {"sessions": _session, "memories": _memory, "messages": _message}[resource]
    repeats = random.choice((0, 0.02, 0.2))
    stored = {"sessions": "session", "memories": "memory", "messages": "message"}[resource]
    # (Each once: which vector a row keeps depends on whether its lines are in one batch.)
    known = [key for key in tables.rows if key[0] == stored]
    random.shuffle(known)
    # (Their last lines: a vector that has been set since stays.)
    last = {key_of(resource, line): line for line in before}
    for _ in range(rows):
        if lines and random.random() < repeats:
            at = random.randrange(len(lines))
            lines[at], again = _twice(random, resource, lines[at])
            lines.append(again)
        else:
            key = known.pop() if known and random.random() < 0.5 else None
            again = random.random() < 0.7 and last.get(key)
            lines.append(again or make(random, tables, key))
    for line in lines:
        is_bad = random.random() < bad_share
        raw = _spoilt(random, tables, resource, line) if is_bad else json.dumps(line).encode()
        file.lines.append((line, not is_bad))
        file.raw.append(raw + random.choice((b"\n", b"\n", b"\r\n")))
    file.write()
    return file


def _session(random: Random, tables: Tables, key: Any) -> Row:
    if key and random.random() < 0.5:
        return {"session_id": key[1], **_given(tables.rows[key])}  # unchanged, without its runs
    line: Row = {"session_id": key[1] if key else f"s-{random.randrange(10**9)}"}
    line |= _some(
        random,
        agent_id=_agent(random),
        user_id=_user(random),
        name=_text(random),
        team_id="team",
        state={"n": random.randrange(9), "deep": {"a": [1, None, "é"]}},
        metadata={"tag": random.choice(WORDS)},
        summary={"content": _text(random), "run_count": random.randrange(5)},
    )
    if random.random() < 0.7:
        line["runs"] = [_run(random) for _ in range(random.randrange(4))]
    return line


def _run(random: Random) -> Row:
    return {
        "run_id": f"r-{random.randrange(5)}",
        **_some(
            random,
            status=random.choice(("pending", "running", "completed", "failed")),
            started_at="2026-03-01T10:00:00+00:00",
            model="small",
            content=_text(random),
            messages=[{"role": "user", "content": _text(random)}],
            metrics={"input_tokens": random.randrange(99), "total_tokens": 7},
        ),
    }


def _memory(random: Random, tables: Tables, key: Any) -> Row:
    old = tables.rows.get(key)
    if old is not None and random.random() < 0.5:
        return _given(old)  # unchanged; its vector stays
    if key and "content" in key:
        assert old is not None
        line = {"content": old["content"]} | {
            name: old[name] for name in ("speaker", "agent_id", "user_id") if old[name]
        }
    else:
        line = {"content": f"{_text(random)} {random.randrange(10**9)}"}
        line |= _some(random, speaker="Ana", agent_id=_agent(random), user_id=_user(random))
        if key or random.random() < 0.5:
            line["external_id"] = key[1] if key else f"m-{random.randrange(10**9)}"
    line |= _some(
        random,
        context=_text(random),
        importance=random.randrange(9) / 8,
        memory_type=random.choice(("episodic", "semantic", "core")),
        metadata={"tag": random.choice(WORDS)},
        session_id="s-1",
    )
    if random.random() < 0.3:
        line |= _vector(random)
    return line


def _vector(random: Random) -> Row:
    return {
        "embedding": [random.randrange(-8, 9) / 8 for _ in range(DIMENSIONS - 1)] + [1.0],
        "embedding_model": "harness",
    }


def _message(random: Random, tables: Tables, key: Any) -> Row:
    if key and random.random() < 0.5:
        return {"external_id": key[1], **_given(tables.rows[key])}
    line: Row = {
        "external_id": key[1] if key else f"g-{random.randrange(10**9)}",
        "role": random.choice(("user", "assistant", "system", "tool")),
    }
    line |= _some(
        random,
        agent_id=_agent(random),
        user_id=_user(random),
        text=_text(random),
        content=[{"type": "text", "text": _text(random)}],
        name=_text(random),
    )
    with_runs = [k for k, runs in tables.runs.items() if runs and k not in tables.deleted]
    if with_runs and random.random() < 0.5:
        session = random.choice(with_runs)
        line |= {"session_id": session[1], "run_id": random.choice(sorted(tables.runs[session]))}
    elif random.random() < 0.5:
        line["session_id"] = f"of-{random.randrange(50)}"  # created if missing
    return line


def _twice(random: Random, resource: str, line: Row) -> tuple[Row, Row]:
    """The line, and another one with the same key and other values."""
    again = dict(line)
    if resource == "messages":
        again["text"] = _text(random)
    elif resource == "sessions":
        again |= {"name": _text(random), "runs": [_run(random) for _ in range(random.randrange(3))]}
    else:
        # (Both with a vector: one without keeps the existing vector, which would depend on whether
        # both are in one batch.)
        again |= {"importance": random.randrange(9) / 8} | _vector(random)
        line = line | _vector(random)
    return line, again


def _spoilt(random: Random, tables: Tables, resource: str, line: Row) -> bytes:
    """The line, broken so that it cannot be loaded."""
    required = {"sessions": "session_id", "messages": "role", "memories": "content"}[resource]
    ways = [
        json.dumps(line).encode()[:-1],
        json.dumps({**line, "nonsense": 1}).encode(),
        json.dumps({n: v for n, v in line.items() if n != required}).encode(),
        json.dumps({**line, "metadata": {"a": "\0"}}).encode(),
        json.dumps({**line, "metadata": [1]}).encode(),
        json.dumps({**line, "metadata": {"a": "\ud800"}}).encode(),
        json.dumps({**line, "user_id": "x" * 256}).encode(),
        b'{"metadata": {"a": "\xff\xfe"}}',
        b"42",
    ]
    if resource == "memories":
        ways.append(json.dumps({**line, "embedding": [1.0, 2.0]}).encode())
    sessions = [key for key in tables.rows if key[0] == "session"]
    if resource == "messages" and sessions:  # only the database can know
        nowhere = {"session_id": random.choice(sessions)[1], "run_id": "nowhere"}
        ways.append(json.dumps({"external_id": "bad", "role": "user", **nowhere}).encode())
    return random.choice(ways)


def _given(row: Row) -> Row:
    """A line with the values of a row."""
    hidden = {"hash", "embedding", "embedding_state"}
    return {
        name: value
        for name, value in row.items()
        if name not in hidden and value not in (None, "", {}, [])
    }


def _some(random: Random, **values: Any) -> Row:
    return {name: value for name, value in values.items() if random.random() < 0.5}


def _text(random: Random) -> str:
    return " ".join(random.choices(WORDS, k=random.randrange(1, 5)))


def _user(random: Random) -> str:
    return f"user-{random.randrange(USERS)}"


def _agent(random: Random) -> str:
    return f"agent-{random.randrange(AGENTS)}"
