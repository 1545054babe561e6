"""`manage.py reindex`: search documents in the language that the organization has set."""

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from accounts.access import organization_by_slug
from accounts.management.ending import GOES_ON, told
from accounts.organization_settings import language_of
from memories.management.progress import progress
from memories.services.reembedding import rewrite_language


class Command(BaseCommand):
    help = (
        "Makes the search documents of an organization's memories anew in the language of its "
        "settings: run it after that has changed; until then older memories are found by the words "
        "of the language before. Killed half way, the same command goes on."
    )
    requires_system_checks: list[str] = []  # starts at once

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--organization", required=True, metavar="SLUG")
        parser.add_argument("--no-progress", action="store_true", help="say nothing on the way")

    def handle(self, *args: Any, **options: Any) -> None:
        done = 0
        with told(GOES_ON):
            organization = organization_by_slug(options["organization"])
            with progress(self.stderr, total=None, is_silent=options["no_progress"]) as tell:

                def on_batch(rows: int) -> None:
                    nonlocal done
                    done += rows
                    tell(done, f"{done:,} rewritten")

                rewrite_language(organization, on_batch=on_batch)
        self.stdout.write(f"{done:,} search documents made anew in {language_of(organization)}.")
