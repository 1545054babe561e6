"""`manage.py create_member EMAIL`: prints the new member's password, once."""

import secrets
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from accounts.access import organization_by_slug
from accounts.actors import command_actor
from accounts.errors import ServiceError
from accounts.roles import Role
from accounts.services.organizations import members
from accounts.tenancy import tenant


class Command(BaseCommand):
    help = (
        "Creates a member of an organization and prints a random password. It is shown only once."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("email")
        parser.add_argument("--organization", required=True, metavar="SLUG")
        parser.add_argument("--role", choices=Role.values, default=Role.VIEWER)
        parser.add_argument("--name", default="")

    def handle(self, *args: Any, **options: Any) -> None:
        password = secrets.token_urlsafe(15)
        values = {
            "email": options["email"],
            "name": options["name"],
            "role": options["role"],
            "password": password,
        }
        try:
            organization = organization_by_slug(options["organization"])
            with tenant(organization):
                members.create(
                    organization=organization, actor=command_actor("create_member"), values=values
                )
        except ServiceError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(password)
