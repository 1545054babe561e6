"""Reads lines into batches, one batch ahead of the connections that write them.

One thread reads, decodes and encodes for all workers. Lines with the same key go to the same
worker, so that they stay in order. So do lines of the same conversation, so that a stored one has
no gaps. On two cores Python takes less time than PostgreSQL, even with two connections
(docs/decisions/0007).
"""

import gc
import queue
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256

from agentmem_site.bulk.encode import Batch, Encoder
from agentmem_site.bulk.lines import DIGEST_BYTES, DecodedLine, Mark, Probe, RawLine, Reject, refuse
from agentmem_site.bulk.readers import NumberedLine
from agentmem_site.bulk.spec import LineError

MAX_BATCH_BYTES = 12 * 1024 * 1024  # of lines: bounds memory whatever the file
LEAST_BYTES = 400  # counted for each line: a short one takes more memory as a row
FIRST_ROWS = 500  # in the first batch: it shows progress early, and whether to probe
MAX_KEYS = 200_000  # remembered, to notice one whose lines go to different workers


class FileChanged(Exception):
    """The file differs from what the job has read of it."""


@dataclass(slots=True)
class Chunk:
    """Lines that the worker looks up or prepares before it encodes them."""

    lines: list[RawLine]
    probes: list[Probe]
    end: Mark


@dataclass(slots=True)
class _Pending:
    lines: list[RawLine] = field(default_factory=list)
    bytes: int = 0


class Feed:
    """The batches of `lines`, for one worker per mark. Each worker starts at its mark."""

    def __init__(
        self,
        lines: Iterable[NumberedLine],
        encoder: Encoder,
        marks: Sequence[Mark],
        *,
        seed: bytes,
        batch_size: int,
        skips_bad: bool,
        prepares_until: int,
    ) -> None:
        self._lines = lines
        self._encoder = encoder
        self._marks = marks
        self._seed = sha256(seed)
        self._batch_size = batch_size
        self._skips_bad = skips_bad
        self._prepares_until = prepares_until
        self._queues: list[queue.Queue[Batch | Chunk | BaseException | None]] = [
            queue.Queue() for _ in marks
        ]
        # Per worker: one batch is read while another is written, and no third.
        self._is_wanted = [threading.Semaphore(1) for _ in marks]
        self._stopped = threading.Event()
        # The worker of each key's last line, for keys whose lines may go to several workers.
        self._part_of_key: dict[bytes, int] = {}
        self._unstored = 0  # batches handed over and not stored
        self._stored = threading.Condition()
        # Whether lines are looked up before they are decoded. The workers decide.
        self.probes = encoder.spec.keeps_line_hash
        self._is_first = True
        self._is_probing_decided = threading.Event()

    @property
    def parts(self) -> int:
        return len(self._marks)

    def batches(self, part: int) -> Iterator[Batch | Chunk]:
        """The batches of one worker. Raises what reading them raised."""
        while (item := self._queues[part].get()) is not None:
            self._is_wanted[part].release()
            if isinstance(item, BaseException):
                raise item
            yield item
            with self._stored:  # (a worker that asks for the next has stored this one)
                self._unstored -= 1
                self._stored.notify_all()

    def start(self) -> None:
        # A daemon: after an error it may still wait for a pipe.
        threading.Thread(target=self._run, name="feed", daemon=True).start()

    def stop(self) -> None:
        """Ends the batches of all workers."""
        self._stopped.set()
        self._is_probing_decided.set()
        with self._stored:
            self._stored.notify_all()
        for part, is_wanted in enumerate(self._is_wanted):
            self._queues[part].put(None)
            is_wanted.release()

    def set_probing(self, is_on: bool) -> None:
        """Called by a worker after the first batch, and when the lines have changed in kind."""
        self.probes = is_on and self._encoder.spec.keeps_line_hash
        self._is_probing_decided.set()

    # -- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        ending: BaseException | None = None
        try:
            self._read()
        except BaseException as error:
            ending = error
        for waiting in self._queues:
            waiting.put(ending)

    def _read(self) -> None:
        parts = self.parts
        pending = [_Pending() for _ in self._marks]
        done_for_all = min(mark.line for mark in self._marks)
        to_check = {mark.checked_line: mark.digest for mark in self._marks if mark.checked_line}
        limit = MAX_BATCH_BYTES // parts
        file_digest = self._seed.copy()
        is_grouped = parts > 1 and bool(self._encoder.spec.grouped_by)
        if is_grouped:  # (a mark is only valid with the same distribution of lines)
            file_digest.update(repr(self._encoder.spec.grouped_by).encode())
        number = 0
        for number, line, offset in self._lines:
            digest = self._digest(line)
            file_digest.update(digest)
            if to_check:
                self._check(to_check, number, file_digest.digest())
            if number <= done_for_all:
                continue
            raw = RawLine(number, line, offset, digest)
            key, part = self._encoder.part_of(raw, parts) if parts > 1 else (b"", 0)
            if number <= self._marks[part].line:
                continue
            if is_grouped and self._must_flush_before(key, part):
                self._flush(pending)
            mine = pending[part]
            mine.lines.append(raw)
            mine.bytes += max(len(line), LEAST_BYTES) if isinstance(line, bytes) else LEAST_BYTES
            rows = min(FIRST_ROWS, self._batch_size) if self._is_first else self._batch_size
            if len(mine.lines) >= rows or mine.bytes >= limit:
                pending[part] = _Pending()
                self._hand_over(part, mine.lines, Mark(number, number, file_digest.digest()))
                if self._stopped.is_set():
                    return
        if to_check:
            raise FileChanged(f"It ends before line {max(to_check):,}, which was read earlier")
        for part, rest in enumerate(pending):
            if rest.lines:
                self._hand_over(part, rest.lines, Mark(number, number, file_digest.digest()))

    def _must_flush_before(self, key: bytes, part: int) -> bool:
        """Whether the previous line with this key may be another worker's, and not yet stored."""
        has_moved = self._part_of_key.setdefault(key, part) != part
        if has_moved or len(self._part_of_key) > MAX_KEYS:
            self._part_of_key = {key: part}
            return True
        return False

    def _flush(self, pending: list[_Pending]) -> None:
        """Hands over all pending lines, and waits until they are stored."""
        for part, waiting in enumerate(pending):
            if waiting.lines:
                pending[part] = _Pending()
                # (In the middle of a batch, the digest of the file is that of the previous batch.)
                self._hand_over(part, waiting.lines, Mark(waiting.lines[-1].number))
        with self._stored:
            self._stored.wait_for(lambda: not self._unstored or self._stopped.is_set())

    def _digest(self, line: bytes | LineError) -> bytes:
        digest = self._seed.copy()
        digest.update(line if isinstance(line, bytes) else line.code.encode())
        return digest.digest()[:DIGEST_BYTES]

    @staticmethod
    def _check(to_check: dict[int, bytes], number: int, digest: bytes) -> None:
        """Raises: FileChanged. (Also if a line to check was left out, because it is blank now.)"""
        if to_check.pop(number, digest) != digest or any(line < number for line in to_check):
            raise FileChanged(f"Its lines up to {number:,} have changed")

    def _hand_over(self, part: int, lines: list[RawLine], end: Mark) -> None:
        self._is_wanted[part].acquire()
        if self._stopped.is_set():
            return
        with self._stored:
            self._unstored += 1
        if self.probes or lines[0].number <= self._prepares_until:
            probes, others = self._encoder.probes(lines) if self.probes else ([], lines)
            self._queues[part].put(Chunk(others, probes, end))
        else:
            batch = encoded(self._encoder, lines, end, skips_bad=self._skips_bad)
            self._queues[part].put(batch)
        if self._is_first:
            self._is_first = False
            if self._encoder.spec.keeps_line_hash:
                self._is_probing_decided.wait()


