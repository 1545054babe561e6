"""All memories anew, a batch at a time, while they are being searched: vectors by another encoder,
search documents in another language. Which rows are done stands in the rows, so that what was
interrupted goes on where it stopped.
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
INDEX_BATCHES = 2  # at least what was written: what is not in the index is scanned by each search

ROWS_PER_LOOK = 1000
READY, UNREADABLE = Memory.EmbeddingState.READY, Memory.EmbeddingState.UNREADABLE
_TRIED = (READY, UNREADABLE)  # by an encoder; another may do better
_READ = ("pk", "hash", "speaker", "content")
_THE_SAME = 0.99  # cosine of a text's vector to itself: half precision, another processor

OnBatch = Callable[[int], None]  # rows that this batch has done


@dataclass(slots=True)
class Reembedded:
    rows: int = 0
    unreadable: int = 0  # the encoder knows nearly nothing of these: they have no vector
    refused: int = 0  # texts that the encoder does not take: these rows keep their old vectors


def count_to_reembed(organization: Organization, *, encoder: str = "") -> int:
    """At most twice MAX_COUNTED."""
    target = get_encoder(encoder).name
    with tenant(organization):
        others = [_of(organization, s).exclude(embedding_model=target).order_by() for s in _TRIED]
        return sum(rows.values("pk")[:MAX_COUNTED].count() for rows in others)


def reembed(
    organization: Organization, *, encoder: str = "", on_batch: OnBatch = lambda rows: None
) -> Reembedded:
    """Gives the live memories whose vector is another encoder's, or that it could not read, one of
    this encoder's. The old vector stays until the new one takes its place. Raises: EncoderError."""
    target = get_encoder(encoder).name
    done = Reembedded()
    for state in _TRIED:
        for other in _models(organization, state, but=target):
            refused: list[Any] = []  # a few: the walk would meet them for ever
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
    """The encoders that its rows of that state are of, by an index probe each."""
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
        # The order is that of the index memories_memory_vectors: what is done is not read again.
        page = rows.order_by("is_indexed").values_list(*_READ)
        return [_row(*values) for values in page[:BATCH_SIZE]]


def _row(pk: Any, content_hash: Any, speaker: str | None, content: str) -> Row:
    return Row(pk, bytes(content_hash), (speaker, content))


def _of(organization: Organization, state: str) -> Any:
    rows = Memory.objects.for_organization(organization).live()
    return rows.filter(embedding_state=state)


def clear_unreadable_vectors(
    organization: Organization, *, encoder: str = "", on_batch: OnBatch = lambda rows: None
) -> int:
    """Takes the vector from live memories that the encoder has embedded, before it was asked
    whether it can read them, and cannot; how many. `on_batch` is told the rows looked at.

    A vector that a caller brought under the encoder's name stays: it is not the one that the
    encoder gives for that text. Raises: EncoderError.
    """
    model = get_encoder(encoder)
    rows = Memory.objects.for_organization(organization).live()
    rows = rows.filter(embedding_state=READY, embedding_model=model.name)
    mended, rest = 0, rows
    while True:
        with tenant(organization):
            page = rest.order_by("created_at", "id").values_list("created_at", *_READ)
            found = list(page[:ROWS_PER_LOOK])
        if not found:
            return mended
        at, last, *_ = found[-1]
        # (The first condition is a range of the index, the second a filter within it.)
        rest = rows.filter(created_at__gte=at).filter(Q(created_at__gt=at) | Q(pk__gt=last))
        read = [_row(*values) for _, *values in found]
        contents = [embedded_text(None, row.said[1]) for row in read]
        readable = are_readable(contents, model)
        unread = [row for row, it_is in zip(read, readable, strict=True) if not it_is]
        if unread:
            mended += _take_vectors(unread, model, organization)
        on_batch(len(found))


def _take_vectors(rows: Sequence[Row], model: Encoder, organization: Organization) -> int:
    """From those whose vector is the encoder's own; what it cached goes too."""
    made = encode_texts([embedded_text(*row.said) for row in rows], model)
    by_id = {row.id: (row, vector) for row, vector in zip(rows, made, strict=True)}
    with tenant(organization):
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT id, halfvec_send(embedding) FROM memories_memory "
                "WHERE organization_id = %s AND id = ANY (%s) AND embedding_state = 'ready'",
                [organization.pk, list(by_id)],
            )
            found = cursor.fetchall()
        there = read_halfvecs([sent for _, sent in found])
        pairs = [(*by_id[pk], vector) for (pk, _), vector in zip(found, there, strict=True)]
        own = [row for row, mine, vector in pairs if mine @ vector >= _THE_SAME]
        encoded = Encoded(model.name, [(row, None) for row in own], [])
        written = write_vectors(encoded, organization=organization, replaced=model.name)
        hashes = [row.hash for row in rows]
        forget_vectors(hashes, organization=organization, encoder=model.name)
    return written.unreadable


def requeue_failed(organization: Organization, *, on_batch: OnBatch = lambda rows: None) -> int:
    """Memories that could not be embedded are pending again, as if they were new; how many."""
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
    """Search documents in the organization's language, of the trash too; how many."""
    language = language_of(organization.settings)
    rows = Memory.objects.for_organization(organization).exclude(language=language)
    return _walk(organization, rows, on_batch, language=language)


def _walk(organization: Organization, rows: Any, on_batch: OnBatch, **values: Any) -> int:
    """Sets `values` on `rows`, which are none of them then: in the order of the index
    memories_memory_created, a transaction per batch, and no row is read twice."""
    done, after = 0, None
    while True:
        with tenant(organization):
            rest = rows if after is None else rows.filter(created_at__gte=after)
            page = rest.order_by("created_at", "id").values_list("created_at", "pk")
            found = list(page[:ROWS_PER_WALK])
            if not found:
                return done
            written = rows.filter(pk__in=[pk for _, pk in found]).update(**values)
        after = found[-1][0]
        done += written
        on_batch(written)
