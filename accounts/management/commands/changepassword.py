"""`manage.py changepassword EMAIL`: replaces Django's, which expects one member per address."""

from getpass import getpass
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from accounts.access import PLATFORM, member_by_email
from accounts.actors import command_actor
from accounts.errors import Invalid, ServiceError
from accounts.services.organizations import members
from accounts.tenancy import platform

MAX_TRIES = 3


class Command(BaseCommand):
    help = "Asks for a new password for a member or platform superuser."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("email")
        parser.add_argument(
            "--organization",
            default="",
            metavar="SLUG",
            help=f"the organization, if several have this address ({PLATFORM}: the platform)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            member = member_by_email(options["email"], slug=options["organization"])
        except ServiceError as error:
            raise CommandError(str(error)) from error
        for _ in range(MAX_TRIES):
            password = getpass("Password: ")
            if password != getpass("Password (again): "):
                self.stderr.write("The two passwords do not match.")
                continue
            try:
                with platform():  # (a superuser is of no organization)
                    members.update(
                        member,
                        organization=member.organization,  # type: ignore[arg-type]
                        actor=command_actor("changepassword"),
                        values={"password": password},
                    )
            except Invalid as refusal:
                self.stderr.write(str(refusal))
                continue
            except ServiceError as error:
                raise CommandError(str(error)) from error
            self.stdout.write(f"The password of {member.email} was changed.")
            return
        raise CommandError(f"The password was not changed: {MAX_TRIES} failed attempts.")
