"""Sessions with their runs, from JSON lines: the loader against raw COPY and bulk_create.

Raw COPY is the limit: rows already in PostgreSQL's binary format, straight into the same two
tables with the same indexes and constraints, as their owner (PostgreSQL refuses COPY into a table
with a wall to anybody else); no parsing, no validation, no counts.
"""

import gc
import io
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from django.db import connection, transaction

from accounts.actors import command_actor
from accounts.models import Organization, User
from accounts.services.organizations import organizations
from accounts.tenancy import platform, tenant
from agentmem_site.bulk import LoadOptions, LoadReport
from agentmem_site.bulk.readers import source_of
from agentmem_site.db.roles import as_owner
from agentmem_site.loads import run_load
from agentmem_site.samples import lines
from memories.models import Agent
from sessions.models import Run, Session

BATCH = 5000
ROUNDS = 3
ACTOR = command_actor("benchmark")
TABLES = (Session._meta.db_table, Run._meta.db_table)


def run(rows: int) -> str:
    """A Markdown table of ratios to raw COPY: medians of rounds in which each takes its turn."""
    with platform():
        organization = organizations.create(actor=ACTOR, values={"slug": "bench", "name": "Bench"})
    file = b"".join(lines("sessions", row_count=rows, seed=1))
    other = b"".join(lines("sessions", row_count=rows, seed=2))
    rounds: dict[str, list[float]] = {}

    def measure(name: str, work: Callable[[], Any]) -> Any:
        gc.collect()
        started = time.perf_counter()
        answer = work()
        rounds.setdefault(name, []).append(time.perf_counter() - started)
        return answer

    def load(data: bytes) -> LoadReport:
        with source_of(io.BytesIO(data), name="bench.jsonl") as source:
            return run_load(
                "sessions",
                source.lines(),
                organization=organization,
                actor=ACTOR,
                options=LoadOptions(batch_size=BATCH),
            )

    load(file)  # the first load of all makes the files that all others reuse
    copies = _copied_out()
    for _ in range(ROUNDS):
        _empty()
        measure("raw COPY", lambda: _copy_in(copies))
        _empty()
        inserted = measure("insert", lambda: load(file))
        assert inserted.counts.inserted == rows, inserted
        before = _state()
        unchanged = measure("unchanged", lambda: load(file))
        assert unchanged.counts.unchanged == rows, unchanged
        assert _state() == before, "an unchanged load moved a row"
        updated = measure("update all", lambda: load(other))
        assert updated.counts.updated == rows, updated

    share = max(rows // 5, BATCH)
    first = [json.loads(line) for line in file.splitlines()[:share]]
    changed = [json.loads(line) for line in other.splitlines()[:share]]
    for _ in range(ROUNDS):
        _empty()
        measure("bulk_create insert", lambda: _bulk_create(organization, first))
        measure("bulk_create unchanged", lambda: _bulk_create(organization, first))
        measure("bulk_create update all", lambda: _bulk_create(organization, changed))
    results = {name: median(seconds) for name, seconds in rounds.items()}
    for name in ("insert", "unchanged", "update all"):
        results[f"bulk_create {name}"] *= rows / share
    return _table(results, rows, len(file), inserted)


def _table(results: dict[str, float], rows: int, size: int, report: LoadReport) -> str:
    limit = results["raw COPY"]
    head = (
        f"Medians of {ROUNDS} rounds. {rows:,} sessions of {size / rows / 1000:.1f} KB with "
        f"{report.children['runs'].inserted:,} runs, batches of {BATCH:,}, one connection. "
        f"Raw COPY: {rows / limit:,.0f} sessions/s.\n\n"
        "| | sessions/s | ratio to raw COPY | ratio to bulk_create(update_conflicts=True) |\n"
        "|---|---|---|---|\n"
    )
    body = "".join(
        f"| {name} | {rows / results[name]:,.0f} | {limit / results[name]:.2f} | "
        f"{results[f'bulk_create {name}'] / results[name]:.1f} |\n"
        for name in ("insert", "update all", "unchanged")
    )
    return head + body


def _state() -> Any:
    """What an unchanged load must not move: dead rows, and the row versions themselves."""
    with platform(), connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*), max(updated_at), max(xmin::text::bigint), max(ctid) "
            "FROM agent_sessions_session"
        )
        return cursor.fetchone()


