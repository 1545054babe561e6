"""How commands end: exit codes, and errors as messages for the operator."""

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
RESUME_HINT = "Run the same command again to continue."


@contextmanager
def command_errors(state: str) -> Iterator[None]:
    """Turns errors that the operator can fix into CommandError; `state` says what was done."""
    try:
        yield
    except ServiceError as error:
        code = TEMPORARY if isinstance(error, Unavailable) else PERMISSION
        raise CommandError(str(error), returncode=code) from error
    except KeyboardInterrupt as stop:
        raise CommandError(f"Stopped. {state}", returncode=INTERRUPTED) from stop
    except (OperationalError, InternalError) as error:
        if outage_of(error) is None:
            raise
        message = f"{refusals.outage_message(error)}\n{state}"
        raise CommandError(message, returncode=TEMPORARY) from error
