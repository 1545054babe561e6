"""The rows of the tables, read as their owner (for whom there are no walls), and how they differ
from the oracle."""

from typing import Any

import psycopg

from tests.bulk.kills.oracle import MEMORY, MESSAGE, RUN, SESSION, Key, Row, Tables

_RUN_COLUMNS = [*RUN, "position", "input_tokens", "output_tokens", "total_tokens"]
_MEMORY_COLUMNS = [*MEMORY, "hash", "embedding_state"]
_REFERENCES = {"agent_id": "a.external_id", "user_id": "u.external_id"}
_PEOPLE = """
LEFT JOIN accounts_user u ON u.id = t.user_id LEFT JOIN memories_agent a ON a.id = t.agent_id"""
_OF_MESSAGES = {
    **_REFERENCES,
    "session_id": "s.session_id",
    "run_id": "r.run_id",
}

# (kind, columns, references, from)
_TABLES: list[tuple[str, list[str], dict[str, str], str]] = [
    ("session", [*SESSION], _REFERENCES, f"agent_sessions_session t {_PEOPLE}"),
    (
        "run",
        _RUN_COLUMNS,
        {},
        "agent_sessions_run t JOIN agent_sessions_session s ON s.id = t.session_id",
    ),
    (
        "message",
        [*MESSAGE],
        _OF_MESSAGES,
        f"agent_sessions_message t {_PEOPLE} "
        "LEFT JOIN agent_sessions_session s ON s.id = t.session_id "
        "LEFT JOIN agent_sessions_run r ON r.id = t.run_id",
    ),
    ("memory", _MEMORY_COLUMNS, _REFERENCES, f"memories_memory t {_PEOPLE}"),
]
_KEYS = {
    "session": "t.session_id",
    "run": "s.session_id, t.run_id",
    "message": "t.external_id",
    "memory": "t.external_id",
}
# What no load may change in a row that it leaves alone.
_LIFE = "t.id, t.xmin::text, t.created_at, t.updated_at, t.is_deleted"


def read(connection: psycopg.Connection[Any], organization: Any) -> "Stored":
    stored = Stored()
    for kind, columns, references, source in _TABLES:
        named = ", ".join(references.get(name, f't."{name}"') for name in columns)
        more = "t.version, halfvec_send(t.embedding)" if kind == "memory" else "1, NULL"
        rows = connection.execute(
            f"SELECT {_LIFE}, {more}, {_KEYS[kind]}, {named} FROM {source} "
            "WHERE t.organization_id = %s",
            [organization],
        )
        width = _KEYS[kind].count(",") + 1
        for values in rows:
            life, version, vector = values[:5], values[5], values[6]
            row = dict(zip(columns, values[7 + width :], strict=True))
            key = (kind, *values[7 : 7 + width])
            if kind == "memory":
                row["hash"] = bytes(row["hash"])
                row["embedding"] = vector and bytes(vector)[4:]
                if row["external_id"] is None:
                    key = ("memory", "content", row["hash"], row["agent_id"], row["user_id"])
                    if life[4]:
                        stored.deleted_contents.append(row)
                        continue
                stored.versions[key] = version
            if key in stored.rows:
                stored.doubled.append(key)
            stored.rows[key] = row
            stored.lives[key] = life
    for names, table in ((stored.users, "accounts_user"), (stored.agents, "memories_agent")):
        for (name,) in connection.execute(
            f"SELECT external_id FROM {table} WHERE organization_id = %s", [organization]
        ):
            names.append(name)
    stored.ends = [
        changes
        for (changes,) in connection.execute(
            "SELECT changes FROM accounts_auditevent WHERE organization_id = %s "
            "AND action = 'loaded' AND status = 'success' ORDER BY created_at, id",
            [organization],
        )
    ]
    stored.histories = {
        row_id: (count, last)
        for row_id, count, last in connection.execute(
            "SELECT memory_id, count(*), max(version) FROM memories_memoryhistory "
            "WHERE organization_id = %s GROUP BY 1",
            [organization],
        )
    }
    return stored


class Stored:
    """One organization's rows."""

    def __init__(self) -> None:
        self.rows: dict[Key, Row] = {}
        self.lives: dict[Key, tuple[Any, ...]] = {}  # id, xmin, created, updated, is_deleted
        self.versions: dict[Key, int] = {}
        self.deleted_contents: list[Row] = []  # memories without a key, in the trash
        self.doubled: list[Key] = []
        self.users: list[str] = []
        self.agents: list[str] = []
        self.ends: list[Row] = []  # what the audit events of finished loads say, oldest first
        self.histories: dict[Any, tuple[int, int]] = {}  # of a memory: rows, highest version

    def faults(self, oracle: Tables) -> list[str]:
        """How the tables differ from the oracle."""
        faults = [f"twice: {key}" for key in self.doubled]
        expected = dict(oracle.rows)
        for key, runs in oracle.runs.items():
            expected |= {("run", key[1], name): run for name, run in runs.items()}
        faults += [f"lost: {key}" for key in expected.keys() - self.rows.keys()]
        faults += [f"from nowhere: {key}" for key in self.rows.keys() - expected.keys()]
        for key in expected.keys() & self.rows.keys():
            if expected[key] != self.rows[key]:
                faults.append(f"differs: {key}: {_difference(expected[key], self.rows[key])}")
            deleted = (key if key[0] != "run" else ("session", key[1])) in oracle.deleted
            if deleted != self.lives[key][4]:
                faults.append(f"{'not ' if deleted else ''}in the trash: {key}")
        if _sorted(oracle.deleted_contents) != _sorted(self.deleted_contents):
            faults.append("the memories in the trash that have no key differ")
        for what, wanted, names in (
            ("users", oracle.users, self.users),
            ("agents", oracle.agents, self.agents),
        ):
            if sorted(wanted) != sorted(names):
                faults.append(f"{what}: {sorted(names)}, not {sorted(wanted)}")
        for key, version in self.versions.items():
            written = self.histories.get(self.lives[key][0], (0, 0))
            if written != (version, version):
                faults.append(f"history of {key}: {written} of version {version}")
        return faults

    def touched(self, before: "Stored", changed: set[Key]) -> list[str]:
        """Changes in rows other than `changed`, and rows that were replaced."""
        faults = []
        for key, life in before.lives.items():
            now = self.lives.get(key)
            if key not in changed and now != life:
                faults.append(f"touched: {key}: {life} -> {now}")
            elif now and (now[0], now[2]) != (life[0], life[2]):
                faults.append(f"another row: {key}: {life} -> {now}")
        return faults


def _sorted(rows: list[Row]) -> list[str]:
    return sorted(repr(sorted(row.items())) for row in rows)


def _difference(expected: Row, actual: Row) -> str:
    return ", ".join(
        f"{name} is {actual.get(name)!r}, not {value!r}"
        for name, value in expected.items()
        if actual.get(name) != value
    )
