"""How long a statement of a request may run, or wait for a lock.

Behind a transaction pooler, nothing may be set for a session. The limits are sent with the first
statement of each transaction, and with each statement outside of one, in the same message.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from django.conf import settings
from django.db import connection
from psycopg import Connection, OperationalError, errors, sql

# The SQL to send before a statement; empty without limits, or where they are set already.
_limits: ContextVar[str] = ContextVar("limits", default="")
# (In a failed transaction, PostgreSQL accepts only the rollback to a savepoint.)
SAVEPOINTS = ("SAVEPOINT", "RELEASE SAVEPOINT", "ROLLBACK TO SAVEPOINT")
_silence_s: ContextVar[float | None] = ContextVar("silence_s", default=None)
_change_timeout_s: ContextVar[float | None] = ContextVar("change_timeout_s", default=None)


@contextmanager
def limited(*, lock_timeout_ms: int | None = None) -> Iterator[None]:
    """Limits the statements inside by AGENTMEM_STATEMENT_TIMEOUT_S and `lock_timeout_ms`, which is
    AGENTMEM_LOCK_TIMEOUT_S by default; changes of many statements by AGENTMEM_CHANGE_TIMEOUT_S
    (`change_timeout_s`)."""
    silence = _silence_s.set(settings.DATABASE_SILENCE_S)
    change = _change_timeout_s.set(settings.CHANGE_TIMEOUT_S or None)
    lock_ms = settings.LOCK_TIMEOUT_MS if lock_timeout_ms is None else lock_timeout_ms
    token = _limits.set(
        f"SELECT set_config('statement_timeout', '{settings.STATEMENT_TIMEOUT_MS:d}', true), "
        f"set_config('lock_timeout', '{lock_ms:d}', true); "
    )
    try:
        with connection.execute_wrapper(_with_limits):
            yield
    finally:
        _limits.reset(token)
        _change_timeout_s.reset(change)
        _silence_s.reset(silence)


def change_timeout_s() -> float | None:
    """How long a change of many statements may take here; None: no limit."""
    return _change_timeout_s.get()


@contextmanager
def transaction_limits() -> Iterator[sql.SQL]:
    """The SQL that sets the limits for a transaction. Inside, statements are sent without them."""
    limits = _limits.get()
    token = _limits.set("")
    try:
        yield sql.SQL(limits)
    finally:
        _limits.reset(token)


def _with_limits(
    execute: Callable[..., Any], statement: Any, params: Any, many: bool, context: Any
) -> Any:
    limits = _limits.get()
    if not limits or many or str(statement).startswith(SAVEPOINTS):
        return execute(statement, params, many, context)
    whole = limits + statement if isinstance(statement, str) else sql.SQL(limits) + statement
    result = execute(whole, params, many, context)
    context["cursor"].nextset()
    return result


def wait_limited(connection: Connection[Any], gen: Any, **options: Any) -> Any:
    """psycopg's wait for an answer, which ends after AGENTMEM_DATABASE_SILENCE_S of silence.
    The limits above are the server's: they do not help if it, or a pooler, hangs.

    Raises: OperationalError; the connection is then closed.
    """
    silence_s = _silence_s.get()
    if silence_s is not None:
        options.setdefault("timeout", silence_s)
    try:
        return type(connection).wait(connection, gen, **options)
    except errors._WaitTimeout:
        if silence_s is None:
            raise
        connection.pgconn.finish()
        raise OperationalError(f"The database has not answered for {silence_s:g} s.") from None