def _empty() -> None:
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE {}, {}, agent_sessions_message".format(*TABLES))


@contextmanager
def _owner() -> Iterator[Any]:
    with as_owner(connection), connection.cursor() as cursor:
        yield cursor


def _copied_out() -> list[list[bytes]]:
    """Per batch the bytes of both tables, in the order in which they were loaded."""
    batches = []
    with _owner() as cursor:
        cursor.execute("SELECT id FROM agent_sessions_session ORDER BY id")
        ids = [row[0] for row in cursor.fetchall()]
        for start in range(0, len(ids), BATCH):
            part = ids[start : start + BATCH]
            cursor.execute("CREATE TEMP TABLE part AS SELECT unnest(%s::uuid[]) AS id", [part])
            batch = []
            for table, column in zip(TABLES, ("id", "session_id"), strict=True):
                source = (
                    f"COPY (SELECT t.* FROM {table} t JOIN part ON part.id = t.{column} "
                    "ORDER BY t.id) TO STDOUT (FORMAT BINARY)"
                )
                with cursor.copy(source) as copy:
                    batch.append(b"".join(copy))
            batches.append(batch)
            cursor.execute("DROP TABLE part")
    return batches


def _copy_in(batches: list[list[bytes]]) -> None:
    with _owner() as cursor:
        for batch in batches:
            with transaction.atomic():
                for table, data in zip(TABLES, batch, strict=True):
                    with cursor.copy(f"COPY {table} FROM STDIN (FORMAT BINARY)") as copy:
                        for start in range(0, len(data), 1 << 20):
                            copy.write(data[start : start + (1 << 20)])


def _bulk_create(organization: Organization, sessions: list[dict[str, Any]]) -> None:
    """The same upsert with Django's own means: parents, then children, by batches."""
    keys = {"agent_id": Agent, "user_id": User}
    with tenant(organization):
        found = {
            name: dict(
                model.objects.for_organization(organization).values_list("external_id", "id")
            )
            for name, model in keys.items()
        }
    columns = [
        "agent_id",
        "user_id",
        "team_id",
        "workflow_id",
        "name",
        "state",
        "agent_data",
        "summary",
        "metadata",
        "updated_at",
    ]
    run_columns = [
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
    for start in range(0, len(sessions), BATCH):
        rows, runs = [], []
        for line in sessions[start : start + BATCH]:
            values = {
                name: line[name]
                for name in columns
                if line.get(name) is not None and name != "updated_at"
            }
            for name in keys:
                if name in values:
                    values[name] = found[name][values[name]]
            rows.append(Session(organization=organization, session_id=line["session_id"], **values))
        with tenant(organization):
            Session.objects.bulk_create(
                rows,
                update_conflicts=True,
                unique_fields=["organization", "session_id"],
                update_fields=[
                    name.removesuffix("_id") if name in keys else name for name in columns
                ],
            )
            ids = dict(
                Session.objects.for_organization(organization)
                .filter(session_id__in=[row.session_id for row in rows])
                .values_list("session_id", "id")
            )
            for line in sessions[start : start + BATCH]:
                for position, run in enumerate(line["runs"]):
                    given = {name: run[name] for name in run_columns if run.get(name) is not None}
                    given["position"] = position
                    runs.append(
                        Run(
                            organization=organization,
                            session_id=ids[line["session_id"]],
                            run_id=run["run_id"],
                            **given,
                        )
                    )
            Run.objects.bulk_create(
                runs,
                update_conflicts=True,
                unique_fields=["organization", "session", "run_id"],
                update_fields=run_columns,
            )
