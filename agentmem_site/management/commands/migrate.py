"""`manage.py migrate`, as the owner of the tables. It also re-creates changed routines from their
files and grants the application what it needs."""

import sys
from typing import Any

from django.core.management.base import CommandError
from django.core.management.commands.migrate import Command as StockCommand
from django.db import connections

from agentmem_site.db.grants import grant_to_application
from agentmem_site.db.roles import as_owner
from agentmem_site.db.routines import installed_routines, renew_routines, stale_routines
from agentmem_site.db.setup import vector_fault


class Command(StockCommand):
    def get_check_kwargs(self, options: Any) -> Any:
        # Without the database's checks: they look for the walls, which this command builds.
        return {**super().get_check_kwargs(options), "databases": None}

    def handle(self, *args: Any, **options: Any) -> None:
        connection = connections[options["database"]]
        routines = installed_routines()
        with as_owner(connection):
            if fault := vector_fault(connection):
                raise CommandError(fault)
            super().handle(*args, **options)  # with --check it exits if a migration is missing
            if options["plan"] or options["check_unapplied"]:
                stale = stale_routines(connection, routines)
                if stale:
                    self.stdout.write(f"Routines to renew: {', '.join(stale)}.")
                    if options["check_unapplied"]:
                        sys.exit(1)
                return
            grant_to_application(connection)
            renewed = renew_routines(connection, routines)
            if renewed and options["verbosity"] >= 1:
                self.stdout.write(f"Routines renewed: {', '.join(renewed)}.")
