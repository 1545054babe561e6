"""`manage.py serve`: serves the console and the API with granian."""

import os
import socket
import sys
from argparse import ArgumentTypeError
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from agentmem_site.api.health import reasons_not_ready
from memories.embeddings import EncoderError, refuse_unknown_encoder

HEADERS_WITHIN_MS = 10_000
STOPS_WITHIN_S = 30
CONNECTIONS = 4096  # per process; a waiting one costs no thread


class Command(BaseCommand):
    help = "Serves the console and the API until it is stopped."
    requires_system_checks: list[str] = []  # reasons_not_ready checks

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default="127.0.0.1")
        parser.add_argument("--port", type=int, default=8000)
        parser.add_argument("--workers", type=_one_or_more, default=1, help="processes")
        parser.add_argument(
            "--threads",
            type=_one_or_more,
            default=settings.SERVING["THREADS"],
            help="requests that each process computes at the same time; waiting ones do not count",
        )
        parser.add_argument(
            "--no-embed",
            action="store_true",
            help="leave pending memories to `embed_worker`, as AGENTMEM_EMBED_THREAD=0 does",
        )
        parser.add_argument(
            "--reload",
            action="store_true",
            help="restart when a source file or a template changes; for development",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        faults = reasons_not_ready()
        if faults:
            raise CommandError("\n".join(faults))
        try:
            refuse_unknown_encoder()
        except EncoderError as error:
            raise CommandError(str(error)) from error
        refuse_taken_port(options["host"], options["port"])
        if options["reload"] and find_spec("watchfiles") is None:
            raise CommandError("--reload needs watchfiles: pip install -r requirements-dev.txt")
        is_embedding = settings.EMBED_THREAD or not os.environ.get("AGENTMEM_EMBED_THREAD")
        is_embedding = is_embedding and not options["no_embed"]
        os.environ["AGENTMEM_EMBED_THREAD"] = "1" if is_embedding else "0"
        os.environ["AGENTMEM_SUPERVISED"] = "1"
        os.environ["AGENTMEM_LOG_LEVEL"] = os.environ.get("AGENTMEM_LOG_LEVEL") or "INFO"
        os.environ["AGENTMEM_THREADS"] = str(options["threads"])
        most = max(settings.SERVING["MAX_THREADS"] // options["workers"], options["threads"])
        os.environ["AGENTMEM_MAX_THREADS"] = str(most)
        host = f"[{options['host']}]" if ":" in options["host"] else options["host"]
        count = options["workers"]
        self.stdout.write(
            f"Serving on http://{host}:{options['port']}/; Ctrl-C stops it.\n"
            f"Processes: {count}, each with {options['threads']} threads that compute and {most} "
            "in all.\n"
            f"Database: {_database()}.\n"
            f"Encoder: {settings.ENCODER}; pending memories are embedded by "
            f"{'these processes' if is_embedding else '`embed_worker`'}."
        )
        self.stdout.flush()
        os.execv(  # noqa: S606  (this process becomes the server: signals reach it directly)
            sys.executable,
            [
                sys.executable,
                "-m",
                "granian",
                "--interface=rsgi",
                f"--host={options['host']}",
                f"--port={options['port']}",
                f"--workers={options['workers']}",
                # A process that dies is replaced; one that does not stop in time is killed.
                "--respawn-failed-workers",
                "--respawn-interval=0.5",
                f"--workers-kill-timeout={STOPS_WITHIN_S}",
                f"--backlog={CONNECTIONS}",
                f"--backpressure={CONNECTIONS}",
                f"--http1-header-read-timeout={HEADERS_WITHIN_MS}",
                "--no-ws",
                *(reload_arguments() if options["reload"] else ["--log-level=warning"]),
                "agentmem_site.rsgi:application",
            ],
        )


def _one_or_more(given: str) -> int:
    """Raises: ArgumentTypeError."""
    if not given.isdecimal() or int(given) < 1:
        raise ArgumentTypeError("a whole number, 1 or more")
    return int(given)


def _database() -> str:
    """The database by name, host and user, without the password."""
    server = settings.EMBEDDED_SERVER
    if server is not None:
        return f"the embedded PostgreSQL {server.version} in {server.root}"
    database = settings.DATABASES["default"]
    host = database["HOST"] or "the local socket"
    port = f", port {database['PORT']}" if database["PORT"] else ""
    return f"{database['NAME']} on {host}{port}, as {database['USER']}"


def reload_arguments() -> list[str]:
    """granian's arguments for the folders to watch. A module that cannot be imported (saved half
    done) does not end the server: the next change restarts it."""
    packages = [app.path for app in apps.get_app_configs()]
    own = {path for path in map(Path, packages) if path.parent == settings.BASE_DIR}
    watched = sorted([*own, settings.BASE_DIR / "templates"])
    return [
        "--reload",
        "--reload-ignore-worker-failure",
        "--log-level=info",  # granian names the files that changed
        *(f"--reload-paths={path}" for path in watched),
    ]


def refuse_taken_port(host: str, port: int) -> None:
    """Checks the port before anything else starts. Raises: CommandError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CommandError(
                f"{host}:{port} cannot be used ({error.strerror}). Choose another port, as in "
                f"`make run PORT={port + 123}`."
            ) from error
