"""`manage.py bulk_upsert`: loads a file into the database."""

import json
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error as DatabaseError
from django.db import OperationalError

from accounts.access import PLATFORM, member_actor, member_by_email, organization_by_slug
from accounts.actors import Actor, command_actor
from accounts.errors import NotFound, ServiceError
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
from accounts.models import Organization
from accounts.roles import ALL_PERMISSIONS
from agentmem_site.bulk.faults import Verdict, verdict
from agentmem_site.bulk.readers import Source, UnreadableFile, open_source
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
from agentmem_site.db import refusals
from agentmem_site.management.load_options import (
    EMBED,
    EPILOG,
    LARGE_BYTES,
    Manual,
    add_load_options,
    chosen_options,
    chosen_reading,
)
from agentmem_site.management.load_progress import counts_text, load_progress
from agentmem_site.services.loads import EMBED_FIRST, LINKS, RESOURCES, run_load
from memories.bulk import MEMORIES
from memories.management.progress import ShowProgress, progress
from memories.services.vector_index import first_load

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
    BadLine: "Correct the line and run the same command again (what is stored stays unchanged), "
    "or reject bad lines and continue: --on-error skip --rejects FILE.",
    ChangedFile: "Run the same command with the unchanged file, or with --no-resume: it starts "
    "at the first line, and what is stored stays unchanged.",
    Unreadable: "Correct the file and run the same command again.",
    Unprepared: "Correct that and run the same command again, or with --embed later.",
    CannotWriteRejects: "Make room for the rejected lines and run the same command again.",
    Refused: "The database refused what had passed validation: look into its log.",
    Interrupted: "The same command resumes from there.",
    NotPermitted: "Grant that to the application's role and run the same command again.",
}
_SHOWN_REJECTS = 20  # on the terminal, where there is no --rejects


class _Terminated(KeyboardInterrupt):
    """SIGTERM."""


@contextmanager
def _denials_reported() -> Iterator[None]:
    """Reports denied privileges outside the load, which reports its own."""
    try:
        yield
    except DatabaseError as error:
        if verdict(error) is not Verdict.NOT_PERMITTED:
            raise
        advice = _ADVICE[NotPermitted]
        raise CommandError(f"{str(error).strip()}\n{advice}", returncode=PERMISSION) from error


