"""`manage.py sweep`: moves expired memories to the trash, and empties the trash of old rows."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from accounts.access import organization_by_slug
from accounts.actors import command_actor
from accounts.errors import Invalid
from accounts.management.ending import BAD_DATA, RESUME_HINT, command_errors
from accounts.models import Organization
from agentmem_site.services.sweep import Swept, sweep


class Command(BaseCommand):
    help = (
        "Moves expired memories to the trash. Then applies each organization's "
        "settings.retention: old and unfound memories go to the trash, old trash is deleted for "
        "good. Run it every day. It is safe to run it again, or twice at once."
    )
    requires_system_checks: list[str] = []  # starts at once

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--organization", metavar="SLUG", help="only this one")
        parser.add_argument("--dry-run", action="store_true", help="count what would be removed")
        parser.add_argument("--json", action="store_true", help="print the counts as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        slug, is_dry_run = options["organization"], options["dry_run"]
        swept: list[Swept] = []
        wrong: list[str] = []
        with command_errors(RESUME_HINT):
            chosen = [organization_by_slug(slug)] if slug else Organization.objects.live()
            for organization in chosen:
                try:
                    actor = command_actor("sweep")
                    swept.append(
                        sweep(organization=organization, actor=actor, is_dry_run=is_dry_run)
                    )
                except Invalid as error:  # the others are swept
                    wrong.append(f"{organization.slug}: {error}")
        if options["json"]:
            counts = [one.as_dict() for one in swept]
            self.stdout.write(json.dumps({"organizations": counts, "dry_run": is_dry_run}))
        else:
            sentences = [_sentence(one) for one in swept if one.total]
            dry = " (dry run: nothing has changed)" if is_dry_run else ""
            self.stdout.write("\n".join(sentences or ["Nothing to sweep."]) + dry)
        if wrong:
            raise CommandError("\n".join(wrong), returncode=BAD_DATA)


def _sentence(swept: Swept) -> str:
    purged = ", ".join(f"{number:,} {name}" for name, number in swept.purged.items())
    parts = {
        "expired": swept.expired,
        "over the age": swept.aged,
        "unfound": swept.unfound,
        "cached vectors": swept.cached_vectors,
        "abandoned loads": swept.abandoned_loads,
    }
    counts = [f"{number:,} {name}" for name, number in parts.items() if number]
    if purged:
        counts.append(f"purged {purged}")
    return f"{swept.organization}: {', '.join(counts)}"
