"""`manage.py reembed`: replaces the vectors of other encoders."""

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
        "Re-embeds memories whose vector is of another encoder than the configured one, or that "
        "another one could not read: run it after AGENTMEM_ENCODER has changed. Memories can be "
        "searched meanwhile: the old vector stays until the new one replaces it. If it is killed, "
        "the same command continues."
    )
    requires_system_checks: list[str] = []  # starts at once

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--organization", metavar="SLUG", help="only this organization")
        parser.add_argument(
            "--encoder", default="", metavar="NAME", help="instead of that of AGENTMEM_ENCODER"
        )
        instead = parser.add_mutually_exclusive_group()
        instead.add_argument(
            "--failed",
            action="store_true",
            help="instead, make failed memories pending again, for `embed_worker`",
        )
        instead.add_argument(
            "--unreadable",
            action="store_true",
            help="instead, remove the vectors of memories that the encoder cannot read: all of "
            "these are alike",
        )
        parser.add_argument("--no-progress", action="store_true", help="show no progress")

    def handle(self, *args: Any, **options: Any) -> None:
        slug = options["organization"]
        work = self._reembed
        if options["failed"]:
            work = self._requeue
        elif options["unreadable"]:
            work = self._clear_unreadable
        with command_errors(RESUME_HINT):
            work(
                [organization_by_slug(slug)] if slug else list(Organization.objects.live()), options
            )

    def _reembed(self, organizations: list[Organization], options: dict[str, Any]) -> None:
        encoder = options["encoder"]
        target = get_encoder(encoder).name
        total = sum(count_to_reembed(o, encoder=encoder) for o in organizations)
        done = unreadable = refused = 0
        with progress(self.stderr, total=total, is_silent=options["no_progress"]) as show:

            def on_batch(rows: int) -> None:
                nonlocal done
                done += rows
                show(done, f"{done:,} of {total:,} re-embedded")

            for organization in organizations:
                result = reembed(organization, encoder=encoder, on_batch=on_batch)
                unreadable += result.unreadable
                refused += result.refused
        self.stdout.write(f"{done - unreadable:,} re-embedded by {target}.")
        if unreadable:
            self.stdout.write(f"{unreadable:,} have no vector: {target} cannot read them.")
        if refused:
            raise CommandError(
                f"{target} refused {refused:,} texts: these memories keep their old vectors."
            )

    def _clear_unreadable(self, organizations: list[Organization], options: dict[str, Any]) -> None:
        encoder = options["encoder"]
        target = get_encoder(encoder).name
        checked = cleared = 0
        with progress(self.stderr, total=None, is_silent=options["no_progress"]) as show:

            def on_batch(rows: int) -> None:
                nonlocal checked
                checked += rows
                show(checked, f"{checked:,} checked")

            for organization in organizations:
                cleared += clear_unreadable_vectors(
                    organization, encoder=encoder, on_batch=on_batch
                )
        self.stdout.write(
            f"{cleared:,} of {checked:,} lost their vector: {target} cannot read them."
        )

    def _requeue(self, organizations: list[Organization], options: dict[str, Any]) -> None:
        requeued = sum(map(requeue_failed, organizations))
        self.stdout.write(f"{requeued:,} are pending again.")
