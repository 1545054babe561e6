"""`manage.py embed_worker`: gives pending memories their vectors."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import OperationalError

from accounts.access import organization_by_slug
from accounts.management.ending import TEMPORARY, USAGE, command_errors
from accounts.models import Organization
from agentmem_site.db import refusals
from memories.embeddings import EncoderError
from memories.management.progress import progress
from memories.services.embed_worker import EmbedWorker, Stopped, Work
from memories.services.pending import count_pending, organizations_with_pending


class Command(BaseCommand):
    help = (
        "Embeds pending memories, the oldest of each organization first, and waits for more. Any "
        "number of workers may run at once; one that is killed loses nothing: what it had claimed "
        "is pending again when its lease has run out."
    )
    requires_system_checks: list[str] = []  # starts at once

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--once", action="store_true", help="embed what is due, then end, with the counts"
        )
        parser.add_argument("--organization", metavar="SLUG", help="of this one only")
        parser.add_argument(
            "--batch-size",
            type=int,
            default=256,
            metavar="N",
            help="memories encoded at once (default 256)",
        )
        parser.add_argument(
            "--lease",
            type=float,
            default=60,
            metavar="S",
            help="seconds after which others take what this worker has claimed (default 60)",
        )
        parser.add_argument("--no-progress", action="store_true", help="say nothing on the way")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["batch_size"] < 1:
            raise CommandError("--batch-size is at least 1", returncode=USAGE)
        if options["lease"] <= 0:
            raise CommandError("--lease is more than 0", returncode=USAGE)
        slug = options["organization"]
        with command_errors("Nothing has begun."):
            organization = organization_by_slug(slug) if slug else None
            total = _count(organization) if options["once"] else None
        is_silent = options["no_progress"]
        with progress(self.stderr, total=total, is_silent=is_silent) as tell:
            worker = EmbedWorker(
                batch_size=options["batch_size"],
                lease_s=options["lease"],
                organization=organization,
                on_batch=lambda work: tell(work.embedded + work.unreadable, _sentence(work)),
            )
            try:
                with stopped_by_signals(worker):
                    worker.drain() if options["once"] else worker.run()
            except Stopped:
                pass
            except EncoderError as error:
                raise CommandError(str(error), returncode=TEMPORARY) from error
            except OperationalError as error:
                raise CommandError(refusals.outage_message(error), returncode=TEMPORARY) from error
            left = _count(organization) if options["once"] else 0
        self.stdout.write(_sentence(worker.work) + _left(left))


@contextmanager
def stopped_by_signals(worker: EmbedWorker) -> Iterator[None]:
    """SIGTERM and Ctrl-C ask the worker to stop; one that has been asked ends as soon as it can."""
    before = {
        number: signal.signal(number, lambda *_: worker.stop())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _count(organization: Organization | None) -> int:
    found = [organization] if organization else organizations_with_pending()
    return sum(map(count_pending, found))


def _left(pending: int) -> str:
    """What was not due: a worker that was killed holds its claim for as long as the lease."""
    return f"; {pending:,} pending: another worker's, or to be tried later" if pending else ""


def _sentence(work: Work) -> str:
    unreadable = f", {work.unreadable:,} unreadable" if work.unreadable else ""
    failures = f", {work.failures:,} failures" if work.failures else ""
    indexed = f", {work.indexed:,} indexed" if work.indexed else ""
    return f"{work.embedded:,} embedded{unreadable}{failures}{indexed}, {work.per_second:,.0f}/s"
