"""`manage.py reindex`: rebuilds the search documents of memories, or the index of vectors."""

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from accounts.access import organization_by_slug
from accounts.management.ending import RESUME_HINT, command_errors
from accounts.organization_settings import language_of
from memories.management.progress import progress
from memories.services.reembedding import rewrite_language
from memories.services.vector_index import repair_index


class Command(BaseCommand):
    help = (
        "With --organization: rebuilds the search documents of its memories in the language of "
        "its settings. Run it after that language has changed; until then older memories are "
        "searched in the previous language. If it is killed, the same command continues. "
        "With --vectors: builds the index of vectors of the whole database if a killed load left "
        "it missing or invalid; a valid index stays as it is. Memories can be written and searched "
        "meanwhile. It connects as the tables' owner (DATABASE_OWNER_URL)."
    )
    requires_system_checks: list[str] = []  # starts at once

    def add_arguments(self, parser: CommandParser) -> None:
        what = parser.add_mutually_exclusive_group(required=True)
        what.add_argument("--organization", metavar="SLUG", help="its search documents")
        what.add_argument("--vectors", action="store_true", help="the index of vectors")
        parser.add_argument("--no-progress", action="store_true", help="show no progress")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["vectors"]:
            self._build_vectors(is_silent=options["no_progress"])
        else:
            self._rewrite_documents(options["organization"], is_silent=options["no_progress"])

    def _rewrite_documents(self, slug: str, *, is_silent: bool) -> None:
        done = 0
        with command_errors(RESUME_HINT):
            organization = organization_by_slug(slug)
            with progress(self.stderr, total=None, is_silent=is_silent) as show:

                def on_batch(rows: int) -> None:
                    nonlocal done
                    done += rows
                    show(done, f"{done:,} rebuilt")

                rewrite_language(organization, on_batch=on_batch)
        self.stdout.write(
            f"{done:,} search documents rebuilt in {language_of(organization.settings)}."
        )

    def _build_vectors(self, *, is_silent: bool) -> None:
        with (
            command_errors("Run the same command again to start over."),
            progress(self.stderr, total=100, is_silent=is_silent) as show,
        ):

            def on_progress(done: int, total: int, message: str) -> None:
                show(100 * done // total if total else 0, message)

            built = repair_index(on_progress=on_progress)
        if built:
            self.stdout.write(
                f"Index of vectors built over {built.rows:,} memories in {built.seconds:.0f} s."
            )
        else:
            self.stdout.write("The index of vectors is valid: nothing to do.")
