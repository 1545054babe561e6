"""Texts per second and memory of the encoders, against sentence-transformers in 32 bits.

Each combination of encoder and number of threads runs in its own process, limited to that many
cores; they take turns. sentence-transformers is measured where it is installed
(`AGENTMEM_SENTENCE_TRANSFORMERS_MODEL` names the same model's folder where the network is closed).
"""

import json
import os
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
YARDSTICK = "sentence-transformers"
ENCODERS = ("minilm-int8", "static", YARDSTICK)
KINDS = ("short", "long")
THREADS = (1, 2)
ROUNDS = 3
SECONDS = 2.0  # at least, per kind of text and round


def run() -> str:
    """A Markdown table: medians of rounds, in each of which every encoder runs once."""
    results: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for _ in range(ROUNDS):
        for threads in THREADS:
            for name in ENCODERS:
                if found := _in_a_process(name, threads):
                    results.setdefault((name, threads), []).append(found)
    return _table(results)


def _in_a_process(name: str, threads: int) -> dict[str, Any] | None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.encoders", name, str(threads)],
        cwd=ROOT,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "agentmem_site.settings",
            "AGENTMEM_ENCODER_THREADS": str(threads),
            "OMP_NUM_THREADS": str(threads),
            "CUDA_VISIBLE_DEVICES": "",
        },
        check=True,
        stdout=subprocess.PIPE,
    )
    return json.loads(done.stdout)


def _table(results: dict[tuple[str, int], list[dict[str, Any]]]) -> str:
    def middle(name: str, threads: int, what: str) -> float:
        return median(found[what] for found in results[name, threads])

    def figure(name: str, threads: int, kind: str) -> str:
        speed = middle(name, threads, kind)
        if (YARDSTICK, threads) not in results:
            return f"{speed:,.0f} (not installed)"
        return f"{speed:,.0f} ({speed / middle(YARDSTICK, threads, kind):.1f})"

    tokens = {kind: results[ENCODERS[0], 1][0][f"{kind} characters"] for kind in KINDS}
    columns = [(threads, kind) for threads in THREADS for kind in KINDS]
    head = (
        f"Medians of {ROUNDS} rounds. Short texts have {tokens['short']:.0f} characters, long ones "
        f"{tokens['long']:,.0f}; one call encodes all. Texts/s, and in brackets the ratio to "
        f"{YARDSTICK}; memory is the process's peak, Django included (about 65 MB).\n\n"
        f"| | {' | '.join(f'{kind}, {_counted(threads)}' for threads, kind in columns)} "
        "| cosine to 32 bits, short / long | memory |\n"
        f"|---|{'---|' * len(columns)}---|---|\n"
    )
    body = ""
    for name in ENCODERS:
        if (name, 1) not in results:
            body += f"| {name} | {'not installed | ' * len(columns)}| |\n"
            continue
        figures = " | ".join(figure(name, *column) for column in columns)
        body += f"| {name} | {figures} | {_cosines(results, name)} | "
        body += " / ".join(f"{middle(name, n, 'memory_mb'):,.0f}" for n in THREADS) + " MB |\n"
    return head + body


def _counted(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"


def _cosines(results: dict[tuple[str, int], list[dict[str, Any]]], name: str) -> str:
    """Of the same model alone: vectors of different models cannot be compared."""
    if name == "static" or (YARDSTICK, 1) not in results:
        return ""
    means = []
    for kind in KINDS:
        pairs = zip(
            results[name, 1][0][f"{kind} vectors"],
            results[YARDSTICK, 1][0][f"{kind} vectors"],
            strict=True,
        )
        cosines = [sum(a * b for a, b in zip(*pair, strict=True)) for pair in pairs]
        means.append(f"{sum(cosines) / len(cosines):.3f}")
    return " / ".join(means)


def texts(kind: str) -> list[str]:
    """Memories, and conversations cut by every encoder at its limit."""
    from agentmem_site.samples import rows

    if kind == "short":
        return [row["content"] for row in islice(rows("memories", seed=3), 400)]
    said = [row.get("text") or "" for row in islice(rows("messages", seed=3), 720)]
    return [" ".join(said[start : start + 12]) for start in range(0, len(said), 12)]


def measure(name: str, threads: int) -> dict[str, Any] | None:
    """In its own process: texts/s and some vectors per kind, and the peak memory."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:threads]))
    import django

    django.setup()
    from memories.embeddings import EncoderError, get_encoder

    try:
        encoder = get_encoder(name)
    except EncoderError:
        if name == YARDSTICK:
            return None
        raise
    found: dict[str, Any] = {}
    for kind in KINDS:
        batch = texts(kind)
        vectors = encoder.encode(batch)
        count, started = 0, time.perf_counter()
        while (seconds := time.perf_counter() - started) < SECONDS:
            encoder.encode(batch)
            count += len(batch)
        found[kind] = count / seconds
        found[f"{kind} characters"] = sum(map(len, batch)) / len(batch)
        found[f"{kind} vectors"] = vectors[:50].tolist()
    status = Path("/proc/self/status").read_text()
    found["memory_mb"] = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