class Command(BaseCommand):
    help = (
        "Loads a file: new rows are inserted, rows that differ are updated, the others stay\n"
        "untouched, their timestamps too."
    )
    requires_system_checks: list[str] = []  # starts at once

    def create_parser(self, *args: Any, **kwargs: Any) -> CommandParser:
        return super().create_parser(*args, formatter_class=Manual, epilog=EPILOG, **kwargs)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "resource",
            choices=[*RESOURCES, *LINKS],
            metavar="RESOURCE",
            help=f"{', '.join(RESOURCES)}; from an export also {', '.join(LINKS)}",
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
            "--actor", metavar="EMAIL", help="the member to record in the audit columns"
        )
        add_load_options(parser)

    @_denials_reported()
    def handle(self, *args: Any, **options: Any) -> None:
        load_options = chosen_options(options)
        read = chosen_reading(options)
        try:
            organization = organization_by_slug(_writable(options["organization"]))
            actor = _actor(options["actor"] and _writable(options["actor"]), organization)
        except ServiceError as error:
            raise CommandError(str(error), returncode=PERMISSION) from error
        except OperationalError as error:
            raise CommandError(refusals.outage_message(error), returncode=TEMPORARY) from error
        try:
            with ExitStack() as stack:
                stack.enter_context(_terminable())
                source = stack.enter_context(open_source(options["file"], read))
                is_index_built_after = stack.enter_context(self._index_built_after(source, options))
                show = stack.enter_context(
                    load_progress(self.stderr, source, is_silent=options["no_progress"])
                )
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
                    embed_first=EMBED.get(options["embed"], EMBED_FIRST),
                    notices=source.notices,
                    job=_job(options),
                    is_new=not options["resume"],
                    is_index_built_after=is_index_built_after,
                )
        except UnreadableFile as error:
            raise CommandError(str(error), returncode=USAGE) from error
        except KeyboardInterrupt as stop:
            raise CommandError(
                f"Stopped; the completed batches are committed. {_how_to_resume(options)}",
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
                f"Resuming after line {report.last_line:,}; --no-resume would start over.",
                self.style.NOTICE,
            )

    @contextmanager
    def _index_built_after(self, source: Source, options: dict[str, Any]) -> Iterator[bool]:
        """Yields whether the index of vectors is built after the load; if so, builds it at the
        end."""
        if options["resource"] != MEMORIES.resource or options["dry_run"]:
            yield False
            return
        is_large = (source.size or 0) >= LARGE_BYTES
        with ExitStack() as late:
            bars: list[ShowProgress] = []  # opened when the bar of the load is closed

            def tell(done: int, total: int, text: str) -> None:
                if not bars:
                    bar = progress(self.stderr, total=None, is_silent=options["no_progress"])
                    bars.append(late.enter_context(bar))
                bars[0](done, text)

            with first_load(
                is_large={"auto": is_large, "after": True, "worker": False}[options["index"]],
                on_progress=tell,
                on_notice=lambda notice: self.stderr.write(notice, self.style.NOTICE),
            ) as is_built_after:
                yield is_built_after

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
            if not report.last_line:  # one worker has committed none yet
                committed = f"{report.read:,} lines are committed, with gaps between them."
        advice = _ADVICE[type(stopped)]
        if isinstance(stopped, Interrupted):
            advice = _how_to_resume(options)
        raise CommandError(
            f"{stopped}\n{committed} {advice}", returncode=_EXIT_CODES[type(stopped)]
        ) from stopped

    def _print(self, report: LoadReport, options: dict[str, Any]) -> None:
        if options["json"]:
            self.stdout.write(json.dumps({**report.as_dict(), "notices": list(report.notices)}))
            return
        for notice in report.notices:
            self.stderr.write(notice, self.style.NOTICE)
        rate = f"{report.seconds:.1f} s, {report.rows_per_second:,.0f} rows/s"
        dry = " (dry run: nothing is stored)" if report.dry_run else ""
        self.stdout.write(
            f"{report.resource}: {report.read:,} read, {counts_text(report)} in {rate}{dry}"
        )

    def _tell_rejects(self, report: LoadReport, options: dict[str, Any]) -> NoReturn:
        rejected = f"{report.rejected:,} lines are rejected"
        if options["rejects"]:
            message = f"{rejected}; {options['rejects']} names them."
        else:
            first = [str(error) for error in report.rejects[:_SHOWN_REJECTS]]
            more = ["..."] if report.rejected > len(first) else []
            message = "\n".join([f"{rejected} (--rejects FILE keeps them all):", *first, *more])
        raise CommandError(message, returncode=SOME_REJECTED)


def _actor(email: str | None, organization: Organization) -> Actor:
    """The recorded author, with all permissions: the caller operates the machine."""
    if not email:
        return command_actor("bulk_upsert")
    try:
        member = member_by_email(email, slug=organization.slug)
    except NotFound:  # a platform superuser may be the author, too
        member = member_by_email(email, slug=PLATFORM)
    return replace(member_actor(member), permissions=frozenset(ALL_PERMISSIONS))


def _job(options: dict[str, Any]) -> str:
    if options["job"] is not None:
        return _writable(options["job"])
    if options["file"] == "-":
        return ""
    return _writable(str(Path(options["file"]).resolve()))


def _writable(name: str) -> str:
    """The name, with bytes that are not UTF-8 escaped."""
    return name.encode(errors="backslashreplace").decode()


def _how_to_resume(options: dict[str, Any]) -> str:
    if not _job(options):
        return (
            "Run the same command again: what is stored stays unchanged. With --job NAME it would "
            "resume."
        )
    command = f":\n{shlex.join(sys.argv)}" if sys.argv[1:2] == ["bulk_upsert"] else "."
    return f"The same command resumes{command}"


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
