"""`manage.py create_api_key`: prints the key, once."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from accounts.access import organization_by_slug
from accounts.actors import command_actor
from accounts.errors import ServiceError
from accounts.roles import PERMISSIONS, Role
from accounts.services.keys import issue_key
from accounts.tenancy import tenant


class Command(BaseCommand):
    help = "Creates an API key with the permissions of a role and prints it. It is shown only once."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--organization", required=True, metavar="SLUG")
        parser.add_argument("--name", required=True, help="shown in the console")
        roles = [Role.ADMIN.value, Role.USER.value, Role.VIEWER.value]
        parser.add_argument("--role", choices=roles, default=Role.USER.value)

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            organization = organization_by_slug(options["organization"])
            with tenant(organization):
                _, secret = issue_key(
                    organization=organization,
                    actor=command_actor("create_api_key"),
                    name=options["name"],
                    scopes=PERMISSIONS[options["role"]],
                )
        except ServiceError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(secret)
