"""All memories anew, a batch at a time, while they are being searched: vectors by another encoder,
search documents in another language. Which rows are done stands in the rows, so that what was
interrupted goes on where it stopped.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from django.db import connection

from accounts.models import Organization
from accounts.organization_settings import language_of
from accounts.tenancy import tenant
from memories.embeddings import get_encoder
from memories.models import Memory
from memories.services.indexing import index_vectors
from memories.services.pending import MAX_COUNTED, Row, encode_rows, write_vectors

BATCH_SIZE = 256
ROWS_PER_WALK = 5000
MAX_REFUSED = 1000
INDEX_BATCHES = 2  # at least what was written: what is not in the index is scanned by each search

OnBatch = Callable[[int], None]  # rows that this batch has done


@dataclass(slots=True)
class Reembedded:
    rows: int = 0
    refused: int = 0  # texts that the encoder does not take: these rows keep their old vectors


def count_to_reembed(organization: Organization, *, encoder: str = "") -> int:
    """At most MAX_COUNTED."""
    target = get_encoder(encoder).name
    with tenant(organization):
        others = _ready(organization).exclude(embedding_model=target).order_by()
        return int(others.values("pk")[:MAX_COUNTED].count())


def reembed(
    organization: Organization, *, encoder: str = "", on_batch: OnBatch = lambda rows: None
) -> Reembedded:
    """Gives the live memories whose vector is another encoder's one of this encoder's. The old
    vector stays until the new one takes its place. Raises: EncoderError."""
    target = get_encoder(encoder).name
    done = Reembedded()
    for other in _models(organization, but=target):
        refused: list[Any] = []  # a few: the walk would meet them for ever
        while rows := _next_rows(organization, other, refused):
            encoded = encode_rows(rows, organization=organization, encoder=encoder)
            with tenant(organization):
                written = write_vectors(encoded, organization=organization, replaced=other)
            index_vectors(organization, batches=INDEX_BATCHES)
            refused += [row.id for row, _ in encoded.failures]
            done.rows += written
            done.refused += len(encoded.failures)
            on_batch(written)
            if len(refused) >= MAX_REFUSED:
                break
    return done


def _models(organization: Organization, *, but: str) -> Iterator[str]:
    """The encoders that its vectors are of, by an index probe each."""
    last: str | None = None
    while True:
        with tenant(organization):
            rows = _ready(organization).order_by("embedding_model")
            if last is not None:
                rows = rows.filter(embedding_model__gt=last)
            last = rows.values_list("embedding_model", flat=True).first()
        if last is None:
            return
        if last != but:
            yield last


def _next_rows(organization: Organization, model: str, refused: list[Any]) -> list[Row]:
    with tenant(organization):
        rows = _ready(organization).filter(embedding_model=model).exclude(pk__in=refused)
        # The order is that of the index memories_memory_vectors: what is done is not read again.
        page = rows.order_by("is_indexed").values_list("pk", "hash", "speaker", "content")
        return [
            Row(pk, bytes(content_hash), (speaker, content))
            for pk, content_hash, speaker, content in page[:BATCH_SIZE]
        ]


def _ready(organization: Organization) -> Any:
    rows = Memory.objects.for_organization(organization).live()
    return rows.filter(embedding_state=Memory.EmbeddingState.READY)


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
    language = language_of(organization)
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
