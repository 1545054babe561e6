"""`manage.py embed_worker`: embeds pending memories."""

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
        "number of workers may run at once. If one is killed, nothing is lost: the memories that "
        "it had claimed are pending again when its lease expires."
    )
    requires_system_checks: list[str] = []  # starts at once

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--once", action="store_true", help="embed what is due, print the counts and exit"
        )
        parser.add_argument("--organization", metavar="SLUG", help="only this organization")
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
            help="seconds after which other workers may take what this one claimed (default 60)",
        )
        parser.add_argument("--no-progress", action="store_true", help="show no progress")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["batch_size"] < 1:
            raise CommandError("--batch-size must be at least 1", returncode=USAGE)
        if options["lease"] <= 0:
            raise CommandError("--lease must be more than 0", returncode=USAGE)
        slug = options["organization"]
        with command_errors("Nothing has begun."):
            organization = organization_by_slug(slug) if slug else None
            total = _count(organization) if options["once"] else None
        is_silent = options["no_progress"]
        with progress(self.stderr, total=total, is_silent=is_silent) as show:
            worker = EmbedWorker(
                batch_size=options["batch_size"],
                lease_s=options["lease"],
                organization=organization,
                on_batch=lambda work: show(work.embedded + work.unreadable, _summary(work)),
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
        self.stdout.write(_summary(worker.work) + _left(left))


@contextmanager
def stopped_by_signals(worker: EmbedWorker) -> Iterator[None]:
    """SIGTERM and Ctrl-C stop the worker as soon as nothing is left half done."""
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
    organizations = [organization] if organization else organizations_with_pending()
    return sum(map(count_pending, organizations))


def _left(pending: int) -> str:
    """Memories that were not due, such as those of a killed worker until its lease expires."""
    return f"; {pending:,} pending: another worker's, or to be tried later" if pending else ""


def _summary(work: Work) -> str:
    unreadable = f", {work.unreadable:,} unreadable" if work.unreadable else ""
    failures = f", {work.failures:,} failures" if work.failures else ""
    indexed = f", {work.indexed:,} indexed" if work.indexed else ""
    return f"{work.embedded:,} embedded{unreadable}{failures}{indexed}, {work.per_second:,.0f}/s"
