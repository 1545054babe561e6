"""The options of `bulk_upsert`: its manual, and which of them exclude each other."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError, CommandParser, DjangoHelpFormatter

from accounts.management.ending import USAGE
from agentmem_site.bulk.faults import RETRIES
from agentmem_site.bulk.options import MAX_WORKERS, LoadOptions
from agentmem_site.bulk.readers import read_options
from agentmem_site.bulk.reading import FORMATS, MAX_LINE_BYTES, BadOption, ReadOptions
from agentmem_site.bulk.times import DATE_ORDERS, zone_of
from agentmem_site.services.loads import EMBED_FIRST, LINKS, RESOURCES

MAX_TIMEOUT_S = 2_147_483  # PostgreSQL counts milliseconds in 32 bits
MAX_THROTTLE_MS = 3_600_000
MAX_LINE_LIMIT = 2**30  # PostgreSQL's limit for one value
LARGE_BYTES = 64 * 1024 * 1024
EMBED = {"now": None, "later": 0}
_LEAST = {
    "batch_size": 1,
    "min_batch_size": 1,
    "workers": 1,
    "max_line": 1,
    "max_bytes": 1,
    "max_rejects": 0,
    "max_retries": 0,
}
EPILOG = """\
files:
  JSON lines hold one row each; `manage.py make_sample` writes examples. Arrays, pretty
  JSON and {"results": [...]} are read, too. CSV has the names of the fields in its first
  line. Parquet needs `pip install -r requirements-parquet.txt`. gzip and zstd are
  decompressed on the fly. docs/files.md has the formats, and examples for many programs.
  A line is the whole row: an absent field takes its default. What the server maintains
  (access counts, versions) stays, and so do runs that a session's line leaves out.

interrupted loads resume:
  Each batch is one transaction, which also stores the load's checkpoint. After a crash,
  a kill or a lost connection, the same command resumes where it stopped. After a
  complete load it finds every row unchanged, and changes no timestamp.

exit codes:
  0    all rows are stored
  2    wrong usage, or the file cannot be read
  3    done, but lines were rejected (--on-error skip)
  65   a bad line; or the file has changed since the load was interrupted
  70   the database refused what passed validation
  73   rejected lines cannot be written
  75   a temporary failure: the database is away, full or too slow; the same command resumes
  77   no such organization or member, or the database denies it
  130  interrupted (143: terminated); the same command resumes

examples:
  manage.py bulk_upsert sessions sessions.jsonl.gz --organization acme
  manage.py bulk_upsert memories m.parquet --organization acme --workers 2 --embed later
  zcat big.gz | manage.py bulk_upsert users - --organization acme --job nightly \\
      --on-error skip --rejects rejects.jsonl
"""


class Manual(argparse.RawDescriptionHelpFormatter, DjangoHelpFormatter):
    """Django's, except that the epilog is printed as it is written."""


def add_load_options(parser: CommandParser) -> None:
    _add_reading(parser.add_argument_group("the file"))
    _add_meaning(parser.add_argument_group("what a line means"))
    _add_bad_lines(parser.add_argument_group("bad lines"))
    _add_running(parser.add_argument_group("how it runs"))
    _add_reporting(parser.add_argument_group("what it prints"))


