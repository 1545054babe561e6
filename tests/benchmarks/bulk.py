"""A resource from JSON lines: the loader against raw COPY, and against Django and psycopg.

Raw COPY is the limit: rows already in PostgreSQL's binary format, straight into the same tables
with the same indexes and constraints, as their owner (PostgreSQL refuses COPY into a table with a
wall to anybody else); no parsing, no validation, no counts. It has one connection, as Django and
psycopg have; the loader has one or two.
"""

import gc
import io
import time
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import msgspec
import numpy as np
from django.db import connection, models, transaction
from psycopg import sql

from accounts.actors import command_actor
from accounts.models import Organization, User
from accounts.services.organizations import organizations
from accounts.tenancy import platform, tenant
from agentmem_site.bulk import LoadOptions, LoadReport
from agentmem_site.bulk.readers import source_of
from agentmem_site.db.roles import as_owner
from agentmem_site.samples import lines
from agentmem_site.services.loads import run_load
from memories.models import Agent, Memory, MemoryHistory, content_hash
from sessions.models import Run, Session
from tests.benchmarks import growth

BATCH = 5000
ROUNDS = 3
WORKERS = (1, 2)
ACTOR = command_actor("benchmark")
SHARE = 10  # Django and psycopg get one row in SHARE: all rows would take too long

Row = dict[str, Any]
# Writes objects of a model: (model, objects, columns of the key, columns to update).
Upsert = Callable[[Any, list[Any], list[str], list[str]], None]


@dataclass(frozen=True)
class Subject:
    resource: str
    make: Callable[[int, int, int], bytes]  # rows, seed, the first one's number -> lines
    # The tables of the rows, each with its column that refers to the first table.
    tables: tuple[tuple[type[models.Model], str], ...]
    upsert: Callable[[Organization, list[Row], Upsert], None]


def run_sessions(rows: int) -> str:
    def make(count: int, seed: int, first: int) -> bytes:
        return b"".join(lines("sessions", row_count=count, seed=seed, start=first))

    tables: Any = ((Session, "id"), (Run, "session_id"))
    return _run(Subject("sessions", make, tables, _upsert_sessions), rows)


def run_memories(rows: int) -> str:
    def make(count: int, seed: int, first: int) -> bytes:
        lines = b"".join(growth.memories(first, count))
        if seed == 1:
            return lines
        rows = [msgspec.json.decode(line) for line in lines.splitlines()]
        return msgspec.json.Encoder().encode_lines(
            [{**row, "importance": (row.get("importance", 0) + 0.37) % 1} for row in rows]
        )

    tables: Any = ((Memory, "id"), (MemoryHistory, "memory_id"))
    return _run(Subject("memories", make, tables, _upsert_memories), rows)


