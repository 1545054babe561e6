import os
from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from agentmem_site.samples import RESOURCES, lines


def _whole_number(minimum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise ArgumentTypeError(f"{text!r} is not a whole number of {minimum} or more")
        return value

    return parse


class Command(BaseCommand):
    help = (
        "Writes sample rows as JSON lines to standard output, for bulk_upsert to read. The "
        "same resource, seed and row number give the same row on every machine. Ids do not "
        "depend on the seed, so loading another seed updates the rows of the first one."
    )
    # It needs neither database nor models, and should start at once in a pipe.
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "resource",
            choices=RESOURCES,
            metavar="RESOURCE",
            help=f"one of {', '.join(RESOURCES)}",
        )
        parser.add_argument(
            "--count",
            type=_whole_number(0),
            default=1000,
            help="how many rows (default %(default)s)",
        )
        parser.add_argument(
            "--seed",
            type=int,
            default=0,
            help="other contents for the same ids (default %(default)s)",
        )
        parser.add_argument(
            "--start",
            type=_whole_number(1),
            default=1,
            help="number of the first row (default %(default)s)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        pieces = lines(
            options["resource"],
            row_count=options["count"],
            seed=options["seed"],
            start=options["start"],
        )
        # Bytes go past the text layer, which would decode and encode each of them again. A
        # StringIO, as in call_command(stdout=...), has no such buffer.
        buffer = getattr(self.stdout, "buffer", None)
        try:
            for piece in pieces:
                if buffer is not None:
                    buffer.write(piece)
                else:
                    self.stdout.write(piece.decode(), ending="")
            self.stdout.flush()
        except BrokenPipeError:
            # The reader (`| head -1`) has seen enough. The rest of the buffer goes to /dev/null,
            # or Python would complain about it when it closes the stream at exit.
            # Source: https://docs.python.org/3/library/signal.html#note-on-sigpipe
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stdout.fileno())