def chosen_options(options: dict[str, Any]) -> LoadOptions:
    """Raises: CommandError, where options are out of range or exclude each other."""
    wrong = {
        f"--{name.replace('_', '-')} is at least {least}": options[name] is not None
        and options[name] < least
        for name, least in _LEAST.items()
    } | {
        f"--timeout is 0 to {MAX_TIMEOUT_S:,}": not 0 <= options["timeout"] <= MAX_TIMEOUT_S,
        f"--workers is 1 to {MAX_WORKERS}": options["workers"] > MAX_WORKERS,
        f"--throttle is 0 to {MAX_THROTTLE_MS:,}": not 0 <= options["throttle"] <= MAX_THROTTLE_MS,
        f"--max-line is at most {MAX_LINE_LIMIT:,}": options["max_line"] > MAX_LINE_LIMIT,
        "--embed is for memories": bool(options["embed"]) and options["resource"] != "memories",
        "--rejects and --max-rejects are for --on-error skip": options["on_error"] == "stop"
        and (options["rejects"] is not None or options["max_rejects"] is not None),
        "--dry-run is one transaction: it has one worker": options["dry_run"]
        and options["workers"] > 1,
        f"{options['resource']} come from an export: add --preserve-ids": options["resource"]
        in LINKS
        and not options["preserve_ids"],
        "--restore is for rows without ids: an export says which rows are in the trash": options[
            "restore"
        ]
        and options["preserve_ids"],
    }
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise CommandError(message, returncode=USAGE)
    retry = RETRIES[options["retry"]]
    if options["max_retries"] is not None:
        retry = replace(retry, tries=options["max_retries"])
    return LoadOptions(
        batch_size=options["batch_size"],
        min_batch_size=min(options["min_batch_size"], options["batch_size"]),
        timeout_s=options["timeout"],
        throttle_ms=options["throttle"],
        workers=options["workers"],
        retry=retry,
        skips_bad=options["on_error"] == "skip",
        max_rejects=options["max_rejects"],
        preserve_timestamps=options["preserve_timestamps"],
        preserve_ids=options["preserve_ids"],
        restore=options["restore"],
        strict_references=options["strict_references"],
        ignore_unknown=options["ignore_unknown"],
        timezone=options["timezone"],
        date_order=options["date_order"],
        dry_run=options["dry_run"],
    )


def _zone(name: str) -> str:
    try:
        return name and zone_of(name).key
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def chosen_reading(options: dict[str, Any]) -> ReadOptions:
    """Raises: CommandError, of what cannot be read so."""
    try:
        return read_options(
            {**RESOURCES, **LINKS}[options["resource"]],
            format=options["format"],
            encoding=options["encoding"],
            delimiter=options["delimiter"],
            nulls=options["null"],
            maps=options["map"],
            sets=options["set"],
            ignore_unknown=options["ignore_unknown"],
            max_line_bytes=options["max_line"],
            max_bytes=options["max_bytes"],
        )
    except BadOption as error:
        raise CommandError(str(error), returncode=USAGE) from error


def _add_reading(group: Any) -> None:
    group.add_argument(
        "--format",
        choices=FORMATS,
        default="auto",
        help="default: by what the file holds and its name",
    )
    group.add_argument(
        "--encoding",
        default="",
        metavar="NAME",
        help="of a text file: cp1252, utf-16, ... (default: UTF-8, or UTF-16 where the file "
        "begins so)",
    )
    group.add_argument(
        "--delimiter",
        default="auto",
        metavar="CHARACTER",
        help="between the cells of CSV: , or ; or tab or | (default auto: by the header)",
    )
    group.add_argument(
        "--null",
        action="append",
        metavar="WORD",
        help="a cell of this word is empty, as empty cells and \\N are; repeatable; `usual` is "
        "NULL, None, NaN, NA and the like. A word of these that is not named is a bad line where "
        "a key belongs; --null '' takes them for keys",
    )
    group.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="a column or a JSON key under another name; paths have points (user.id=user_id), "
        "OLD= leaves it out; repeatable",
    )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="the same value in every line; repeatable",
    )
    group.add_argument(
        "--max-line",
        type=int,
        default=MAX_LINE_BYTES,
        metavar="BYTES",
        help=f"a longer line is a bad line (default {MAX_LINE_BYTES:,})",
    )
    group.add_argument(
        "--max-bytes",
        type=int,
        metavar="BYTES",
        help="stop when a decompressed file is larger (default: stop only at a likely "
        "decompression bomb: over 64 MiB, and over 200 times the compressed size)",
    )
    group.add_argument(
        "--ignore-unknown",
        action="store_true",
        help="ignore unknown fields; without it such a line is a bad line",
    )


