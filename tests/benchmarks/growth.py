"""The cost of a row while the table grows: sessions with their runs, memories with vectors.

At each size four batches are loaded in this process, from lines generated before, and the last
three are timed. Between two sizes, rows are piped into `manage.py bulk_upsert`, like a file of any
length: its peak memory is the client's.
"""

import io
import re
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
from django.db import connection

from accounts.actors import command_actor
from accounts.models import Organization
from accounts.services.organizations import organizations
from accounts.tenancy import platform
from agentmem_site.bulk import LoadOptions
from agentmem_site.bulk.readers import source_of
from agentmem_site.samples import lines
from agentmem_site.services.loads import run_load
from memories.models import EMBEDDING_DIM
from tests.benchmarks.adding import environment
from tests.benchmarks.plot import Series, write_plot

ROOT = Path(__file__).resolve().parents[2]
PLOT = ROOT / "docs" / "images" / "growth.svg"
ACTOR = command_actor("benchmark")
SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
BATCH, BATCHES, WARM_UP = 5000, 4, 2  # (the first is a short one)
ROUNDS = 3  # on the empty table
ROWS_AT_A_SIZE = BATCH * BATCHES

Make = Callable[[int, int], Iterator[bytes]]  # pieces of lines: first number, how many


@dataclass
class Grown:
    """One resource: microseconds per row by table size, and the client's peak memory in MB."""

    costs: dict[int, float] = field(default_factory=dict)
    peak_mb: float = 0.0

    def ratio(self, size: int) -> float:
        return self.costs[size] / self.costs[0]


def run(rows: int) -> str:
    """A Markdown table up to `rows` rows; the plot goes to docs/images."""
    sizes = [size for size in SIZES if size <= rows]
    grown = {
        "sessions": _grow("sessions", sessions, sizes),
        "memories": _grow("memories", memories, sizes),
    }
    write_plot(
        PLOT,
        title="Cost of a new row by table size, against an empty table",
        x="rows in the table (log)",
        y="ratio",
        series=[
            Series(name, [(size, one.ratio(size), f"{one.ratio(size):.2f}") for size in sizes])
            for name, one in grown.items()
        ],
    )
    return _table(grown, sizes)


def _grow(resource: str, make: Make, sizes: list[int]) -> Grown:
    with platform():
        slug = f"growth-{resource}"
        organization = organizations.create(actor=ACTOR, values={"slug": slug, "name": slug})
    first, grown = 1, Grown()
    on_empty = []
    for _ in range(ROUNDS):
        _empty()
        on_empty += _batches(resource, organization, make(1, ROWS_AT_A_SIZE))
    grown.costs[0] = median(on_empty)
    _empty()
    for size in sizes:
        if missing := size - (first - 1):
            peak_mb = _fill(resource, organization, make(first, missing))
            grown.peak_mb = max(grown.peak_mb, peak_mb)
            first += missing
        costs = _batches(resource, organization, make(first, ROWS_AT_A_SIZE))
        grown.costs[size] = median(costs)
        first += ROWS_AT_A_SIZE
    return grown


def _batches(resource: str, organization: Organization, pieces: Iterator[bytes]) -> list[float]:
    """Microseconds per row of each batch after the first ones."""
    file = io.BytesIO(b"".join(pieces))
    ends = [(time.perf_counter(), 0)]
    with source_of(file, name=f"{resource}.jsonl") as source:
        report = run_load(
            resource,
            source.lines(),
            organization=organization,
            actor=ACTOR,
            options=LoadOptions(batch_size=BATCH),
            on_batch=lambda report: ends.append((time.perf_counter(), report.read)),
        )
    assert report.counts.inserted == ROWS_AT_A_SIZE, report
    seconds_per_row = [
        (after - before) / (read - done) for (before, done), (after, read) in pairwise(ends)
    ]
    return [1e6 * seconds for seconds in seconds_per_row[WARM_UP:]]


def _fill(resource: str, organization: Organization, pieces: Iterator[bytes]) -> float:
    """Loads through a pipe; the peak memory of the command in MB."""
    command = [sys.executable, "manage.py", "bulk_upsert", resource, "-", "--no-progress"]
    loader = subprocess.Popen(
        [*command, "--organization", organization.slug],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    peak_mb = 0.0
    assert loader.stdin
    with loader.stdin as pipe:
        for piece in pieces:
            pipe.write(piece)
            peak_mb = max(peak_mb, _peak_mb(loader.pid))
    while loader.poll() is None:
        peak_mb = max(peak_mb, _peak_mb(loader.pid))
        time.sleep(0.02)
    assert loader.returncode == 0, f"bulk_upsert ended with {loader.returncode}"
    return peak_mb


def _peak_mb(pid: int) -> float:
    """Of a running process. (wait4 would include this process, from which it was forked.)"""
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(peak[1]) / 1024 if peak else 0.0


def sessions(first: int, count: int) -> Iterator[bytes]:
    return lines("sessions", row_count=count, seed=1, start=first)


def memories(first: int, count: int) -> Iterator[bytes]:
    """Memories with unique contents and vectors in base64."""
    number = first
    for piece in lines("memories", row_count=count, seed=1, start=first):
        rows: list[Any] = [msgspec.json.decode(line) for line in piece.splitlines()]
        noise = np.random.default_rng(number)
        vectors = noise.standard_normal((len(rows), EMBEDDING_DIM)).astype("<f4")
        for row, vector in zip(rows, vectors, strict=True):
            row["content"] += f" ({number})"
            row |= {"embedding": b64encode(vector.tobytes()).decode(), "embedding_model": "noise"}
            number += 1
        yield msgspec.json.Encoder().encode_lines(rows)


def _empty() -> None:
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE agent_sessions_session, memories_memory CASCADE")


def _table(grown: dict[str, Grown], sizes: list[int]) -> str:
    peaks = ", ".join(f"{one.peak_mb:.0f} MB with {name}" for name, one in grown.items())
    head = (
        f"Medians of {BATCHES - WARM_UP} batches of {BATCH:,} at each size, of {ROUNDS} times as "
        f"many on the empty table. Peak memory of `bulk_upsert` reading a pipe: {peaks}.\n\n"
        "| rows in the table |" + "".join(f" {name}, µs per row | ratio |" for name in grown) + "\n"
        "|---|" + "---|---|" * len(grown) + "\n"
    )
    return head + "".join(
        f"| {size:,} |"
        + "".join(f" {one.costs[size]:.0f} | {one.ratio(size):.2f} |" for one in grown.values())
        + "\n"
        for size in (0, *sizes)
    )
