"""What the caller of a load chooses, prepares and keeps."""

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
    """How to load. `as_seed` are those that change what a line means."""

    batch_size: int = 5000  # rows, at most
    min_batch_size: int = 500  # a batch that takes too long is halved down to it
    timeout_s: float = 30  # per statement; 0: none
    throttle_ms: float = 0  # between batches
    workers: int = 1  # connections; lines of one key, or one conversation, go to the same
    retry: RetryPolicy = RETRIES["default"]
    skips_bad: bool = False  # rejects a bad line and goes on; otherwise it stops the load
    max_rejects: int | None = None
    preserve_timestamps: bool = False
    preserve_ids: bool = False  # restores an export: the command's alone, never a request's
    restore: bool = False  # brings back what lies in the trash
    strict_references: bool = False
    ignore_unknown: bool = False  # fields
    timezone: str = ""  # IANA name: of times that name none
    date_order: str = ""  # "dmy" or "mdy": of dates like 01/02/2026
    dry_run: bool = False

    def as_seed(self, spec: LoadSpec) -> bytes:
        """What the digests of lines begin with: the same line means the same only with it."""
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
    """Completes decoded lines before they are encoded, outside any transaction: it may take long,
    and look into the database."""

    complete: Callable[[Sequence[Any]], None]
    until_line: int | None = None  # of the file; None: all


class PreparationFailed(Exception):
    """What a Preparation raises; `is_temporary`: the same lines may well be prepared later."""

    def __init__(self, message: str, *, is_temporary: bool) -> None:
        super().__init__(message)
        self.is_temporary = is_temporary


class Checkpoint(Protocol):
    """Where the caller keeps how far a load is: a mark and a tally for each worker."""

    def begin(self, workers: int) -> tuple[datetime, list[tuple[Mark, Tally]]]:
        """When the load began, and the state of each worker; of a load begun before, of as many
        as that had."""

    def save(self, part: int, before: Mark, after: Mark, tally: Tally) -> bool:
        """Notes it within the open transaction of a batch; False where the mark is not `before`
        any more: another process has taken the load over."""

    def read(self, part: int) -> Mark:
        """The mark that is committed."""
