"""`manage.py reindex`: what memories are found by, made anew: their words, or their vectors."""

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from accounts.access import organization_by_slug
from accounts.management.ending import GOES_ON, told
from accounts.organization_settings import language_of
from memories.management.progress import progress
from memories.services.reembedding import rewrite_language
from memories.services.vector_index import repair_index


class Command(BaseCommand):
    help = (
        "With --organization: makes the search documents of its memories anew in the language of "
        "its settings. Run it after that has changed; until then older memories are found by the "
        "words of the language before. Killed half way, the same command goes on. "
        "With --vectors: builds the index of vectors of the whole database where a load that was "
        "killed has left it missing or invalid, and changes nothing where it stands. Memories are "
        "written and found meanwhile. It connects as the tables' owner (DATABASE_OWNER_URL)."
    )
    requires_system_checks: list[str] = []  # starts at once

    def add_arguments(self, parser: CommandParser) -> None:
        what = parser.add_mutually_exclusive_group(required=True)
        what.add_argument("--organization", metavar="SLUG", help="its search documents")
        what.add_argument("--vectors", action="store_true", help="the index of vectors")
        parser.add_argument("--no-progress", action="store_true", help="say nothing on the way")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["vectors"]:
            self._build_vectors(is_silent=options["no_progress"])
        else:
            self._rewrite_documents(options["organization"], is_silent=options["no_progress"])

    def _rewrite_documents(self, slug: str, *, is_silent: bool) -> None:
        done = 0
        with told(GOES_ON):
            organization = organization_by_slug(slug)
            with progress(self.stderr, total=None, is_silent=is_silent) as tell:

                def on_batch(rows: int) -> None:
                    nonlocal done
                    done += rows
                    tell(done, f"{done:,} rewritten")

                rewrite_language(organization, on_batch=on_batch)
        self.stdout.write(
            f"{done:,} search documents made anew in {language_of(organization.settings)}."
        )

    def _build_vectors(self, *, is_silent: bool) -> None:
        with (
            told("The same command begins again."),
            progress(self.stderr, total=100, is_silent=is_silent) as tell,
        ):

            def on_progress(done: int, total: int, words: str) -> None:
                tell(100 * done // total if total else 0, words)

            built = repair_index(on_progress=on_progress)
        if built:
            self.stdout.write(
                f"Index of vectors built over {built.rows:,} memories in {built.seconds:.0f} s."
            )
        else:
            self.stdout.write("The index of vectors stands: nothing to do.")
