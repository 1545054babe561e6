"""What the caller of a load provides: options, preparation of lines, checkpoints."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from agentmem_site.bulk.faults import RETRIES, RetryPolicy
from agentmem_site.bulk.lines import Mark
from agentmem_site.bulk.report import Tally
from agentmem_site.bulk.spec import LoadSpec

MAX_WORKERS = 32


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load."""

    batch_size: int = 5000  # rows, at most
    min_batch_size: int = 500  # a batch that takes too long is halved, but not below this
    timeout_s: float = 30  # per statement; 0: no limit
    throttle_ms: float = 0  # between batches
    workers: int = 1  # connections; lines with one key, or of one conversation, share a worker
    retry: RetryPolicy = RETRIES["default"]
    skips_bad: bool = False  # rejects bad lines; otherwise a bad line stops the load
    max_rejects: int | None = None
    preserve_timestamps: bool = False
    preserve_ids: bool = False  # restores an export: for the command only, never for a request
    restore: bool = False  # restores rows from the trash
    strict_references: bool = False  # rejects lines that name unknown rows
    ignore_unknown: bool = False  # skips unknown fields
    timezone: str = ""  # IANA name, for times without a zone
    date_order: str = ""  # "dmy" or "mdy", for dates like 01/02/2026
    dry_run: bool = False

    def digest_seed(self, spec: LoadSpec) -> bytes:
        """The start of the digests of lines: the options that change what a line means."""
        meaning: list[Any] = [
            spec.resource,
            [column.name for column in spec.all_columns],
            self.preserve_timestamps,
            self.preserve_ids,
            self.ignore_unknown,
        ]
        if self.timezone or self.date_order:
            meaning += [self.timezone, self.date_order]
        return repr(tuple(meaning)).encode()


DEFAULTS = LoadOptions()


@dataclass(frozen=True, slots=True)
class Preparation:
    """Completes decoded lines before they are encoded, outside any transaction. It may take long
    and query the database."""

    complete: Callable[[Sequence[Any]], None]
    until_line: int | None = None  # of the file; None: all


class PreparationFailed(Exception):
    """Raised by a Preparation. `is_temporary`: a retry may succeed."""

    def __init__(self, message: str, *, is_temporary: bool) -> None:
        super().__init__(message)
        self.is_temporary = is_temporary


class Checkpoint(Protocol):
    """How the caller stores checkpoints: a mark and a tally for each worker."""

    def begin(self, workers: int) -> tuple[datetime, list[tuple[Mark, Tally]]]:
        """When the load started, and the state of each worker. A resumed load has as many workers
        as before."""

    def save(self, part: int, before: Mark, after: Mark, tally: Tally) -> bool:
        """Saves the state in the open transaction of a batch. False if the mark is not `before`:
        another process has taken over the load."""

    def read(self, part: int) -> Mark:
        """The committed mark."""
