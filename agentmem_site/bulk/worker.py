"""Commits the batches of one worker, each in a transaction of its own.

A batch is retried after a transient error (faults.py), in smaller pieces if it takes too long, and
in halves if PostgreSQL refuses one of its rows without saying which.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from django.db import Error as DatabaseError
from django.db import connection

from agentmem_site.bulk.encode import Batch, Encoder
from agentmem_site.bulk.faults import (
    DISK_FULL_PAUSES_S,
    FOREIGN_KEY_VIOLATION,
    Verdict,
    raise_interrupt,
    sqlstate,
    verdict,
)
from agentmem_site.bulk.feed import Chunk, Feed, batch_of, decoded
from agentmem_site.bulk.lines import Mark, UnchangedLine
from agentmem_site.bulk.options import Checkpoint, LoadOptions, Preparation
from agentmem_site.bulk.report import Counts, Tally
from agentmem_site.bulk.spec import LineError, LineErrors
from agentmem_site.bulk.writing import CannotRestore, ConcurrentChange, Writer

# Probing looks lines up before they are decoded. It starts after a batch with more than this share
# of unchanged rows, and stops after one with less than that.
_START_PROBING = 0.5
_STOP_PROBING = 0.25
_MAX_VAIN_PROBES = 3  # batches: existing rows were not loaded from a file, or changed since
_GROW_AFTER = 5  # batches within the timeout


class TooSlow(Exception):
    """A batch of the minimum size takes longer than --timeout."""


class WorkTaken(Exception):
    """Another process is loading the same job."""


class TooManyRejects(Exception):
    """More lines are rejected than --max-rejects allows."""


class Progress(Protocol):
    @property
    def rejected(self) -> int: ...

    def add(self, part: int, line: int, tally: Tally, rejected: Sequence[LineError]) -> None:
        """Records what is committed."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What the workers of a load have in common."""

    feed: Feed
    encoder: Encoder
    transaction: Callable[[], AbstractContextManager[None]]
    options: LoadOptions
    on_reject: Callable[[Sequence[LineError]], None]
    checkpoint: Checkpoint | None
    preparation: Preparation | None