def _add_meaning(group: Any) -> None:
    group.add_argument(
        "--preserve-timestamps",
        action="store_true",
        help="take created_at and updated_at from the file; without it new and changed rows "
        "get the time of the load",
    )
    group.add_argument(
        "--timezone",
        type=_zone,
        default="",
        metavar="NAME",
        help="of times that name none, like Europe/Berlin or UTC; without it they are bad lines",
    )
    group.add_argument(
        "--date-order",
        choices=DATE_ORDERS,
        default="",
        help="whether 01/02/2026 is the first of February (dmy) or the second of January (mdy)",
    )
    group.add_argument(
        "--preserve-ids",
        action="store_true",
        help="restore an export: each line has its `id`, and what the server maintains",
    )
    group.add_argument(
        "--restore",
        action="store_true",
        help="restore rows in the trash, and rows there that lines name, with all that was "
        "deleted together with them; without it rows stay in the trash, and a line that names "
        "a row there is a bad line",
    )
    group.add_argument(
        "--strict-references",
        action="store_true",
        help="a line that names an unknown agent, user or session is a bad line; without it "
        "they are created",
    )
    group.add_argument(
        "--embed",
        choices=list(EMBED),
        help="embed memories without a vector during the load, or later by a worker "
        f"(default: the first {EMBED_FIRST:,} rows now, the rest later)",
    )


def _add_bad_lines(group: Any) -> None:
    group.add_argument(
        "--on-error",
        choices=["stop", "skip"],
        default="stop",
        help="at a bad line stop, or reject it and continue (default stop)",
    )
    group.add_argument(
        "--rejects",
        type=Path,
        metavar="FILE",
        help="write rejected lines to FILE, as JSON: line, byte_offset, code, field, message",
    )
    group.add_argument(
        "--max-rejects",
        type=int,
        metavar="N",
        help="stop when more than N are rejected (default: never)",
    )


def _add_running(group: Any) -> None:
    group.add_argument(
        "--batch-size",
        type=int,
        default=5000,
        metavar="N",
        help="rows per transaction, at most (default 5000)",
    )
    group.add_argument(
        "--min-batch-size",
        type=int,
        default=500,
        metavar="N",
        help="a batch that times out is halved, down to this size (default 500)",
    )
    group.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="connections that load in parallel, keeping the order of the file "
        "(default 1; two are 1.2 to 1.4 times as fast on two cores)",
    )
    group.add_argument(
        "--timeout",
        type=float,
        default=30,
        metavar="S",
        help="seconds per statement; 0: none (default 30)",
    )
    group.add_argument(
        "--retry",
        choices=list(RETRIES),
        default="default",
        help="how a batch is retried after a temporary failure: default (3 retries from "
        "100 ms, x2), aggressive (5 from 50 ms, x1.5), conservative (2 from 200 ms, x3); "
        "each pause is random up to that",
    )
    group.add_argument("--max-retries", type=int, metavar="N", help="another number of retries")
    group.add_argument(
        "--throttle",
        type=float,
        default=0,
        metavar="MS",
        help="milliseconds to wait between batches (default 0)",
    )
    group.add_argument(
        "--job",
        metavar="NAME",
        help="the name by which an interrupted load resumes (default: resource and path; "
        "standard input has none)",
    )
    group.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="resume where the last run of the job was interrupted; --no-resume starts over",
    )
    group.add_argument(
        "--index",
        choices=["auto", "after", "worker"],
        default="auto",
        help="how a first load of memories indexes its vectors: build the index after the "
        "load, or let a worker move them there (auto: after, if the index is empty and the "
        f"file has at least {LARGE_BYTES // 2**20} MiB)",
    )
    group.add_argument("--dry-run", action="store_true", help="do everything, then roll it back")


def _add_reporting(group: Any) -> None:
    group.add_argument("--json", action="store_true", help="print the report as JSON")
    group.add_argument("--no-progress", action="store_true", help="print no progress")
