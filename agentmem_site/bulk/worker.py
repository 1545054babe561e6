"""Commits the batches of one worker, each in a transaction of its own, whatever comes between.

A batch is done again after what passes (faults.py), in smaller pieces when it takes too long, and
in halves when PostgreSQL refuses a row of it without saying which.
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
    GONE,
    Verdict,
    raise_interrupt,
    sqlstate,
    verdict,
)
from agentmem_site.bulk.feed import Chunk, Feed, decoded, finished
from agentmem_site.bulk.lines import Mark, Seen
from agentmem_site.bulk.options import Checkpoint, LoadOptions, Preparation
from agentmem_site.bulk.report import Counts, Tally
from agentmem_site.bulk.spec import LineError, LineErrors
from agentmem_site.bulk.writing import CannotRestore, Overtaken, Writer

_MOSTLY = 0.5  # of a batch was there as it is: the next is looked up before it is decoded
_HARDLY = 0.25
_MAX_VAIN_PROBES = 3  # what is there was not loaded from a file, or was changed since
_GROW_AFTER = 5  # batches in time


class TooSlow(Exception):
    """A batch takes longer than --timeout, and is as small as it may get."""


class WorkTaken(Exception):
    """Another process is loading the same job."""


class TooManyRejects(Exception):
    """More lines are bad than --max-rejects allows."""


class Progress(Protocol):
    @property
    def rejected(self) -> int: ...

    def add(self, part: int, line: int, tally: Tally, rejected: Sequence[LineError]) -> None:
        """Notes what is committed."""


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
        """Until there are no more. Raises what stops the load."""
        for item in self._shared.feed.batches(self.part):
            self._connection = connection.connection
            self._store(item if isinstance(item, Batch) else self._encoded(item))

    def cancel(self) -> None:
        """Ends the statement that the worker waits for, from another thread."""
        if self._connection is not None and not self._connection.closed:
            self._connection.cancel_safe(timeout=5)

    # -- a batch -----------------------------------------------------------------------------------

    def _encoded(self, chunk: Chunk) -> Batch:
        """Its lines, but for those that the table has as they are."""
        shared, lines = self._shared, chunk.lines
        seen: list[Seen] = []
        skips_bad = shared.options.skips_bad
        if chunk.probes:
            there = self._again(lambda: self._seen(chunk))
            seen = [
                Seen(p.raw.number, p.children, p.repeated)
                for p in chunk.probes
                if p.raw.number in there
            ]
            unseen = [p.raw for p in chunk.probes if p.raw.number not in there]
            lines = sorted([*lines, *unseen]) if unseen else lines
        if shared.feed.probes:
            is_worth_it = len(seen) >= _HARDLY * (len(chunk.probes) + len(chunk.lines))
            self._vain_probes += not is_worth_it
            shared.feed.go_on(probing=is_worth_it)
        rows, rejected = decoded(shared.encoder, lines, skips_bad=skips_bad)
        if shared.preparation:
            until = shared.preparation.until_line
            early = [r.line for r in rows if until is None or r.number <= until]
            if early:
                shared.preparation.complete(early)
        batch = finished(shared.encoder, rows, rejected, chunk.end, skips_bad=skips_bad)
        batch.seen = seen
        return batch

    def _seen(self, chunk: Chunk) -> set[int]:
        with self._shared.transaction():
            return self._writer.seen(chunk.probes)

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
        """Stores the piece; or the smaller pieces that are to be stored in its place."""
        end, tries = self._end_of(piece), _Tries(self._shared.options)
        # Of a try whose COMMIT went unanswered: its counts, and that is to be asked for.
        sent: Tally | None = None
        is_unanswered = False
        while True:
            try:
                if sent and is_unanswered and self._is_committed(end):
                    tally = sent
                    break
                is_unanswered = False
                if self._shared.feed.parts > 1 and self._writer.lacks(piece):
                    with self._forgetting(), self._shared.transaction():
                        self._writer.resolve(piece)
                with self._forgetting(), self._shared.transaction():
                    tally = self._write(piece, end, tries.retries)
                    sent, is_unanswered = tally, True
                break
            except Overtaken:
                tries.retries += 1
            except WorkTaken:  # or was it this worker, whose COMMIT came through only now?
                if not (sent and self._is_committed(end)):
                    raise
                tally = sent
                break
            except LineError as error:
                if not self._shared.options.skips_bad:
                    error.offset = next(r.offset for r in piece.rows if r.number == error.line)
                    raise
                piece.reject(error)
            except LineErrors as found:
                if not self._shared.options.skips_bad:
                    first = min(found.errors, key=lambda error: error.line)
                    first.offset = next(r.offset for r in piece.rows if r.number == first.line)
                    raise first from None
                piece.reject(*found.errors)
            except CannotRestore as error:
                if len(piece.rows) > 1:
                    return piece.cut(len(piece.rows) // 2)
                self._blame(piece, "in_trash", "", str(error), error)
            except DatabaseError as error:
                self._forget_connection(error)
                match verdict(error):
                    case Verdict.AGAIN if tries.may_again():
                        pass
                    case Verdict.AGAIN_LATER if tries.may_again_later():
                        pass
                    case Verdict.SMALLER:
                        return self._smaller(piece, error)
                    case Verdict.FIND_ROW if len(piece.rows) > 1:
                        return piece.cut(len(piece.rows) // 2)
                    case Verdict.FIND_ROW if sqlstate(error) == GONE and tries.may_again():
                        pass  # what it names was purged since it was looked up
                    case Verdict.FIND_ROW:
                        self._blame(piece, "refused", *_as_postgresql_says(error), error)
                    case _:
                        raise
        self._mark, self._tally = end, self._tally.plus(tally)
        self._progress.add(self.part, end.line, tally, piece.rejected)
        self._suggest(tally)
        if not self._shared.options.dry_run:
            self._tell_planner()
        return []

    def _is_committed(self, end: Mark) -> bool:
        checkpoint = self._shared.checkpoint
        return checkpoint is not None and checkpoint.read(self.part) == end

    def _tell_planner(self) -> None:
        try:
            self._writer.growth.tell_planner()
        except DatabaseError as error:  # the batch is stored; the next one will see
            self._forget_connection(error)

    @contextmanager
    def _forgetting(self) -> Iterator[None]:
        """What a transaction has made is gone with it, at its COMMIT too."""
        try:
            yield
        except BaseException:
            self._writer.forget()
            raise

    def _write(self, piece: Batch, end: Mark, retries: int) -> Tally:
        """Within the open transaction."""
        shared = self._shared
        counts, below = Counts(), Counts()
        if piece.rows:
            counts, below = self._writer.write(piece)
        counts.unchanged += len(piece.seen)
        below.add(piece.seen_below)
        children = shared.encoder.spec.children
        tally = Tally(
            read=piece.read,
            counts=counts,
            children={children.source: below} if children else {},
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
        """Where the part stands after it. In the middle of a batch, the digest of the file is that
        of the batch before."""
        if piece.end.checked_line:
            return piece.end
        return self._mark._replace(line=piece.end.line)

    def _smaller(self, piece: Batch, error: DatabaseError) -> list[Batch]:
        options = self._shared.options
        if len(piece.rows) <= max(options.min_batch_size, 1):
            raise TooSlow(
                f"A batch of {len(piece.rows):,} rows takes longer than {options.timeout_s:g} s: "
                "give it more with --timeout, or a smaller --min-batch-size"
            ) from error
        self._size = max(len(piece.rows) // 2, options.min_batch_size)
        self._in_time = 0
        return piece.cut(self._size)

    def _blame(self, piece: Batch, code: str, field: str, message: str, cause: Exception) -> None:
        """The one row of the piece is to blame. Raises: LineError, unless bad lines are skipped."""
        if not piece.rows:
            raise cause
        (row,) = piece.rows
        error = LineError(code, field, message, line=row.number, offset=row.offset)
        if not self._shared.options.skips_bad:
            raise error from cause
        piece.reject(error)

    def _suggest(self, tally: Tally) -> None:
        """What the last batch was tells how the next is best read. (While lines are looked up
        before they are decoded, `_encoded` says.)"""
        feed = self._shared.feed
        if not feed.probes and self._vain_probes < _MAX_VAIN_PROBES:
            feed.go_on(probing=tally.counts.unchanged > _MOSTLY * tally.read)

    def _again(self, work: Callable[[], Any]) -> Any:
        """A look-up that is tried as often as a batch is."""
        tries = _Tries(self._shared.options)
        while True:
            try:
                return work()
            except DatabaseError as error:
                self._forget_connection(error)
                if verdict(error) is not Verdict.AGAIN or not tries.may_again():
                    raise

    def _forget_connection(self, error: DatabaseError) -> None:
        """The next try connects anew, where there is nothing left to connect to. Raises what
        interrupted the work, where that is the cause."""
        raise_interrupt(error)
        is_of_the_batch = verdict(error) in (Verdict.SMALLER, Verdict.FIND_ROW)
        if not (connection.in_atomic_block or is_of_the_batch):
            connection.close()


class _Tries:
    """How often a batch may be done again, counted anew for each; pauses where it may."""

    def __init__(self, options: LoadOptions) -> None:
        self._policy = options.retry
        self._is_one = options.dry_run  # one transaction: what has failed is lost
        self._failures = self._waits = 0
        self.retries = 0

    def may_again(self) -> bool:
        if self._is_one or self._failures >= self._policy.tries:
            return False
        self._failures += 1
        self.retries += 1
        time.sleep(self._policy.pause_s(self._failures))
        return True

    def may_again_later(self) -> bool:
        if self._is_one or self._waits >= len(DISK_FULL_PAUSES_S):
            return False
        time.sleep(DISK_FULL_PAUSES_S[self._waits])
        self._waits += 1
        self.retries += 1
        return True


def _as_postgresql_says(error: DatabaseError) -> tuple[str, str]:
    """(column, sentence)"""
    diagnosis: Any = getattr(error.__cause__, "diag", None)
    if not diagnosis:
        return "", str(error).strip()
    return diagnosis.column_name or "", diagnosis.message_primary or str(error).strip()