def _run(subject: Subject, rows: int) -> str:
    """A Markdown table of ratios: medians of rounds, in each of which every method runs once."""
    with platform():
        slug = f"bench-{subject.resource}"
        organization = organizations.create(actor=ACTOR, values={"slug": slug, "name": slug})
    file, other = subject.make(rows, 1, 1), subject.make(rows, 2, 1)
    third = rows // 3
    mixed = b"".join(  # unchanged; changed; new
        [*_lines(other)[:third], *_lines(file)[third : 2 * third], subject.make(third, 1, rows + 1)]
    )
    rounds: dict[str, list[float]] = {}

    def measure(name: str, count: int, work: Callable[..., Any], *arguments: Any) -> Any:
        """Records the seconds that `rows` would take."""
        gc.collect()
        started = time.perf_counter()
        answer = work(*arguments)
        rounds.setdefault(name, []).append((time.perf_counter() - started) * rows / count)
        return answer

    def load(data: bytes, workers: int) -> LoadReport:
        with source_of(io.BytesIO(data), name="bench.jsonl") as source:
            return run_load(
                subject.resource,
                source.lines(),
                organization=organization,
                actor=ACTOR,
                options=LoadOptions(batch_size=BATCH, workers=workers),
            )

    load(file, 1)  # the first load creates files that the others reuse
    copies = _copied_out(subject)
    for _ in range(ROUNDS):
        _empty(subject)
        measure("raw COPY", rows, _copy_in, subject, copies)
        for workers in WORKERS:
            _empty(subject)
            counts = measure(f"insert {workers}", rows, load, file, workers).counts
            assert counts.inserted == rows, counts
            before = _state(subject)
            counts = measure(f"unchanged {workers}", rows, load, file, workers).counts
            assert counts.unchanged == rows, counts
            assert _state(subject) == before, "an unchanged load moved a row"
            counts = measure(f"update all {workers}", rows, load, other, workers).counts
            assert counts.updated == rows, counts
            counts = measure(f"mixed {workers}", 3 * third, load, mixed, workers).counts
            assert (counts.unchanged, counts.updated, counts.inserted) == (third,) * 3, counts

    share = max(rows // SHARE, BATCH)
    for name, upsert in (("bulk_create", _bulk_create), ("executemany", _executemany)):
        for _ in range(ROUNDS):
            _empty(subject)
            for step, data in (("insert", file), ("unchanged", file), ("update all", other)):
                part = _lines(data)[:share]
                measure(
                    f"{name} {step}",
                    share,
                    _in_batches,
                    subject,
                    organization,
                    part,
                    upsert,
                )
    return _table({name: median(took) for name, took in rounds.items()}, rows, len(file))


def _table(seconds: dict[str, float], rows: int, size: int) -> str:
    limit = seconds["raw COPY"]
    head = (
        f"Medians of {ROUNDS} rounds. {rows:,} rows of {size / rows / 1000:.1f} KB in batches of "
        f"{BATCH:,}; bulk_create and executemany with one row in {SHARE}. Raw COPY: "
        f"{rows / limit:,.0f} rows/s. Mixed: a third unchanged, a third changed, a third new.\n\n"
        "| | rows/s | ratio to raw COPY | rows/s, 2 workers | ratio to raw COPY | "
        "1 worker to bulk_create | to executemany |\n|---|---|---|---|---|---|---|\n"
    )
    body = ""
    for step in ("insert", "update all", "mixed", "unchanged"):
        one, two = (seconds[f"{step} {workers}"] for workers in WORKERS)
        others = [seconds.get(f"{name} {step}") for name in ("bulk_create", "executemany")]
        body += (
            f"| {step} | {rows / one:,.0f} | {limit / one:.2f} | {rows / two:,.0f} | "
            f"{limit / two:.2f} | "
            + " | ".join(f"{other / one:.1f}x" if other else "" for other in others)
            + " |\n"
        )
    return head + body


def _lines(file: bytes) -> list[bytes]:
    return file.splitlines(keepends=True)


def _state(subject: Subject) -> Any:
    """What an unchanged load must not change: dead rows, and the row versions themselves."""
    with platform(), connection.cursor() as cursor:
        table = subject.tables[0][0]._meta.db_table
        cursor.execute(
            f"SELECT count(*), max(updated_at), max(xmin::text::bigint), max(ctid) FROM {table}"
        )
        return cursor.fetchone()


def _empty(subject: Subject) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"TRUNCATE {subject.tables[0][0]._meta.db_table} CASCADE")


# -- raw COPY -------------------------------------------------------------------------------------


@contextmanager
def _owner() -> Iterator[Any]:
    with as_owner(connection), connection.cursor() as cursor:
        yield cursor


def _columns(model: type[models.Model]) -> str:
    return ", ".join(f't."{f.column}"' for f in model._meta.concrete_fields if not f.generated)


def _copied_out(subject: Subject) -> list[list[bytes]]:
    """The tables' bytes for each batch, in the order of loading."""
    batches = []
    with _owner() as cursor:
        cursor.execute(f"SELECT id FROM {subject.tables[0][0]._meta.db_table} ORDER BY id")
        ids = [row[0] for row in cursor.fetchall()]
        for start in range(0, len(ids), BATCH):
            part = ids[start : start + BATCH]
            cursor.execute("CREATE TEMP TABLE part AS SELECT unnest(%s::uuid[]) AS id", [part])
            batch = []
            for model, column in subject.tables:
                source = (
                    f"COPY (SELECT {_columns(model)} FROM {model._meta.db_table} t "
                    f"JOIN part ON part.id = t.{column} ORDER BY t.id) TO STDOUT (FORMAT BINARY)"
                )
                with cursor.copy(source) as copy:
                    batch.append(b"".join(copy))
            batches.append(batch)
            cursor.execute("DROP TABLE part")
    return batches


def _copy_in(subject: Subject, batches: list[list[bytes]]) -> None:
    with _owner() as cursor:
        for batch in batches:
            with transaction.atomic():
                for (model, _), data in zip(subject.tables, batch, strict=True):
                    into = f"{model._meta.db_table} ({_columns(model).replace('t.', '')})"
                    with cursor.copy(f"COPY {into} FROM STDIN (FORMAT BINARY)") as copy:
                        for start in range(0, len(data), 1 << 20):
                            copy.write(data[start : start + (1 << 20)])


