"""`manage.py bulk_upsert`: a file into the database."""

import argparse
import hashlib
import json
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from django.core.management.base import (
    BaseCommand,
    CommandError,
    CommandParser,
    DjangoHelpFormatter,
)
from django.db import OperationalError

from accounts.access import member_actor, member_by_email, organization_by_slug
from accounts.actors import Actor, command_actor
from accounts.errors import ServiceError
from accounts.management.ending import (
    BAD_DATA,
    CANNOT_WRITE,
    INTEGRITY,
    INTERRUPTED,
    PERMISSION,
    SOME_REJECTED,
    TEMPORARY,
    TERMINATED,
    USAGE,
)
from accounts.roles import ALL_PERMISSIONS
from agentmem_site.bulk.faults import RETRIES
from agentmem_site.bulk.loader import MAX_WORKERS, LoadOptions
from agentmem_site.bulk.readers import (
    FORMATS,
    MAX_LINE_BYTES,
    Source,
    UnreadableFile,
    open_source,
)
from agentmem_site.bulk.rejects import RejectFile, RejectsUnwritable
from agentmem_site.bulk.report import (
    BadLine,
    CannotWriteRejects,
    ChangedFile,
    Interrupted,
    LoadReport,
    LoadStopped,
    NotPermitted,
    Refused,
    Unprepared,
    Unreadable,
)
from agentmem_site.bulk.tables import csv_kinds
from agentmem_site.loads import EMBED_FIRST, LINKS, RESOURCES, run_load
from agentmem_site.management.load_progress import counts_in_words, progress
from memories.bulk import MEMORIES
from memories.management.progress import Tell
from memories.management.progress import progress as show_progress
from memories.services.vector_index import first_load

MAX_TIMEOUT_S = 2_147_483  # what PostgreSQL counts in milliseconds
MAX_THROTTLE_MS = 3_600_000
MAX_LINE_LIMIT = 2**30  # what PostgreSQL keeps in one value
_EXIT_CODES = {
    BadLine: BAD_DATA,
    ChangedFile: BAD_DATA,
    Unreadable: USAGE,
    Unprepared: USAGE,
    CannotWriteRejects: CANNOT_WRITE,
    Refused: INTEGRITY,
    Interrupted: TEMPORARY,
    NotPermitted: PERMISSION,
}
_ADVICE = {
    BadLine: "Mend the line and run the same command again (what is stored stays unchanged), or "
    "reject bad lines and go on: --on-error skip --rejects FILE.",
    ChangedFile: "Run the same command with the file as it was, or with --no-resume: it begins "
    "with the first line, and what is stored stays unchanged.",
    Unreadable: "Mend the file and run the same command again.",
    Unprepared: "Mend that and run the same command again, or with --embed later.",
    CannotWriteRejects: "Make room for the rejected lines and run the same command again.",
    Refused: "The database refused what had passed validation: look into its log.",
    Interrupted: "The same command goes on from there.",
    NotPermitted: "Let the application's role do that and run the same command again.",
}
_LEAST = {
    "batch_size": 1,
    "min_batch_size": 1,
    "workers": 1,
    "max_line": 1,
    "max_bytes": 1,
    "max_rejects": 0,
    "max_retries": 0,
}
_EMBED = {"now": None, "later": 0}
LARGE_BYTES = 64 * 1024 * 1024
_STRAY = 20  # rejected lines told on the terminal, without a file for them

_EPILOG = """\
files:
  JSON lines are the rows themselves; `manage.py make_sample` writes some. CSV has the
  fields' names in its first line, cells of JSON columns hold JSON. Parquet needs
  `pip install -r requirements-parquet.txt`. gzip and zstd are unpacked on the fly.
  A line is the whole row: an absent field takes its default. What the server keeps
  (access counts, versions) stays, so do runs that a session's line leaves out.

what is committed stays:
  Each batch is a transaction, and how far the file is done is part of it. After a crash,
  a kill, a lost connection the same command goes on where it stopped. Run again after
  its end it finds every row unchanged, and no timestamp moves.

exit codes:
  0    all rows are stored
  2    the command or the file cannot be read
  3    done, but lines were rejected (--on-error skip)
  65   a bad line; or the file has changed since the load was interrupted
  70   the database found itself damaged
  73   rejected lines cannot be written
  75   for the moment: the database is away, full or too slow; the same command goes on
  77   no such organization or member, or the database denies it
  130  interrupted (143: terminated); the same command goes on

examples:
  manage.py bulk_upsert sessions sessions.jsonl.gz --organization acme
  manage.py bulk_upsert memories m.parquet --organization acme --workers 2 --embed later
  zcat big.gz | manage.py bulk_upsert users - --organization acme --job nightly \\
      --on-error skip --rejects rejects.jsonl
"""


