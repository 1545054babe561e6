"""`manage.py sweep`: expired memories to the trash, old trash away."""

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
        "Moves memories that have expired to the trash, and does what each organization's "
        "settings.retention asks for: old and unfound memories to the trash, old trash away for "
        "good. Safe to run at any time, again, and twice at once; run it every day."
    )
    requires_system_checks: list[str] = []  # starts at once

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--organization", metavar="SLUG", help="of this one only")
        parser.add_argument("--dry-run", action="store_true", help="count what would go")
        parser.add_argument("--json", action="store_true", help="print the counts as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        slug, is_dry_run = options["organization"], options["dry_run"]
        swept: list[Swept] = []
        wrong: list[str] = []
        with command_errors(RESUME_HINT):
            found = [organization_by_slug(slug)] if slug else Organization.objects.live()
            for organization in found:
                try:
                    actor = command_actor("sweep")
                    swept.append(
                        sweep(organization=organization, actor=actor, is_dry_run=is_dry_run)
                    )
                except Invalid as error:  # of one; the others are swept
                    wrong.append(f"{organization.slug}: {error}")
        if options["json"]:
            counts = [one.as_dict() for one in swept]
            self.stdout.write(json.dumps({"organizations": counts, "dry_run": is_dry_run}))
        else:
            said = [_sentence(one) for one in swept if one.total]
            dry = " (dry run: nothing has changed)" if is_dry_run else ""
            self.stdout.write("\n".join(said or ["Nothing to sweep."]) + dry)
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
    said = [f"{number:,} {name}" for name, number in parts.items() if number]
    if purged:
        said.append(f"purged {purged}")
    return f"{swept.organization}: {', '.join(said)}"
