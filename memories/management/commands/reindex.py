"""`manage.py reindex`: search documents in the language that the organization has set."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import OperationalError

from accounts.access import organization_by_slug
from accounts.errors import ServiceError
from accounts.organization_settings import language_of
from memories.management.progress import progress
from memories.services.reembedding import rewrite_language

TEMPORARY, PERMISSION, INTERRUPTED = 75, 77, 130


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
        try:
            organization = organization_by_slug(options["organization"])
            with progress(self.stderr, total=None, is_silent=options["no_progress"]) as tell:

                def on_batch(rows: int) -> None:
                    nonlocal done
                    done += rows
                    tell(done, f"{done:,} rewritten")

                rewrite_language(organization, on_batch=on_batch)
        except ServiceError as error:
            raise CommandError(str(error), returncode=PERMISSION) from error
        except KeyboardInterrupt as stop:
            raise CommandError(
                "Stopped. The same command goes on where this one stopped.", returncode=INTERRUPTED
            ) from stop
        except OperationalError as error:
            raise CommandError(
                f"No database: {error}\nThe same command goes on where this one stopped.",
                returncode=TEMPORARY,
            ) from error
        self.stdout.write(f"{done:,} search documents made anew in {language_of(organization)}.")
