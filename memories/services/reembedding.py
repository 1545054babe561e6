"""Rewrites all memories in batches, while they are searched: vectors by another encoder, or search
documents in another language. The rows themselves show which are done, so an interrupted run
continues where it stopped.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import connection
from django.db.models import Q

from accounts.models import Organization
from accounts.organization_settings import language_of
from accounts.tenancy import tenant
from memories.embeddings import Encoder, are_readable, encode_texts, get_encoder, read_halfvecs
from memories.models import Memory, embedded_text
from memories.services.embedding import forget_vectors
from memories.services.indexing import index_vectors
from memories.services.pending import MAX_COUNTED, Encoded, Row, encode_rows, write_vectors

BATCH_SIZE = 256
ROWS_PER_WALK = 5000
MAX_REFUSED = 1000
INDEX_BATCHES = 2  # at least the rows written: every search scans those that are not indexed

ROWS_PER_CHECK = 1000
READY, UNREADABLE = Memory.EmbeddingState.READY, Memory.EmbeddingState.UNREADABLE
_TRIED = (READY, UNREADABLE)  # by an encoder; another one may read them
_COLUMNS = ("pk", "hash", "speaker", "content")
_SAME_VECTOR = 0.99  # cosine, at least: half precision and the processor change it a little

OnBatch = Callable[[int], None]  # rows of this batch


@dataclass(slots=True)
class Reembedded:
    rows: int = 0
    unreadable: int = 0  # the encoder cannot read these: they have no vector
    refused: int = 0  # the encoder failed on these: they keep their old vectors


def count_to_reembed(organization: Organization, *, encoder: str = "") -> int:
    """At most twice MAX_COUNTED."""
    target = get_encoder(encoder).name
    with tenant(organization):
        others = [_of(organization, s).exclude(embedding_model=target).order_by() for s in _TRIED]
        return sum(rows.values("pk")[:MAX_COUNTED].count() for rows in others)


def reembed(
    organization: Organization, *, encoder: str = "", on_batch: OnBatch = lambda rows: None
) -> Reembedded:
    """Re-embeds live memories that have another encoder's vector, or that it could not read. The
    old vector stays until the new one replaces it. Raises: EncoderError."""
    target = get_encoder(encoder).name
    done = Reembedded()
    for state in _TRIED:
        for other in _models(organization, state, but=target):
            refused: list[Any] = []  # a few, to be skipped: they stay in the result of the query
            while rows := _next_rows(organization, state, other, refused):
                encoded = encode_rows(rows, organization=organization, encoder=encoder)
                with tenant(organization):
                    written = write_vectors(encoded, organization=organization, replaced=other)
                index_vectors(organization, batches=INDEX_BATCHES)
                refused += [row.id for row, _ in encoded.failures]
                done.rows += written.embedded
                done.unreadable += written.unreadable
                done.refused += len(encoded.failures)
                on_batch(sum(written))
                if len(refused) >= MAX_REFUSED:
                    break
    return done


def _models(organization: Organization, state: str, *, but: str) -> Iterator[str]:
    """The encoders of its rows in that state, found by one index probe each."""
    last: str | None = None
    while True:
        with tenant(organization):
            rows = _of(organization, state).order_by("embedding_model")
            if last is not None:
                rows = rows.filter(embedding_model__gt=last)
            last = rows.values_list("embedding_model", flat=True).first()
        if last is None:
            return
        if last != but:
            yield last


def _next_rows(organization: Organization, state: str, model: str, refused: list[Any]) -> list[Row]:
    with tenant(organization):
        rows = _of(organization, state).filter(embedding_model=model).exclude(pk__in=refused)
        # In the order of the index memories_memory_vectors, so that done rows are not read again.
        page = rows.order_by("is_indexed").values_list(*_COLUMNS)
        return [_row(*values) for values in page[:BATCH_SIZE]]


def _row(pk: Any, content_hash: Any, speaker: str | None, content: str) -> Row:
    return Row(pk, bytes(content_hash), (speaker, content))


def _of(organization: Organization, state: str) -> Any:
    rows = Memory.objects.for_organization(organization).live()
    return rows.filter(embedding_state=state)


def clear_unreadable_vectors(
    organization: Organization, *, encoder: str = "", on_batch: OnBatch = lambda rows: None
) -> int:
    """Removes the vector of live memories that the encoder embedded but cannot read (older versions
    did not check that); returns how many. `on_batch` gets the rows checked.

    A vector that a caller stored under the encoder's name stays: the encoder gives another one for
    that text. Raises: EncoderError.
    """
    model = get_encoder(encoder)
    rows = Memory.objects.for_organization(organization).live()
    rows = rows.filter(embedding_state=READY, embedding_model=model.name)
    cleared, rest = 0, rows
    while True:
        with tenant(organization):
            query = rest.order_by("created_at", "id").values_list("created_at", *_COLUMNS)
            page = list(query[:ROWS_PER_CHECK])
        if not page:
            return cleared
        at, last, *_ = page[-1]
        # (The first condition is an index range, the second a filter within it.)
        rest = rows.filter(created_at__gte=at).filter(Q(created_at__gt=at) | Q(pk__gt=last))
        checked = [_row(*values) for _, *values in page]
        contents = [embedded_text(None, row.utterance[1]) for row in checked]
        readable = are_readable(contents, model)
        unreadable = [row for row, is_fine in zip(checked, readable, strict=True) if not is_fine]
        if unreadable:
            cleared += _clear_vectors(unreadable, model, organization)
        on_batch(len(page))


def _clear_vectors(rows: Sequence[Row], model: Encoder, organization: Organization) -> int:
    """Of rows whose vector is the encoder's own; cached vectors of all of them go, too."""
    vectors = encode_texts([embedded_text(*row.utterance) for row in rows], model)
    by_id = {row.id: (row, vector) for row, vector in zip(rows, vectors, strict=True)}
    with tenant(organization):
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT id, halfvec_send(embedding) FROM memories_memory "
                "WHERE organization_id = %s AND id = ANY (%s) AND embedding_state = 'ready'",
                [organization.pk, list(by_id)],
            )
            stored = cursor.fetchall()
        stored_vectors = read_halfvecs([sent for _, sent in stored])
        pairs = [
            (*by_id[pk], vector) for (pk, _), vector in zip(stored, stored_vectors, strict=True)
        ]
        own = [row for row, encoded, vector in pairs if encoded @ vector >= _SAME_VECTOR]
        encoded = Encoded(model.name, [(row, None) for row in own], [])
        written = write_vectors(encoded, organization=organization, replaced=model.name)
        hashes = [row.hash for row in rows]
        forget_vectors(hashes, organization=organization, encoder=model.name)
    return written.unreadable


