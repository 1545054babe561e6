"""How long a statement of an ordinary request may run, or wait for a lock.

Behind a transaction pooler nothing may be set for a session: the limits go along with each
transaction, and with each statement outside of one, in the same message.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from django.conf import settings
from django.db import connection
from psycopg import Connection, OperationalError, errors, sql

# What the statements at hand have to say; empty where nothing is limited, or all is said.
_unsaid: ContextVar[str] = ContextVar("unsaid", default="")
# (The way back to a savepoint leads out of a failed transaction, where nothing else is answered.)
SAVEPOINTS = ("SAVEPOINT", "RELEASE SAVEPOINT", "ROLLBACK TO SAVEPOINT")
_silence_s: ContextVar[float | None] = ContextVar("silence_s", default=None)
_change_timeout_s: ContextVar[float | None] = ContextVar("change_timeout_s", default=None)


@contextmanager
def limited(*, lock_timeout_ms: int | None = None) -> Iterator[None]:
    """Limits the statements inside by AGENTMEM_STATEMENT_TIMEOUT_S, and AGENTMEM_LOCK_TIMEOUT_S or
    what is given; changes that take many of them by AGENTMEM_CHANGE_TIMEOUT_S
    (`change_timeout_s`)."""
    silence = _silence_s.set(settings.DATABASE_SILENCE_S)
    change = _change_timeout_s.set(settings.CHANGE_TIMEOUT_S or None)
    lock_ms = settings.LOCK_TIMEOUT_MS if lock_timeout_ms is None else lock_timeout_ms
    token = _unsaid.set(
        f"SELECT set_config('statement_timeout', '{settings.STATEMENT_TIMEOUT_MS:d}', true), "
        f"set_config('lock_timeout', '{lock_ms:d}', true); "
    )
    try:
        with connection.execute_wrapper(_say):
            yield
    finally:
        _unsaid.reset(token)
        _change_timeout_s.reset(change)
        _silence_s.reset(silence)


def change_timeout_s() -> float | None:
    """How long a change of many statements may go on here; None: as long as it takes."""
    return _change_timeout_s.get()


@contextmanager
def said() -> Iterator[sql.SQL]:
    """What a transaction begins with, so that its statements need not say it."""
    limits = _unsaid.get()
    token = _unsaid.set("")
    try:
        yield sql.SQL(limits)
    finally:
        _unsaid.reset(token)


def _say(execute: Callable[..., Any], statement: Any, params: Any, many: bool, context: Any) -> Any:
    limits = _unsaid.get()
    if not limits or many or str(statement).startswith(SAVEPOINTS):
        return execute(statement, params, many, context)
    whole = limits + statement if isinstance(statement, str) else sql.SQL(limits) + statement
    result = execute(whole, params, many, context)
    context["cursor"].nextset()
    return result


def wait_limited(connection: Connection[Any], gen: Any, **options: Any) -> Any:
    """psycopg's wait for the server's answer, which ends when nothing comes for
    AGENTMEM_DATABASE_SILENCE_S: the limits above are kept by the server, and one that stands still,
    or the pooler before it, keeps none. Raises: OperationalError; the connection is closed then."""
    silence_s = _silence_s.get()
    if silence_s is not None:
        options.setdefault("timeout", silence_s)
    try:
        return type(connection).wait(connection, gen, **options)
    except errors._WaitTimeout:
        if silence_s is None:
            raise
        connection.pgconn.finish()
        raise OperationalError(f"The database has said nothing for {silence_s:g} s.") from None
