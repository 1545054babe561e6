"""`manage.py create_organization SLUG`: prints the new organization's id."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from accounts.actors import command_actor
from accounts.errors import ServiceError
from accounts.services.organizations import organizations
from accounts.tenancy import platform


class Command(BaseCommand):
    help = "Creates an organization and prints its id."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("slug")
        parser.add_argument("--name", help="shown to people (default: from the slug)")

    def handle(self, *args: Any, **options: Any) -> None:
        slug = options["slug"]
        values = {"slug": slug, "name": options["name"] or slug.replace("-", " ").title()}
        try:
            with platform():  # it belongs to no organization yet
                organization = organizations.create(
                    actor=command_actor("create_organization"), values=values
                )
        except ServiceError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(str(organization.pk))