class Worker:
    def __init__(
        self,
        part: int,
        mark: Mark,
        tally: Tally,
        writer: Writer,
        shared: Shared,
        progress: Progress,
    ) -> None:
        self.part = part
        self._mark = mark
        self._tally = tally
        self._writer = writer
        self._shared = shared
        self._progress = progress
        self._size = shared.options.batch_size
        self._in_time = 0  # batches since the size was last changed
        self._vain_probes = 0
        self._connection: Any = None

    def run(self) -> None:
        """Stores all batches of the worker. Raises what stops the load."""
        for item in self._shared.feed.batches(self.part):
            self._connection = connection.connection
            self._store(item if isinstance(item, Batch) else self._encoded(item))

    def cancel(self) -> None:
        """Cancels the worker's current statement, from another thread."""
        if self._connection is not None and not self._connection.closed:
            self._connection.cancel_safe(timeout=5)

    # -- a batch -----------------------------------------------------------------------------------

    def _encoded(self, chunk: Chunk) -> Batch:
        """The batch of a chunk's lines. Lines that are unchanged are not decoded."""
        shared, lines = self._shared, chunk.lines
        unchanged: list[UnchangedLine] = []
        skips_bad = shared.options.skips_bad
        if chunk.probes:
            numbers = self._with_retries(lambda: self._unchanged_lines(chunk))
            unchanged = [
                UnchangedLine(p.raw.number, p.children, p.repeated)
                for p in chunk.probes
                if p.raw.number in numbers
            ]
            changed = [p.raw for p in chunk.probes if p.raw.number not in numbers]
            lines = sorted([*lines, *changed]) if changed else lines
        if shared.feed.probes:
            lines_in_chunk = len(chunk.probes) + len(chunk.lines)
            is_worth_it = len(unchanged) >= _STOP_PROBING * lines_in_chunk
            self._vain_probes += not is_worth_it
            shared.feed.set_probing(is_worth_it)
        rows, rejected = decoded(shared.encoder, lines, skips_bad=skips_bad)
        if shared.preparation:
            until = shared.preparation.until_line
            to_prepare = [r.line for r in rows if until is None or r.number <= until]
            if to_prepare:
                shared.preparation.complete(to_prepare)
        batch = batch_of(shared.encoder, rows, rejected, chunk.end, skips_bad=skips_bad)
        batch.unchanged = unchanged
        return batch

    def _unchanged_lines(self, chunk: Chunk) -> set[int]:
        with self._shared.transaction():
            return self._writer.unchanged_lines(chunk.probes)

    def _store(self, batch: Batch) -> None:
        pieces = deque([batch])
        while pieces:
            piece = pieces.popleft()
            if len(piece.rows) > self._size:
                pieces.extendleft(reversed(piece.cut(self._size)))
                continue
            smaller = self._commit(piece)
            pieces.extendleft(reversed(smaller))
            if not smaller:
                self._after_commit(piece)

    def _after_commit(self, piece: Batch) -> None:
        options = self._shared.options
        self._in_time += 1
        if self._size < options.batch_size and self._in_time >= _GROW_AFTER:
            self._size, self._in_time = min(self._size * 2, options.batch_size), 0
        if options.throttle_ms:
            time.sleep(options.throttle_ms / 1000)

    def _commit(self, piece: Batch) -> list[Batch]:
        """Stores the piece and returns []; or returns smaller pieces to store instead."""
        end, tries = self._end_of(piece), _Tries(self._shared.options)
        # The tally of the last try; whether its COMMIT got no answer, so that the checkpoint says.
        sent: Tally | None = None
        is_in_doubt = False
        while True:
            try:
                if sent and is_in_doubt and self._is_committed(end):
                    tally = sent
                    break
                is_in_doubt = False
                if self._shared.feed.parts > 1 and self._writer.names_unknown_rows(piece):
                    with self._forgetting_on_error(), self._shared.transaction():
                        self._writer.resolve(piece)
                with self._forgetting_on_error(), self._shared.transaction():
                    tally = self._write(piece, end, tries.retries)
                    sent, is_in_doubt = tally, True
                break
            except ConcurrentChange:
                tries.retries += 1
            except WorkTaken:  # it may have been this worker, whose COMMIT went through late
                if not (sent and self._is_committed(end)):
                    raise
                tally = sent
                break
            except LineError as error:
                if not self._shared.options.skips_bad:
                    error.offset = next(r.offset for r in piece.rows if r.number == error.line)
                    raise
                piece.reject(error)
            except LineErrors as several:
                if not self._shared.options.skips_bad:
                    first = min(several.errors, key=lambda error: error.line)
                    first.offset = next(r.offset for r in piece.rows if r.number == first.line)
                    raise first from None
                piece.reject(*several.errors)
            except CannotRestore as error:
                if len(piece.rows) > 1:
                    return piece.cut(len(piece.rows) // 2)
                self._blame(piece, "in_trash", "", str(error), error)
            except DatabaseError as error:
                self._forget_connection(error)
                match verdict(error):
                    case Verdict.RETRY if tries.may_retry():
                        pass
                    case Verdict.RETRY_LATER if tries.may_retry_later():
                        pass
                    case Verdict.HALVE:
                        return self._halved(piece, error)
                    case Verdict.FIND_ROW if len(piece.rows) > 1:
                        return piece.cut(len(piece.rows) // 2)
                    case Verdict.FIND_ROW if (
                        sqlstate(error) == FOREIGN_KEY_VIOLATION and tries.may_retry()
                    ):
                        pass  # what it refers to was purged since it was looked up
                    case Verdict.FIND_ROW:
                        self._blame(piece, "refused", *_column_and_message(error), error)
                    case _:
                        raise
        self._mark, self._tally = end, self._tally.plus(tally)
        self._progress.add(self.part, end.line, tally, piece.rejected)
        self._choose_probing(tally)
        if not self._shared.options.dry_run:
            self._analyze_grown_tables()
        return []

    def _is_committed(self, end: Mark) -> bool:
        checkpoint = self._shared.checkpoint
        return checkpoint is not None and checkpoint.read(self.part) == end

    def _analyze_grown_tables(self) -> None:
        try:
            self._writer.growth.analyze_grown_tables()
        except DatabaseError as error:  # the batch is committed; the next one will fail if it must
            self._forget_connection(error)

    @contextmanager
    def _forgetting_on_error(self) -> Iterator[None]:
        """Forgets the rows that a failed transaction created. COMMIT may fail too."""
        try:
            yield
        except BaseException:
            self._writer.forget()
            raise

    def _write(self, piece: Batch, end: Mark, retries: int) -> Tally:
        """Within the open transaction."""
        shared = self._shared
        counts, child_counts = Counts(), Counts()
        if piece.rows:
            counts, child_counts = self._writer.write(piece)
        counts.unchanged += len(piece.unchanged)
        child_counts.add(piece.unchanged_children)
        children = shared.encoder.spec.children
        tally = Tally(
            read=piece.read,
            counts=counts,
            children={children.source: child_counts} if children else {},
            rejected=len(piece.rejected),
            batches=1,
            retries=retries,
        )
        if piece.rejected:
            allowed = shared.options.max_rejects
            if allowed is not None and self._progress.rejected + len(piece.rejected) > allowed:
                raise TooManyRejects(
                    f"More than {allowed:,} lines are rejected; the last is {piece.rejected[-1]}"
                )
            shared.on_reject(piece.rejected)
        if shared.checkpoint and not shared.checkpoint.save(
            self.part, self._mark, end, self._tally.plus(tally)
        ):
            raise WorkTaken("Another process is loading this job")
        return tally

    def _end_of(self, piece: Batch) -> Mark:
        """The checkpoint after the piece. In the middle of a batch, the digest of the file is that
        of the previous batch."""
        if piece.end.checked_line:
            return piece.end
        return self._mark._replace(line=piece.end.line)

    def _halved(self, piece: Batch, error: DatabaseError) -> list[Batch]:
        options = self._shared.options
        if len(piece.rows) <= max(options.min_batch_size, 1):
            raise TooSlow(
                f"A batch of {len(piece.rows):,} rows takes longer than {options.timeout_s:g} s: "
                "raise --timeout, or lower --min-batch-size"
            ) from error
        self._size = max(len(piece.rows) // 2, options.min_batch_size)
        self._in_time = 0
        return piece.cut(self._size)

    def _blame(self, piece: Batch, code: str, field: str, message: str, cause: Exception) -> None:
        """Rejects the only row of the piece. Raises: LineError, unless bad lines are skipped."""
        if not piece.rows:
            raise cause
        (row,) = piece.rows
        error = LineError(code, field, message, line=row.number, offset=row.offset)
        if not self._shared.options.skips_bad:
            raise error from cause
        piece.reject(error)

    def _choose_probing(self, tally: Tally) -> None:
        """Starts probing if most of the last batch was unchanged. (`_encoded` stops it.)"""
        feed = self._shared.feed
        if not feed.probes and self._vain_probes < _MAX_VAIN_PROBES:
            feed.set_probing(tally.counts.unchanged > _START_PROBING * tally.read)

    def _with_retries(self, work: Callable[[], Any]) -> Any:
        """A look-up, retried as often as a batch."""
        tries = _Tries(self._shared.options)
        while True:
            try:
                return work()
            except DatabaseError as error:
                self._forget_connection(error)
                if verdict(error) is not Verdict.RETRY or not tries.may_retry():
                    raise

    def _forget_connection(self, error: DatabaseError) -> None:
        """Closes the connection if it may be broken: the next try opens another. Raises the
        KeyboardInterrupt that caused the error, if one did."""
        raise_interrupt(error)
        is_of_the_batch = verdict(error) in (Verdict.HALVE, Verdict.FIND_ROW)
        if not (connection.in_atomic_block or is_of_the_batch):
            connection.close()


class _Tries:
    """Counts the retries of one batch, and pauses before each."""

    def __init__(self, options: LoadOptions) -> None:
        self._policy = options.retry
        self._is_final = options.dry_run  # all batches share one transaction, which has failed
        self._failures = self._waits = 0
        self.retries = 0

    def may_retry(self) -> bool:
        if self._is_final or self._failures >= self._policy.tries:
            return False
        self._failures += 1
        self.retries += 1
        time.sleep(self._policy.pause_s(self._failures))
        return True

    def may_retry_later(self) -> bool:
        if self._is_final or self._waits >= len(DISK_FULL_PAUSES_S):
            return False
        time.sleep(DISK_FULL_PAUSES_S[self._waits])
        self._waits += 1
        self.retries += 1
        return True


def _column_and_message(error: DatabaseError) -> tuple[str, str]:
    """Of PostgreSQL's error."""
    diagnosis: Any = getattr(error.__cause__, "diag", None)
    if not diagnosis:
        return "", str(error).strip()
    return diagnosis.column_name or "", diagnosis.message_primary or str(error).strip()
