"""`manage.py setup_database`: creates roles, database and template on your own PostgreSQL."""

from typing import Any

import psycopg
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser

from agentmem_site.db.setup import SetupRefused, setup_database
from agentmem_site.db.urls import settings_of_url
from agentmem_site.variables import USAGE


class Command(BaseCommand):
    help = (
        "Creates the roles agentmem_owner, agentmem_app and agentmem_admin, the database and the "
        "template with pgvector, as a superuser. The passwords are those of DATABASE_URL and "
        "DATABASE_OWNER_URL. Safe to run again. The embedded server does not need it."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--superuser-url",
            required=True,
            help="postgres://postgres:PASSWORD@HOST:PORT/postgres, with its own options such as "
            "?sslmode=verify-full&sslrootcert=FILE; it does not inherit those of DATABASE_URL",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        application = settings.DATABASES["default"]
        if settings.EMBEDDED_SERVER is not None:
            raise CommandError("Set DATABASE_URL first: the embedded server sets itself up.")
        if not application["OWNER"]["USER"]:
            raise CommandError(
                "Set DATABASE_OWNER_URL: the owner migrates, the application cannot."
            )
        try:
            unset = setup_database(
                superuser=settings_of_url(options["superuser_url"], "--superuser-url"),
                owner=application["OWNER"],
                application=application,
            )
        except ImproperlyConfigured as refusal:
            raise CommandError(str(refusal), returncode=USAGE) from refusal
        except (SetupRefused, psycopg.Error) as refusal:
            # (After their first line, PostgreSQL's errors may quote a statement.)
            raise CommandError(str(refusal).partition("\n")[0]) from refusal
        if unset:
            self.stderr.write(
                f"PostgreSQL's log may come to hold what people said: {', '.join(unset)} cannot "
                "be set for these roles. Set them for the server (docs/operations.md)."
            )
        self.stdout.write(f"{application['NAME']} is ready. Now run `manage.py migrate`.")
