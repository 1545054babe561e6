"""The expected rows: a plain upsert of dicts, line by line, that shares no code with the loader,
only SPEC.md 2."""

import hashlib
import struct
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

Row = dict[str, Any]
Key = tuple[Any, ...]

SESSION: Row = {
    "agent_id": None,
    "user_id": None,
    "team_id": None,
    "workflow_id": None,
    "name": "",
    "state": {},
    "agent_data": {},
    "summary": None,
    "metadata": {},
}
RUN: Row = {
    "status": "pending",
    "started_at": None,
    "completed_at": None,
    "cancellation_reason": "",
    "model": "",
    "content": "",
    "messages": [],
    "events": [],
    "metrics": {},
    "metadata": {},
}
MEMORY: Row = {
    "external_id": None,
    "user_id": None,
    "agent_id": None,
    "session_id": None,
    "content": None,
    "speaker": None,
    "context": None,
    "memory_type": "semantic",
    "scope": "user",
    "level": "operational",
    "importance": 0.5,
    "score": None,
    "expires_at": None,
    "metadata": {},
}
MESSAGE: Row = {
    "session_id": None,
    "run_id": None,
    "agent_id": None,
    "user_id": None,
    "role": None,
    "text": "",
    "content": None,
    "model": "",
    "name": "",
    "tool_calls": None,
    "tool_call_id": "",
    "tool_returns": None,
    "step_id": "",
    "otid": "",
    "group_id": "",
    "sender_id": "",
    "metadata": {},
}
_MOMENTS = {"started_at", "completed_at", "expires_at"}


@dataclass
class Range:
    """The least and the greatest count: the result of lines with one key depends on which of them
    are in one batch."""

    least: int = 0
    most: int = 0

    def add(self, least: int, most: int) -> None:
        self.least += least
        self.most += most


@dataclass
class Outcome:
    """The expected report of a file."""

    read: int = 0
    rejected: int = 0
    inserted: int = 0
    updated: Range = field(default_factory=Range)
    deleted: Range = field(default_factory=Range)
    repeated: int = 0  # lines whose key an earlier line of the file has
    runs: int = 0
    runs_inserted: int = 0
    runs_updated: Range = field(default_factory=Range)
    changed: set[Key] = field(default_factory=set)  # stored rows that some line changes


@dataclass
class Tables:
    """One organization's rows, by (table, natural key)."""

    rows: dict[Key, Row] = field(default_factory=dict)
    runs: dict[Key, dict[str, Row]] = field(default_factory=dict)  # by their session's key
    deleted: set[Key] = field(default_factory=set)
    # Memories without a key in the trash: the same content can be added again.
    deleted_contents: list[Row] = field(default_factory=list)
    users: set[str] = field(default_factory=set)
    agents: set[str] = field(default_factory=set)

    def apply(self, resource: str, lines: list[tuple[Row, bool]]) -> Outcome:
        """Upserts the good lines of a file; each comes with whether it is good."""
        outcome = Outcome(read=len(lines))
        lines_of: Counter[Key] = Counter()
        changes: Counter[Key] = Counter()
        first: dict[Key, tuple[Row | None, dict[str, Row]]] = {}
        run_changes: Counter[tuple[Key, str]] = Counter()
        for line, is_good in lines:
            if not is_good:
                outcome.rejected += 1
                continue
            key = key_of(resource, line)
            lines_of[key] += 1
            self._refer(line)
            outcome.runs += len(line.get("runs") or [])
            if key in self.deleted:
                continue
            old, old_runs = self.rows.get(key), self.runs.get(key, {})
            first.setdefault(key, (old, old_runs))
            # (Of a run twice on a line, the last.)
            runs = {run["run_id"]: _run(run, at) for at, run in enumerate(line.get("runs") or [])}
            self.rows[key] = new = _own(resource, line, old)
            if resource == "sessions":
                self.runs[key] = {**old_runs, **runs}
            outcome.inserted += old is None
            outcome.runs_inserted += len(runs.keys() - old_runs.keys())
            for name in runs.keys() & old_runs.keys():
                run_changes[key, name] += runs[name] != old_runs[name]
            is_new_run = any(old_runs.get(name) != run for name, run in runs.items())
            changes[key] += old is not None and (old != new or is_new_run)
        outcome.repeated = sum(lines_of.values()) - len(lines_of)
        for key, times in lines_of.items():
            if key in self.deleted:
                outcome.deleted.add(1, times)
                continue
            old, old_runs = first[key]
            differs = (old, old_runs) != (self.rows[key], self.runs.get(key, {}))
            outcome.updated.add(old is not None and differs, changes[key])
            if changes[key]:
                outcome.changed.add(key)
        for (key, name), times in run_changes.items():
            if times:
                outcome.changed.add(("run", key[1], name))
            old = first[key][1].get(name)
            outcome.runs_updated.add(old is not None and old != self.runs[key][name], times)
        return outcome

    def delete(self, key: Key) -> None:
        """Moves a row to the trash; a session's runs too."""
        if "content" in key:
            self.deleted_contents.append(self.rows.pop(key))
        else:
            self.deleted.add(key)

    def _refer(self, line: Row) -> None:
        if line.get("user_id"):
            self.users.add(line["user_id"])
        if line.get("agent_id"):
            self.agents.add(line["agent_id"])
        if "role" in line and line.get("session_id"):
            self.rows.setdefault(("session", line["session_id"]), dict(SESSION))


def _own(resource: str, line: Row, old: Row | None) -> Row:
    if resource != "memories":
        return _given(SESSION if resource == "sessions" else MESSAGE, line)
    new = _given(MEMORY, line)
    new["hash"] = content_hash(line.get("speaker"), line["content"])
    new["embedding"] = halves(line.get("embedding"))
    if new["embedding"] is None and old and old["hash"] == new["hash"]:
        new["embedding"] = old["embedding"]
    new["embedding_state"] = "pending" if new["embedding"] is None else "ready"
    return new


def _given(defaults: Row, line: Row) -> Row:
    row = {}
    for name, default in defaults.items():
        value = line.get(name)
        if value is not None and name in _MOMENTS:
            value = datetime.fromisoformat(value)
        row[name] = default if value is None else value
    return row


def _run(line: Row, position: int) -> Row:
    run = _given(RUN, line)
    run["position"] = position
    for name in ("input_tokens", "output_tokens", "total_tokens"):
        run[name] = (line.get("metrics") or {}).get(name, 0)
    return run


def key_of(resource: str, line: Row) -> Key:
    if resource == "sessions":
        return "session", line["session_id"]
    if resource == "messages":
        return "message", line["external_id"]
    if line.get("external_id"):
        return "memory", line["external_id"]
    hash_ = content_hash(line.get("speaker"), line["content"])
    return "memory", "content", hash_, line.get("agent_id"), line.get("user_id")


def content_hash(speaker: str | None, content: str) -> bytes:
    normalized = unicodedata.normalize("NFC", content.strip())
    return hashlib.sha256(f"{speaker or ''}\0{normalized}".encode()).digest()


def halves(vector: list[float] | None) -> bytes | None:
    return None if vector is None else struct.pack(f">{len(vector)}e", *vector)
