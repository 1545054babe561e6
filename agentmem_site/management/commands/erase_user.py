"""`manage.py erase_user`: deletes a person and all their data for good."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from accounts.access import organization_by_slug
from accounts.actors import command_actor
from accounts.api.fields import find
from accounts.errors import NotFound
from accounts.management.ending import command_errors
from accounts.models import User
from accounts.tenancy import tenant
from sessions.services.erasing import count_person, erase_person


class Command(BaseCommand):
    help = (
        "Deletes a user for good, in one transaction: the row, their memories with vectors and "
        "history, their blocks, sessions with runs and messages, their messages in the sessions "
        "of others, and all of that in the trash too. The audit log keeps the event with the "
        "counts and the uuid. Earlier exports and backups still contain the person."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("user", metavar="EXTERNAL_ID_OR_UUID")
        parser.add_argument("--organization", required=True, metavar="SLUG")
        sure = parser.add_mutually_exclusive_group(required=True)
        sure.add_argument("--dry-run", action="store_true", help="count what would be deleted")
        sure.add_argument("--yes", action="store_true", help="erase; this cannot be undone")
        parser.add_argument("--json", action="store_true", help="print the counts as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        with command_errors("Nothing is erased."):
            organization = organization_by_slug(options["organization"])
            with tenant(organization):
                rows = User.objects.for_organization(organization)
                user = find(rows, options["user"], "external_id")
                if user is None:
                    raise NotFound(f"There is no user {options['user']!r}.")
                if options["yes"]:
                    actor = command_actor("erase_user")
                    counts = erase_person(user, organization=organization, actor=actor)
                else:
                    counts = count_person(user, organization=organization)
        if options["json"]:
            self.stdout.write(json.dumps(counts))
            return
        counted = ", ".join(f"{number:,} {name}" for name, number in counts.items())
        self.stdout.write(f"{'Erased' if options['yes'] else 'Would erase'}: {counted}")
