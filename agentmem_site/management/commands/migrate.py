"""`manage.py migrate`, as the owner of the tables; the application is granted what it needs."""

from typing import Any

from django.core.management.commands.migrate import Command as StockCommand
from django.db import connections

from agentmem_site.db.grants import grant_to_application
from agentmem_site.db.roles import as_owner


class Command(StockCommand):
    def get_check_kwargs(self, options: Any) -> Any:
        # Not the database's checks: the walls are what this builds, as the owner of the tables.
        return {**super().get_check_kwargs(options), "databases": None}

    def handle(self, *args: Any, **options: Any) -> None:
        connection = connections[options["database"]]
        with as_owner(connection):
            super().handle(*args, **options)
            grant_to_application(connection)
