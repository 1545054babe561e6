"""`manage.py export_organization`: writes an organization into a directory of JSON lines."""

import json
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from accounts.access import organization_by_slug
from accounts.actors import command_actor
from accounts.management.ending import CANNOT_WRITE, USAGE, command_errors
from agentmem_site.services.exports import NotExported, write_export


class Command(BaseCommand):
    help = (
        "Writes an organization into DIR: a file of JSON lines per resource and a manifest.json, "
        "all as of one moment. `import_organization` restores it with its ids and timestamps. "
        "Members, keys, the audit log and earlier versions of memories are not exported."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("slug", metavar="SLUG")
        parser.add_argument(
            "directory", type=Path, metavar="DIR", help="empty, or does not exist yet"
        )
        parser.add_argument(
            "--vectors", action="store_true", help="include the memories' vectors (5 KB each)"
        )
        parser.add_argument(
            "--deleted", action="store_true", help="include rows in the trash, as deleted"
        )
        parser.add_argument("--json", action="store_true", help="print the manifest as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        def show(resource: str, rows: int) -> None:
            if not options["json"]:
                self.stdout.write(f"{resource}: {rows:,}")

        try:
            with command_errors("Nothing is exported."):
                manifest = write_export(
                    options["directory"],
                    organization=organization_by_slug(options["slug"]),
                    actor=command_actor("export_organization"),
                    with_vectors=options["vectors"],
                    with_deleted=options["deleted"],
                    on_file=show,
                )
        except NotExported as error:
            raise CommandError(str(error), returncode=USAGE) from error
        except OSError as error:
            raise CommandError(f"Nothing is exported: {error}", returncode=CANNOT_WRITE) from error
        if options["json"]:
            self.stdout.write(json.dumps(manifest))
