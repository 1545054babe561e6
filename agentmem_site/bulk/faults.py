"""What to do about a database error, by SQLSTATE and never by message; how often to retry, when."""

import random
from dataclasses import dataclass
from enum import Enum, auto

from django.db import Error as DatabaseError
from django.db import InterfaceError

from agentmem_site.db.outages import DISK_FULL_STATE, READ_ONLY_STATE

# Source: PostgreSQL manual, appendix A, "PostgreSQL Error Codes".
_TRANSIENT = frozenset(
    # the connection; shut down, crashed, cannot connect now; serialization, deadlock; lock not
    # available; out of memory, too many connections; idle too long in a transaction
    ["57P01", "57P02", "57P03", "40001", "40P01", "55P03", "53200", "53300", "25P03"]
)
_CONNECTION = "08"
_TOO_SLOW = "57014"
LIMIT_EXCEEDED = "54"  # the class of SQLSTATEs
_OF_A_ROW = ("22", "23", LIMIT_EXCEEDED)  # data exception, integrity constraint
FOREIGN_KEY_VIOLATION = "23503"  # foreign_key_violation
_NOT_PERMITTED = ("28", "3D", "42501")


class Verdict(Enum):
    RETRY = auto()  # in a new transaction
    RETRY_LATER = auto()  # the disk is full or the database read-only: an operator may fix that
    HALVE = auto()  # it took too long
    FIND_ROW = auto()  # one of the rows is to blame
    NOT_PERMITTED = auto()
    GIVE_UP = auto()


def verdict(error: DatabaseError) -> Verdict:
    state = sqlstate(error)
    if not state:  # libpq's own: no server, or it went away
        lost = isinstance(error, InterfaceError) or error.__class__.__name__ == "OperationalError"
        return Verdict.RETRY if lost else Verdict.GIVE_UP
    if state in _TRANSIENT or state.startswith(_CONNECTION):
        return Verdict.RETRY
    if state in (DISK_FULL_STATE, READ_ONLY_STATE):
        return Verdict.RETRY_LATER
    if state == _TOO_SLOW:
        return Verdict.HALVE
    if state.startswith(_OF_A_ROW):
        return Verdict.FIND_ROW
    if state.startswith(_NOT_PERMITTED):
        return Verdict.NOT_PERMITTED
    return Verdict.GIVE_UP


def sqlstate(error: BaseException) -> str:
    return getattr(error.__cause__, "sqlstate", None) or ""


def raise_interrupt(error: BaseException) -> None:
    """Raises the KeyboardInterrupt that caused the error. If a signal interrupts a COMMIT, Django
    tries to roll back, and raises the error of that."""
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, KeyboardInterrupt):
            raise behind
        behind = behind.__context__


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a batch is retried after transient errors, and how long to wait before."""

    tries: int
    base_s: float
    factor: float
    cap_s: float

    def pause_s(self, attempt: int) -> float:
        """A random pause after the `attempt`th failure (from 1), up to an exponential limit.

        Source: M. Brooker, "Exponential Backoff And Jitter" (2015), full jitter.
        """
        longest = min(self.cap_s, self.base_s * self.factor ** (attempt - 1))
        return random.uniform(0, longest)  # noqa: S311  (no secret)


RETRIES = {
    "default": RetryPolicy(3, 0.1, 2, 2),
    "aggressive": RetryPolicy(5, 0.05, 1.5, 1),
    "conservative": RetryPolicy(2, 0.2, 3, 5),
}
DISK_FULL_PAUSES_S = (10.0, 20.0)  # three tries over 30 s