def requeue_failed(organization: Organization, *, on_batch: OnBatch = lambda rows: None) -> int:
    """Makes failed memories pending again, as if they were new; returns how many."""
    requeued = _walk(
        organization,
        Memory.objects.for_organization(organization).filter(
            embedding_state=Memory.EmbeddingState.FAILED
        ),
        on_batch,
        embedding_state=Memory.EmbeddingState.PENDING,
        embedding_attempts=0,
        embedding_error="",
        embedding_due_at=None,
    )
    if requeued:
        with tenant(organization), connection.cursor() as cursor:
            cursor.execute("SELECT pg_notify('agentmem_embed', %s)", [str(organization.pk)])
    return requeued


def rewrite_language(organization: Organization, *, on_batch: OnBatch = lambda rows: None) -> int:
    """Rebuilds search documents in the organization's language, in the trash too; returns how
    many."""
    language = language_of(organization.settings)
    rows = Memory.objects.for_organization(organization).exclude(language=language)
    return _walk(organization, rows, on_batch, language=language)


def _walk(organization: Organization, rows: Any, on_batch: OnBatch, **values: Any) -> int:
    """Sets `values` on `rows`, which then no longer match the query. In the order of the index
    memories_memory_created, one transaction per batch; no row is read twice."""
    done, after = 0, None
    while True:
        with tenant(organization):
            rest = rows if after is None else rows.filter(created_at__gte=after)
            query = rest.order_by("created_at", "id").values_list("created_at", "pk")
            page = list(query[:ROWS_PER_WALK])
            if not page:
                return done
            written = rows.filter(pk__in=[pk for _, pk in page]).update(**values)
        after = page[-1][0]
        done += written
        on_batch(written)
