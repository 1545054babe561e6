"""How commands end: their exit codes, and what went wrong in words for the operator."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.core.management.base import CommandError
from django.db import InternalError, OperationalError

from accounts.errors import ServiceError, Unavailable
from agentmem_site.db import refusals
from agentmem_site.db.outages import outage_of

USAGE, SOME_REJECTED = 2, 3
BAD_DATA, INTEGRITY, CANNOT_WRITE, TEMPORARY, PERMISSION = 65, 70, 73, 75, 77
INTERRUPTED, TERMINATED = 130, 143
GOES_ON = "The same command goes on where this one stopped."


@contextmanager
def told(then: str) -> Iterator[None]:
    """Turns what can be mended into CommandError; `then` says how things stand after it."""
    try:
        yield
    except ServiceError as error:
        code = TEMPORARY if isinstance(error, Unavailable) else PERMISSION
        raise CommandError(str(error), returncode=code) from error
    except KeyboardInterrupt as stop:
        raise CommandError(f"Stopped. {then}", returncode=INTERRUPTED) from stop
    except (OperationalError, InternalError) as error:
        if outage_of(error) is None:
            raise
        raise CommandError(f"{refusals.told(error)}\n{then}", returncode=TEMPORARY) from error
