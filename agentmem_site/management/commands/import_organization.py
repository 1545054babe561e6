"""`manage.py import_organization`: restores what `export_organization` wrote."""

from pathlib import Path
from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser

from accounts.access import organization_by_slug
from accounts.tenancy import tenant
from agentmem_site.services.exports import FILES, NotAnExport, read_manifest
from sessions.services.erasing import erased_and_back

USAGE = 2


class Command(BaseCommand):
    help = (
        "Restores an export into an organization, with ids and timestamps: `bulk_upsert "
        "--preserve-ids --preserve-timestamps` for each of its files, in the order of their "
        "references. After a failure the same command resumes: what is stored stays unchanged. "
        "Create the organization first, with `create_organization`."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("slug", metavar="SLUG")
        parser.add_argument("directory", type=Path, metavar="DIR")
        parser.add_argument("--actor", metavar="EMAIL", help="the member to record as the author")
        parser.add_argument("--json", action="store_true", help="print one report per line as JSON")
        parser.add_argument("--no-progress", action="store_true", help="no progress bar")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            read_manifest(options["directory"])
        except (NotAnExport, OSError) as error:
            raise CommandError(str(error), returncode=USAGE) from error
        for resource, name in FILES.items():
            call_command(
                "bulk_upsert",
                resource,
                str(options["directory"] / name),
                organization=options["slug"],
                preserve_ids=True,
                preserve_timestamps=True,
                actor=options["actor"],
                json=options["json"],
                no_progress=options["no_progress"],
                stdout=self.stdout,
                stderr=self.stderr,
            )
        organization = organization_by_slug(options["slug"])
        with tenant(organization):
            back = erased_and_back(organization)
        if back:
            self.stderr.write(
                "This import restored users who had been erased; `erase_user UUID "
                f"--organization {organization.slug} --yes` erases them again: "
                + ", ".join(map(str, back))
            )
