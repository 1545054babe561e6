"""`manage.py bulk_upsert`: a file of JSON lines into the database."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import OperationalError

from accounts.access import member_actor, member_by_email, organization_by_slug
from accounts.actors import Actor, command_actor
from accounts.errors import ServiceError
from accounts.management.ending import (
    BAD_DATA,
    INTEGRITY,
    INTERRUPTED,
    PERMISSION,
    TEMPORARY,
    USAGE,
)
from agentmem_site.bulk import LoadOptions, LoadReport
from agentmem_site.bulk.loader import (
    BadLine,
    Interrupted,
    LoadStopped,
    Refused,
    Unprepared,
    Unreadable,
)
from agentmem_site.bulk.readers import UnreadableFile, numbered_lines, open_lines
from agentmem_site.loads import EMBED_FIRST, LINKS, RESOURCES, run_load

MAX_TIMEOUT_S = 2_147_483  # what PostgreSQL counts in milliseconds
_EXIT_CODES = {
    BadLine: BAD_DATA,
    Unreadable: USAGE,
    Unprepared: USAGE,
    Refused: INTEGRITY,
    Interrupted: TEMPORARY,
}
_EMBED = {"now": None, "later": 0}


class Command(BaseCommand):
    help = (
        "Loads a file of JSON lines: rows that are new are inserted, rows that really differ are "
        "updated, the others stay untouched, timestamps too. A line is the whole row: an absent "
        "field takes its default."
    )
    requires_system_checks: list[str] = []  # starts at once

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "resource",
            choices=[*RESOURCES, *LINKS],
            metavar="RESOURCE",
            help=f"{', '.join(RESOURCES)}; of an export also {', '.join(LINKS)}",
        )
        parser.add_argument(
            "file",
            nargs="?",
            default="-",
            metavar="FILE",
            help="JSON lines, gzip or not; - (the default) reads standard input",
        )
        parser.add_argument("--organization", required=True, metavar="SLUG")
        parser.add_argument(
            "--batch-size",
            type=int,
            default=5000,
            metavar="N",
            help="rows per transaction (default 5000)",
        )
        parser.add_argument(
            "--timeout",
            type=float,
            default=30,
            metavar="S",
            help="seconds per statement; 0: none (default 30)",
        )
        parser.add_argument(
            "--preserve-timestamps",
            action="store_true",
            help="created_at and updated_at come from the file",
        )
        parser.add_argument(
            "--preserve-ids",
            action="store_true",
            help="restore an export: each line has its `id`, and what the server keeps of the row",
        )
        parser.add_argument(
            "--strict-references",
            action="store_true",
            help="refuse unknown agents and users instead of creating them",
        )
        parser.add_argument(
            "--embed",
            choices=list(_EMBED),
            help="memories without a vector get it with the load, or later, from a worker "
            f"(default: the first {EMBED_FIRST:,} rows now, the rest later)",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="do everything, then roll it back"
        )
        parser.add_argument(
            "--actor", metavar="EMAIL", help="the member to stamp into the audit columns"
        )
        parser.add_argument("--json", action="store_true", help="print the report as JSON")
        parser.add_argument("--no-progress", action="store_true", help="no progress bar")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["batch_size"] < 1:
            raise CommandError("--batch-size is at least 1", returncode=USAGE)
        if not 0 <= options["timeout"] <= MAX_TIMEOUT_S:
            raise CommandError(f"--timeout is 0 to {MAX_TIMEOUT_S:,}", returncode=USAGE)
        if options["embed"] and options["resource"] != "memories":
            raise CommandError("--embed is for memories", returncode=USAGE)
        if options["resource"] in LINKS and not options["preserve_ids"]:
            raise CommandError(
                f"{options['resource']} come from an export: add --preserve-ids", returncode=USAGE
            )
        try:
            organization = organization_by_slug(options["organization"])
            actor = self._actor(options["actor"])
        except ServiceError as error:
            raise CommandError(str(error), returncode=PERMISSION) from error
        except OperationalError as error:
            raise CommandError(f"No database: {error}", returncode=TEMPORARY) from error
        load_options = LoadOptions(
            batch_size=options["batch_size"],
            timeout_s=options["timeout"],
            preserve_timestamps=options["preserve_timestamps"],
            preserve_ids=options["preserve_ids"],
            strict_references=options["strict_references"],
            dry_run=options["dry_run"],
        )
        try:
            with open_lines(options["file"]) as stream, self._progress(options, stream) as show:
                report = run_load(
                    options["resource"],
                    numbered_lines(stream),
                    organization=organization,
                    actor=actor,
                    options=load_options,
                    on_batch=show,
                    embed_first=_EMBED.get(options["embed"], EMBED_FIRST),
                )
        except UnreadableFile as error:
            raise CommandError(str(error), returncode=USAGE) from error
        except KeyboardInterrupt as signal:
            raise CommandError(
                "Stopped. The batches that were done are committed; run the same command again: "
                "what is stored stays unchanged.",
                returncode=INTERRUPTED,
            ) from signal
        except LoadStopped as stopped:
            self._print(stopped.report, options)
            raise CommandError(
                _explained(stopped), returncode=_EXIT_CODES[type(stopped)]
            ) from stopped
        self._print(report, options)

    def _actor(self, email: str | None) -> Actor:
        return member_actor(member_by_email(email)) if email else command_actor("bulk_upsert")

    def _print(self, report: LoadReport, options: dict[str, Any]) -> None:
        if options["json"]:
            self.stdout.write(json.dumps(report.as_dict()))
        else:
            self.stdout.write(_sentence(report))

    @contextmanager
    def _progress(self, options: dict[str, Any], stream: IO[bytes]) -> Iterator[Any]:
        """A bar on a terminal; nothing elsewhere."""
        if options["no_progress"] or not sys.stderr.isatty():
            yield lambda report: None
            return
        from rich.console import Console  # noqa: PLC0415  (costs 50 ms; a script never sees it)
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        total = None if options["file"] == "-" else Path(options["file"]).stat().st_size
        columns = (
            TextColumn("{task.fields[resource]}"),
            BarColumn(),
            TextColumn("{task.fields[rows]:>11,} rows  {task.fields[rate]:>8,}/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task("", total=total, resource=options["resource"], rows=0, rate=0)

            def show(report: LoadReport) -> None:
                done = _bytes_read(stream) if total else 0
                progress.update(
                    task, completed=done, rows=report.read, rate=round(report.rows_per_second)
                )

            yield show


def _bytes_read(stream: IO[bytes]) -> int:
    """How far into the file on disk: through gzip, the compressed bytes."""
    return os.lseek(stream.fileno(), 0, os.SEEK_CUR)


def _sentence(report: LoadReport) -> str:
    counts = report.counts
    parts = [
        f"{report.read:,} read",
        f"{counts.inserted:,} inserted",
        f"{counts.updated:,} updated",
        f"{counts.unchanged:,} unchanged",
    ]
    if counts.deleted:
        parts.append(f"{counts.deleted:,} in the trash and left there")
    if counts.duplicates:
        parts.append(f"{counts.duplicates:,} duplicates")
    rate = f"{report.seconds:.1f} s, {report.rows_per_second:,.0f} rows/s"
    dry = " (dry run: nothing is stored)" if report.dry_run else ""
    return f"{report.resource}: {', '.join(parts)} in {rate}{dry}"


def _explained(stopped: LoadStopped) -> str:
    report = stopped.report
    committed = (
        f"Lines up to {report.last_line:,} are committed."
        if report.batches and not report.dry_run
        else "Nothing is stored."
    )
    advice = {
        BadLine: "Mend the line and run the same command again: what is stored stays unchanged.",
        Unreadable: "Mend the file and run the same command again.",
        Unprepared: "Mend that and run the same command again, or with --embed later.",
        Interrupted: "Run the same command again: what is stored stays unchanged.",
        Refused: "The batch passed validation and the database refused it: please report this.",
    }[type(stopped)]
    return f"{stopped}\n{committed} {advice}"
