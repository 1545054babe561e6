"""The loop that embeds pending memories: a batch of each organization in turn, then wait."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from uuid import UUID

import psycopg
from django.db import Error, close_old_connections, connection
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import sql

from accounts.errors import Forbidden, Unavailable
from accounts.models import Organization
from agentmem_site.db.refusals import connection_failure
from memories.embeddings import EncoderError
from memories.services.embed_progress import note_visit
from memories.services.embedding import EMBED_CHANNEL
from memories.services.indexing import index_vectors, large_organizations
from memories.services.pending import claim, encode_rows, organizations_with_pending
from memories.services.vector_index import index_state, repair_index

POLL_S = 5.0  # without a notification: rows whose lease has expired, or whose next attempt is due
MAX_PAUSE_S = 60.0
INDEX_EVERY_S = 60.0  # between looks for large organizations, once none has vectors to index
VISIT_EVERY_S = 5.0  # at most so often a worker notes for the console that it is running
# A killed load may be run again within this time; then a worker builds the missing index.
REPAIR_AFTER_S = 600.0

logger = logging.getLogger(__name__)


class Stopped(KeyboardInterrupt):
    """The worker was asked to stop. (psycopg cancels a running statement on KeyboardInterrupt.)"""


@dataclass(slots=True)
class Work:
    """What a worker has done so far."""

    embedded: int = 0
    unreadable: int = 0  # memories that the encoder cannot read
    failures: int = 0  # attempts, not memories
    indexed: int = 0  # vectors added to the HNSW index
    started: float = field(default_factory=time.monotonic)

    @property
    def per_second(self) -> float:
        return self.embedded / max(time.monotonic() - self.started, 1e-6)


class EmbedWorker:
    """Embeds the pending memories of all organizations, or of one. Any number at once."""

    def __init__(
        self,
        *,
        batch_size: int = 256,
        lease_s: float = 60.0,
        organization: Organization | None = None,
        on_batch: Callable[[Work], None] = lambda work: None,
    ) -> None:
        self._batch_size, self._lease_s, self._only = batch_size, lease_s, organization
        self._on_batch = on_batch
        self.work = Work()
        self._is_stopping = self._may_interrupt = False
        self._to_index: list[Organization] = []
        self._index_round_at = -INDEX_EVERY_S
        self._without_index_since: float | None = None
        self._may_repair = True
        self._visits: dict[UUID, tuple[float, bool]] = {}  # when, and whether it failed

    def drain(self) -> None:
        """Runs until nothing is due or waits for the index. Raises: EncoderError, Stopped."""
        while self._round():
            pass

    def run(self) -> None:
        """Runs until it is stopped; survives outages of database and encoder. Raises: Stopped."""
        listener = Listener()
        pause_s = 0.0
        while True:
            try:
                has_worked = self._round()
                if pause_s:
                    logger.warning("Memories are being embedded again.")
                pause_s = 0.0
            except (EncoderError, Error) as error:
                if not pause_s:
                    logger.warning("No memory can be embedded for now: %s", _sentence(error))
                pause_s = min(max(2 * pause_s, 1.0), MAX_PAUSE_S)
                close_old_connections()
                with self._interruptible():
                    time.sleep(pause_s)
                continue
            with self._interruptible():
                listener.wait(0 if has_worked else POLL_S)

    def stop(self) -> None:
        """Raises Stopped at once if nothing is left half done, else lets the worker raise it soon.
        For a signal handler, in the thread that runs the worker."""
        self._is_stopping = True
        if self._may_interrupt and not connection.in_atomic_block:
            self._may_interrupt = False
            raise Stopped

    def _round(self) -> bool:
        """A round of each, so that the index is filled even while memories keep coming."""
        has_embedded = self._embed_round()
        return self._index_round() or has_embedded

    def _embed_round(self) -> bool:
        """One batch of each organization in turn, so that none waits for a large one."""
        organizations = organizations_with_pending() if self._only is None else [self._only]
        has_worked = False
        for organization in organizations:
            has_worked |= self._one_batch(organization)
        return has_worked

    def _index_round(self) -> bool:
        """Adds one batch of each large organization to the index."""
        if not self._to_index and time.monotonic() - self._index_round_at >= INDEX_EVERY_S:
            self._index_round_at = time.monotonic()
            self._repair_index()
            self._to_index = large_organizations() if self._only is None else [self._only]
        unfinished = []
        for organization in self._to_index:
            if self._is_stopping:
                raise Stopped
            if moved := index_vectors(organization):
                self.work.indexed += moved
                self._on_batch(self.work)
                unfinished.append(organization)
        self._to_index = unfinished
        return bool(unfinished)

    def _repair_index(self) -> None:
        """Builds the index that a killed load left missing, unless somebody else does.

        This worker embeds nothing meanwhile. Without the index every search of a large
        organization would be slow until somebody notices."""
        if not self._may_repair or index_state() == "valid":
            self._without_index_since = None
            return
        now = time.monotonic()
        self._without_index_since = self._without_index_since or now
        if now - self._without_index_since < REPAIR_AFTER_S:
            return
        try:
            with self._interruptible():
                repair_index()
            logger.warning("The index of vectors was missing; it has been built.")
        except Forbidden as error:
            self._may_repair = False
            logger.warning("%s", error)
        except Unavailable:
            pass  # a load or another worker builds it

    def _one_batch(self, organization: Organization) -> bool:
        if self._is_stopping:
            raise Stopped
        self._note_visit(organization)
        claimed = claim(organization=organization, limit=self._batch_size, lease_s=self._lease_s)
        if claimed is None:
            return False
        try:
            with self._interruptible():
                encoded = encode_rows(claimed.rows, organization=organization)
            written = claimed.settle(encoded)
        except BaseException as error:
            with suppress(Error):  # the lease expires in any case
                claimed.release()
                if isinstance(error, EncoderError):
                    self._note_visit(organization, is_failing=True)
            raise
        self._note_visit(organization, is_failing=False)
        self.work.embedded += written.embedded
        self.work.unreadable += written.unreadable
        self.work.failures += len(encoded.failures)
        self._on_batch(self.work)
        return True

    def _note_visit(self, organization: Organization, *, is_failing: bool | None = None) -> None:
        """Written every VISIT_EVERY_S, or when `is_failing` changes. (None: unchanged.)"""
        at, was_failing = self._visits.get(organization.pk, (-VISIT_EVERY_S, False))
        is_failing = was_failing if is_failing is None else is_failing
        now = time.monotonic()
        if now - at >= VISIT_EVERY_S or is_failing != was_failing:
            note_visit(organization, is_failing=is_failing)
            self._visits[organization.pk] = now, is_failing

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """A signal may raise Stopped inside: while encoding or waiting, never while writing."""
        self._may_interrupt = True
        try:
            if self._is_stopping:
                raise Stopped
            yield
        finally:
            self._may_interrupt = False


class Listener:
    """Waits for notifications of new memories: LISTEN on its own connection. Where that fails (a
    restart, a pooler) it only waits, and the worker polls every few seconds."""

    def __init__(self) -> None:
        self._connection: BaseDatabaseWrapper | None = None

    def wait(self, seconds: float) -> None:
        """Waits for the next notification, at most this long."""
        try:
            if self._connection is None:
                self._listen()  # returns at once: earlier notifications are lost
                return
            for _ in self._connection.connection.notifies(timeout=seconds, stop_after=1):
                pass
        except (Error, psycopg.Error):
            self.close()
            time.sleep(min(seconds, 1.0))

    def _listen(self) -> None:
        self._connection = connection.copy()
        with self._connection.cursor() as cursor:
            cursor.execute(sql.SQL("LISTEN {}").format(sql.Identifier(EMBED_CHANNEL)))

    def close(self) -> None:
        if self._connection is not None:
            with suppress(Error, psycopg.Error):
                self._connection.close()
        self._connection = None


def _sentence(error: Exception) -> str:
    if isinstance(error, EncoderError):
        return str(error)
    failure = connection_failure(error)
    return failure.explanation if failure else "The database cannot be reached."