# -- Django and psycopg ------------- -------------------------------------------------------------


def _in_batches(
    subject: Subject, organization: Organization, part: Sequence[bytes], upsert: Upsert
) -> None:
    for start in range(0, len(part), BATCH):
        rows = [msgspec.json.decode(line) for line in part[start : start + BATCH]]
        with tenant(organization):
            subject.upsert(organization, rows, upsert)


def _bulk_create(model: Any, objects: list[Any], unique: list[str], updated: list[str]) -> None:
    model.objects.bulk_create(
        objects, update_conflicts=True, unique_fields=unique, update_fields=updated
    )


def _executemany(model: Any, objects: list[Any], unique: list[str], updated: list[str]) -> None:
    fields = [f for f in model._meta.concrete_fields if not f.generated]
    of = {f.name: f.column for f in fields}
    statement = sql.SQL("INSERT INTO {} ({}) VALUES ({}) ON CONFLICT ({}) DO UPDATE SET {}").format(
        sql.Identifier(model._meta.db_table),
        sql.SQL(", ").join(sql.Identifier(f.column) for f in fields),
        sql.SQL(", ").join([sql.Placeholder()] * len(fields)),
        sql.SQL(", ").join(sql.Identifier(of[name]) for name in unique),
        sql.SQL(", ").join(
            sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(of[name])) for name in updated
        ),
    )
    values = (
        [f.get_db_prep_save(getattr(one, f.attname), connection) for f in fields] for one in objects
    )
    with connection.cursor() as cursor:
        cursor.executemany(statement, values)


def _found(organization: Organization, model: Any) -> dict[str, Any]:
    """The ids of the rows that lines refer to, by external_id."""
    rows = model.objects.for_organization(organization)
    return dict(rows.values_list("external_id", "id"))


_SESSION = ["team_id", "workflow_id", "name", "state", "agent_data", "summary", "metadata"]
_RUN = [
    "status",
    "started_at",
    "completed_at",
    "cancellation_reason",
    "model",
    "content",
    "messages",
    "events",
    "metrics",
    "metadata",
    "position",
]
_MEMORY = ["content", "speaker", "context", "memory_type", "scope", "level", "importance"]


def _given(row: Row, names: list[str]) -> Row:
    return {name: row[name] for name in names if row.get(name) is not None}


def _upsert_sessions(organization: Organization, rows: list[Row], upsert: Upsert) -> None:
    """Parents, then children."""
    agents, users = _found(organization, Agent), _found(organization, User)
    objects = [
        Session(
            organization=organization,
            session_id=row["session_id"],
            agent_id=agents.get(row.get("agent_id", "")),
            user_id=users.get(row.get("user_id", "")),
            **_given(row, _SESSION),
        )
        for row in rows
    ]
    upsert(Session, objects, ["organization", "session_id"], ["agent", "user", *_SESSION])
    there = Session.objects.for_organization(organization)
    keys = [row["session_id"] for row in rows]
    ids = dict(there.filter(session_id__in=keys).values_list("session_id", "id"))
    below = [
        Run(
            organization=organization,
            session_id=ids[row["session_id"]],
            run_id=run["run_id"],
            **_given({**run, "position": position}, _RUN),
        )
        for row in rows
        for position, run in enumerate(row["runs"])
    ]
    upsert(Run, below, ["organization", "session", "run_id"], _RUN)


def _upsert_memories(organization: Organization, rows: list[Row], upsert: Upsert) -> None:
    """(Without their history.)"""
    agents, users = _found(organization, Agent), _found(organization, User)
    objects = [
        Memory(
            organization=organization,
            external_id=row["external_id"],
            agent_id=agents.get(row.get("agent_id", "")),
            user_id=users.get(row.get("user_id", "")),
            session_id=row.get("session_id"),
            hash=content_hash(row.get("speaker"), row["content"]),
            embedding=np.frombuffer(b64decode(row["embedding"]), "<f4"),
            embedding_model=row["embedding_model"],
            embedding_state=Memory.EmbeddingState.READY,
            metadata=row.get("metadata", {}),
            **_given(row, _MEMORY),
        )
        for row in rows
    ]
    updated = ["agent", "user", "session_id", "hash", "embedding", "embedding_model"]
    upsert(
        Memory,
        objects,
        ["organization", "external_id"],
        [*updated, "embedding_state", "metadata", *_MEMORY],
    )