class _Manual(argparse.RawDescriptionHelpFormatter, DjangoHelpFormatter):
    """Django's, and what stands below is printed as it is written."""


class _Terminated(KeyboardInterrupt):
    """SIGTERM."""


class Command(BaseCommand):
    help = (
        "Loads a file: rows that are new are inserted, rows that really differ are updated,\n"
        "the others stay untouched, their timestamps too."
    )
    requires_system_checks: list[str] = []  # starts at once

    def create_parser(self, *args: Any, **kwargs: Any) -> CommandParser:
        return super().create_parser(*args, formatter_class=_Manual, epilog=_EPILOG, **kwargs)

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
            help="the file; - (the default) reads standard input",
        )
        parser.add_argument("--organization", required=True, metavar="SLUG")
        parser.add_argument(
            "--actor", metavar="EMAIL", help="the member to stamp into the audit columns"
        )
        self._add_reading(parser.add_argument_group("the file"))
        self._add_meaning(parser.add_argument_group("what a line means"))
        self._add_bad_lines(parser.add_argument_group("bad lines"))
        self._add_going(parser.add_argument_group("how it goes"))
        self._add_reporting(parser.add_argument_group("what it says"))

    def _add_reading(self, group: Any) -> None:
        group.add_argument(
            "--format", choices=FORMATS, default="auto", help="default: by the file's name"
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
            help="stop when a packed file turns out larger (default: only where it smells of a "
            "bomb: over 64 MiB, and over 200 times what it was)",
        )
        group.add_argument(
            "--ignore-unknown",
            action="store_true",
            help="leave out fields that nobody knows, instead of taking the line for a bad one",
        )

    def _add_meaning(self, group: Any) -> None:
        group.add_argument(
            "--preserve-timestamps",
            action="store_true",
            help="created_at and updated_at come from the file; without it new and changed rows "
            "get the time of the load",
        )
        group.add_argument(
            "--preserve-ids",
            action="store_true",
            help="restore an export: each line has its `id`, and what the server keeps of the row",
        )
        group.add_argument(
            "--restore",
            action="store_true",
            help="rows in the trash come back, with what went there with them; without it they "
            "stay there",
        )
        group.add_argument(
            "--strict-references",
            action="store_true",
            help="a line that names an unknown agent, user or session is a bad line; without it "
            "they are created",
        )
        group.add_argument(
            "--embed",
            choices=list(_EMBED),
            help="memories without a vector get it with the load, or later, from a worker "
            f"(default: the first {EMBED_FIRST:,} rows now, the rest later)",
        )

    def _add_bad_lines(self, group: Any) -> None:
        group.add_argument(
            "--on-error",
            choices=["stop", "skip"],
            default="stop",
            help="at a bad line stop, or reject it and go on (default stop)",
        )
        group.add_argument(
            "--rejects",
            type=Path,
            metavar="FILE",
            help="where rejected lines go, each as JSON: line, byte_offset, code, field, message",
        )
        group.add_argument(
            "--max-rejects",
            type=int,
            metavar="N",
            help="stop when more are rejected (default: never)",
        )

    def _add_going(self, group: Any) -> None:
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
            help="a batch that takes too long is halved, down to this (default 500)",
        )
        group.add_argument(
            "--workers",
            type=int,
            default=1,
            metavar="N",
            help="connections that load side by side; rows of one key stay in their order "
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
            help="how a batch is tried again after a passing failure: default (3 more tries from "
            "100 ms, x2), aggressive (5 from 50 ms, x1.5), conservative (2 from 200 ms, x3); "
            "pauses are drawn at random up to that",
        )
        group.add_argument("--max-retries", type=int, metavar="N", help="another number of tries")
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
            help="the name under which an interrupted load goes on (default: resource and path; "
            "standard input has none)",
        )
        group.add_argument(
            "--resume",
            action=argparse.BooleanOptionalAction,
            default=True,
            help="go on where the last run of the job was interrupted; --no-resume begins anew",
        )
        group.add_argument(
            "--index",
            choices=["auto", "after", "worker"],
            default="auto",
            help="the vectors of a first load of memories: into an index that is built after it, "
            "or moved there by a worker (auto: after, where there are none yet and the file has "
            f"{LARGE_BYTES // 2**20} MiB)",
        )
        group.add_argument(
            "--dry-run", action="store_true", help="do everything, then roll it back"
        )

    def _add_reporting(self, group: Any) -> None:
        group.add_argument("--json", action="store_true", help="print the report as JSON")
        group.add_argument(
            "--no-progress", action="store_true", help="no bar, no lines while it goes"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        load_options = _load_options(options)
        try:
            organization = organization_by_slug(_writable(options["organization"]))
            actor = _actor(options["actor"] and _writable(options["actor"]))
        except ServiceError as error:
            raise CommandError(str(error), returncode=PERMISSION) from error
        except OperationalError as error:
            raise CommandError(f"No database: {error}", returncode=TEMPORARY) from error
        try:
            with ExitStack() as stack:
                stack.enter_context(_terminable())
                source = stack.enter_context(
                    open_source(
                        options["file"],
                        format=options["format"],
                        fields=csv_kinds({**RESOURCES, **LINKS}[options["resource"]].line),
                        ignore_unknown=options["ignore_unknown"],
                        max_line_bytes=options["max_line"],
                        max_bytes=options["max_bytes"],
                    )
                )
                is_index_apart = stack.enter_context(self._index_apart(source, options))
                show: Callable[[LoadReport], None] = lambda report: None  # noqa: E731
                if not options["no_progress"]:
                    show = stack.enter_context(progress(options["resource"], source))
                rejects = self._rejects(stack, options["rejects"], options["file"])
                report = run_load(
                    options["resource"],
                    source.lines(),
                    organization=organization,
                    actor=actor,
                    options=load_options,
                    on_begin=lambda report: self._begin(report, rejects),
                    on_batch=show,
                    on_reject=rejects.write if rejects else lambda errors: None,
                    embed_first=_EMBED.get(options["embed"], EMBED_FIRST),
                    job=_job(options),
                    is_new=not options["resume"],
                    is_index_apart=is_index_apart,
                )
        except UnreadableFile as error:
            raise CommandError(str(error), returncode=USAGE) from error
        except KeyboardInterrupt as stop:
            raise CommandError(
                f"Stopped; the batches that were done are committed. {_goes_on(options)}",
                returncode=TERMINATED if isinstance(stop, _Terminated) else INTERRUPTED,
            ) from stop
        except LoadStopped as stopped:
            self._stop(stopped, options)
        self._print(report, options)
        if report.rejected:
            self._tell_rejects(report, options)

    def _begin(self, report: LoadReport, rejects: RejectFile | None) -> None:
        is_resumed = bool(report.read)
        if rejects:
            rejects.begin(is_resumed=is_resumed)
        if is_resumed:
            self.stderr.write(
                f"Goes on after line {report.last_line:,}; --no-resume would begin anew.",
                self.style.NOTICE,
            )

    @contextmanager
    def _index_apart(self, source: Source, options: dict[str, Any]) -> Iterator[bool]:
        """Whether the index of vectors is built after the load; then its end does so."""
        if options["resource"] != MEMORIES.resource or options["dry_run"]:
            yield False
            return
        is_large = (source.size or 0) >= LARGE_BYTES
        with ExitStack() as late:
            told: list[Tell] = []  # only one bar is live at a time: this comes after the load's

            def tell(done: int, total: int, words: str) -> None:
                if not told:
                    bar = show_progress(self.stderr, total=None, is_silent=options["no_progress"])
                    told.append(late.enter_context(bar))
                told[0](done, words)

            with first_load(
                is_large={"auto": is_large, "after": True, "worker": False}[options["index"]],
                on_progress=tell,
                on_notice=lambda words: self.stderr.write(words, self.style.NOTICE),
            ) as is_apart:
                yield is_apart

    def _rejects(self, stack: ExitStack, path: Path | None, file: str) -> RejectFile | None:
        if path is None:
            return None
        path = Path(path)
        if file != "-" and path.is_file() and path.samefile(file):
            raise CommandError(f"--rejects is the file to load, {file}", returncode=USAGE)
        try:
            return stack.enter_context(RejectFile(path))
        except RejectsUnwritable as error:
            raise CommandError(str(error), returncode=CANNOT_WRITE) from error

    def _stop(self, stopped: LoadStopped, options: dict[str, Any]) -> NoReturn:
        report = stopped.report
        if report.read or report.rejected:
            self._print(report, options)
        committed = "Nothing is stored."
        if report.read and not report.dry_run:
            committed = f"Lines up to {report.last_line:,} are committed."
            if not report.last_line:  # a worker has not come to any
                committed = f"{report.read:,} lines are committed, not yet all from the first on."
        advice = _ADVICE[type(stopped)]
        if isinstance(stopped, Interrupted):
            advice = _goes_on(options)
        raise CommandError(
            f"{stopped}\n{committed} {advice}", returncode=_EXIT_CODES[type(stopped)]
        ) from stopped

    def _print(self, report: LoadReport, options: dict[str, Any]) -> None:
        if options["json"]:
            self.stdout.write(json.dumps(report.as_dict()))
            return
        rate = f"{report.seconds:.1f} s, {report.rows_per_second:,.0f} rows/s"
        dry = " (dry run: nothing is stored)" if report.dry_run else ""
        self.stdout.write(
            f"{report.resource}: {report.read:,} read, {counts_in_words(report)} in {rate}{dry}"
        )

    def _tell_rejects(self, report: LoadReport, options: dict[str, Any]) -> NoReturn:
        rejected = f"{report.rejected:,} lines are rejected"
        if options["rejects"]:
            told = f"{rejected}; {options['rejects']} names them."
        else:
            first = [str(error) for error in report.rejects[:_STRAY]]
            more = ["..."] if report.rejected > len(first) else []
            told = "\n".join([f"{rejected} (--rejects FILE keeps them all):", *first, *more])
        raise CommandError(told, returncode=SOME_REJECTED)


def _load_options(options: dict[str, Any]) -> LoadOptions:
    """Raises: CommandError, of what does not go together."""
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
        dry_run=options["dry_run"],
    )


