"""`manage.py database start|stop|status|psql`: controls the embedded PostgreSQL."""

from __future__ import annotations

import os
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from agentmem_site.db.setup import prepare_embedded
from agentmem_site.embedded import ROLES, EmbeddedError, Server

STOPPED = 3  # exit code of `status`, the same as pg_ctl's


class Command(BaseCommand):
    help = "Starts, stops or shows the embedded PostgreSQL, or opens psql in it."
    requires_system_checks = ()  # checks need the database

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        actions.add_parser("start", help="start it and wait until it accepts connections")
        actions.add_parser("stop", help="stop it; open transactions are rolled back")
        actions.add_parser("status", help=f"show it; exit code {STOPPED} when it is not running")
        psql = actions.add_parser("psql", help="open psql")
        psql.add_argument("--role", choices=ROLES, default="agentmem_owner")
        psql.add_argument("--database", default="agentmem")
        psql.add_argument("arguments", nargs="*", help="further arguments of psql, after --")

    def handle(self, *, action: str, **options: Any) -> None:
        server: Server | None = settings.EMBEDDED_SERVER
        if server is None:
            raise CommandError(
                "DATABASE_URL is set: this project uses that server, not an embedded one."
            )
        try:
            if action == "psql":
                self.psql(server, options["role"], options["database"], options["arguments"])
            else:
                getattr(self, action)(server)
        except EmbeddedError as error:
            raise CommandError(str(error)) from error

    def start(self, server: Server) -> None:
        started = server.start(prepare=prepare_embedded(server.connection), say=self.stdout.write)
        state = "started" if started else "was already running"
        self.stdout.write(f"PostgreSQL {state} in {server.root}")

    def stop(self, server: Server) -> None:
        stopped = server.stop(say=self.stdout.write)
        self.stdout.write("PostgreSQL stopped" if stopped else "PostgreSQL was not running")

    def status(self, server: Server) -> None:
        status = server.status()
        self.stdout.write(f"state: {status.state}")
        self.stdout.write(f"pid: {status.pid or '-'}")
        self.stdout.write(f"version: {status.version or '-'}")
        self.stdout.write(f"folder: {status.data_dir}")
        self.stdout.write(f"size: {status.size_bytes / 1024**2:.0f} MiB")
        if status.pid is None:
            raise SystemExit(STOPPED)

    def psql(self, server: Server, role: str, database: str, arguments: list[str]) -> None:
        """Becomes psql: this process ends with psql's exit code."""
        connection = server.connection(role, database)
        if server.status().pid is None:
            raise CommandError("PostgreSQL is not running: `manage.py database start` starts it.")
        environment = {name: value for name, value in os.environ.items() if name[:2] != "PG"}
        environment |= {
            "PGHOST": connection["HOST"],
            "PGPORT": connection["PORT"],
            "PGUSER": connection["USER"],
            "PGPASSWORD": connection["PASSWORD"],
            "PGDATABASE": connection["NAME"],
        }
        self.stdout.flush()
        program = str(server.binaries / "psql")
        os.execve(program, [program, *arguments], environment)  # noqa: S606 - no shell wanted