def decoded(
    encoder: Encoder, lines: Sequence[RawLine], *, skips_bad: bool
) -> tuple[list[DecodedLine], list[LineError]]:
    """The decoded lines and the rejected ones. Raises: LineError, unless bad lines are skipped."""
    rejected: list[LineError] = []
    return encoder.decode(lines, _rejecting(rejected, skips_bad)), rejected


def encoded(encoder: Encoder, lines: Sequence[RawLine], end: Mark, *, skips_bad: bool) -> Batch:
    """The batch of these lines. Raises: LineError, unless bad lines are skipped."""
    rows, rejected = decoded(encoder, lines, skips_bad=skips_bad)
    return batch_of(encoder, rows, rejected, end, skips_bad=skips_bad)


def batch_of(
    encoder: Encoder,
    rows: Sequence[DecodedLine],
    rejected: list[LineError],
    end: Mark,
    *,
    skips_bad: bool,
) -> Batch:
    batch = encoder.encode(rows, _rejecting(rejected, skips_bad))
    batch.rejected, batch.end = sorted(rejected, key=lambda error: error.line), end
    return batch


def _rejecting(rejected: list[LineError], skips_bad: bool) -> Reject:
    return (lambda error: rejected.append(error.bare())) if skips_bad else refuse


_loads = 0
_usual = sys.getswitchinterval(), gc.get_threshold()
_counting = threading.Lock()


@contextmanager
def busy_interpreter() -> Iterator[None]:
    """Sets the interpreter up for loads, as long as any is running.

    The thread that talks to the database needs the interpreter often and briefly: waiting 5 ms for
    it each time cost a tenth of the rows per second. The garbage collector, which walks all rows of
    a batch again and again and finds nothing, took a quarter of the encoder's time (2 cores,
    Python 3.11).
    """
    global _loads  # noqa: PLW0603  (the settings are global, too)
    with _counting:
        _loads += 1
        sys.setswitchinterval(0.0005)
        gc.set_threshold(200_000, 10, 10)
    try:
        yield
    finally:
        with _counting:
            _loads -= 1
            if not _loads:
                sys.setswitchinterval(_usual[0])
                gc.set_threshold(*_usual[1])