def _actor(email: str | None) -> Actor:
    """Whose name is stamped. The operator of the machine may do everything under it."""
    if not email:
        return command_actor("bulk_upsert")
    return replace(member_actor(member_by_email(email)), permissions=frozenset(ALL_PERMISSIONS))


def _job(options: dict[str, Any]) -> str:
    if options["job"] is not None:
        return _writable(options["job"])[:255]
    if options["file"] == "-":
        return ""
    name = _writable(f"{options['resource']} {Path(options['file']).resolve()}")
    return name if len(name) <= 255 else hashlib.sha256(name.encode()).hexdigest()


def _writable(name: str) -> str:
    """Of a name that is no UTF-8: what can be."""
    return name.encode(errors="backslashreplace").decode()


def _goes_on(options: dict[str, Any]) -> str:
    if not _job(options):
        return "The same command again: what is stored stays unchanged. With --job NAME it goes on."
    command = f":\n{shlex.join(sys.argv)}" if sys.argv[1:2] == ["bulk_upsert"] else "."
    return f"The same command goes on{command}"


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the load as Ctrl-C does: the batch is rolled back, the checkpoint is valid."""

    def stop(*_: Any) -> NoReturn:
        raise _Terminated

    try:
        usual = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread: a test's, another program's
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, usual)
