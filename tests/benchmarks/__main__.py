"""`make bench`: the benchmarks, on their own database; their figures go to docs/performance.md.

    python -m tests.benchmarks [SECTION ..] [--rows 100000] [--write]

Figures are ratios measured side by side in one run; absolute numbers only give the order.
"""

import argparse
import os
import platform
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentmem_site.settings")
django.setup()

from django.db import connection  # noqa: E402  (after setup)

from tests.benchmarks import adding, bulk, crowd, encoders, growth, search  # noqa: E402
from tests.benchmarks.locomo import evaluate  # noqa: E402

PAPER = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
BEGIN, END = "<!-- {} -->\n", "<!-- end {} -->\n"


def conditions() -> str:
    return (
        f"Measured {date.today():%Y-%m-%d}: Python {platform.python_version()}, "
        f"{os.cpu_count()} shared cores."
    )


def in_database(work: Callable[[], str]) -> str:
    """The result of `work` on a new database."""
    name = connection.settings_dict["NAME"]
    connection.creation.create_test_db(verbosity=0, autoclobber=True, serialize=False)
    try:
        return f"{database_conditions()}\n\n{work()}"
    finally:
        connection.creation.destroy_test_db(name, verbosity=0)


def database_conditions() -> str:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT current_setting('server_version'), current_setting('fsync'), "
            "current_setting('shared_buffers')"
        )
        version, fsync, buffers = cursor.fetchone()
    return (
        f"Measured {date.today():%Y-%m-%d}: PostgreSQL {version} (fsync {fsync}, shared_buffers "
        f"{buffers}), Python {platform.python_version()}, {os.cpu_count()} shared cores."
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    sections = {
        "adding": lambda: in_database(lambda: adding.run(options.rows)),
        "bulk_sessions": lambda: in_database(lambda: bulk.run_sessions(options.rows)),
        "bulk_memories": lambda: in_database(lambda: bulk.run_memories(options.rows)),
        "growth": lambda: in_database(lambda: growth.run(options.rows)),
        "encoders": lambda: f"{conditions()}\n\n{encoders.run()}",
        "search": lambda: in_database(lambda: search.run(options.rows)),
        "crowd": lambda: in_database(crowd.run),
        "locomo": lambda: in_database(evaluate.run),
    }
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(sections)}")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--write", action="store_true", help="put the figures into the paper")
    options = parser.parse_args()
    if unknown := set(options.sections) - set(sections):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    for name in options.sections or sections:
        section = sections[name]()
        sys.stdout.write(f"{section}\n")
        if options.write:
            write(name, section)


def write(name: str, section: str) -> None:
    paper = PAPER.read_text()
    begin, end = BEGIN.format(name), END.format(name)
    before, rest = paper.split(begin)
    PAPER.write_text(before + begin + section + end + rest.split(end)[1])


main()
