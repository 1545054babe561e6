"""`manage.py reembed`: memories whose vector is another encoder's get one of this encoder's."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from accounts.access import organization_by_slug
from accounts.management.ending import RESUME_HINT, command_errors
from accounts.models import Organization
from memories.embeddings import get_encoder
from memories.management.progress import progress
from memories.services.reembedding import (
    clear_unreadable_vectors,
    count_to_reembed,
    reembed,
    requeue_failed,
)


class Command(BaseCommand):
    help = (
        "Embeds anew, while they are being searched, the memories whose vector is of another "
        "encoder than the one that is set, or that another could not read: run it after "
        "AGENTMEM_ENCODER has changed. The old vector stays until the new one takes its place. "
        "Killed half way, the same command goes on."
    )
    requires_system_checks: list[str] = []  # starts at once

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--organization", metavar="SLUG", help="of this one only")
        parser.add_argument(
            "--encoder", default="", metavar="NAME", help="another than AGENTMEM_ENCODER says"
        )
        instead = parser.add_mutually_exclusive_group()
        instead.add_argument(
            "--failed",
            action="store_true",
            help="instead, leave the memories that could not be embedded to `embed_worker` again",
        )
        instead.add_argument(
            "--unreadable",
            action="store_true",
            help="instead, take the vector from memories of which the encoder knows nearly "
            "nothing: by it they are all alike",
        )
        parser.add_argument("--no-progress", action="store_true", help="say nothing on the way")

    def handle(self, *args: Any, **options: Any) -> None:
        slug = options["organization"]
        work = self._reembed
        if options["failed"]:
            work = self._requeue
        elif options["unreadable"]:
            work = self._mend
        with command_errors(RESUME_HINT):
            work(
                [organization_by_slug(slug)] if slug else list(Organization.objects.live()), options
            )

    def _reembed(self, organizations: list[Organization], options: dict[str, Any]) -> None:
        encoder = options["encoder"]
        target = get_encoder(encoder).name
        total = sum(count_to_reembed(o, encoder=encoder) for o in organizations)
        done = unreadable = refused = 0
        with progress(self.stderr, total=total, is_silent=options["no_progress"]) as tell:

            def on_batch(rows: int) -> None:
                nonlocal done
                done += rows
                tell(done, f"{done:,} of {total:,} embedded anew")

            for organization in organizations:
                result = reembed(organization, encoder=encoder, on_batch=on_batch)
                unreadable += result.unreadable
                refused += result.refused
        self.stdout.write(f"{done - unreadable:,} embedded anew by {target}.")
        if unreadable:
            self.stdout.write(f"{unreadable:,} have no vector: {target} cannot read them.")
        if refused:
            raise CommandError(
                f"{target} refused {refused:,} texts: these memories keep the vectors they have."
            )

    def _mend(self, organizations: list[Organization], options: dict[str, Any]) -> None:
        encoder = options["encoder"]
        target = get_encoder(encoder).name
        looked_at = mended = 0
        with progress(self.stderr, total=None, is_silent=options["no_progress"]) as tell:

            def on_batch(rows: int) -> None:
                nonlocal looked_at
                looked_at += rows
                tell(looked_at, f"{looked_at:,} looked at")

            for organization in organizations:
                mended += clear_unreadable_vectors(organization, encoder=encoder, on_batch=on_batch)
        self.stdout.write(
            f"{mended:,} of {looked_at:,} lost their vector: {target} cannot read them."
        )

    def _requeue(self, organizations: list[Organization], options: dict[str, Any]) -> None:
        requeued = sum(map(requeue_failed, organizations))
        self.stdout.write(f"{requeued:,} are pending again.")
