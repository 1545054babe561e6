"""The words in which lists of memories are asked for."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Self
from uuid import UUID

from django.contrib.postgres.search import SearchQuery
from django.db import connection, models
from django.db.models.functions import Now
from psycopg import sql

from accounts.organization_settings import LANGUAGES
from accounts.tenancy import TenantQuerySet

_INTO_HISTORY = sql.SQL("""
INSERT INTO memories_memoryhistory (
    id, organization_id, memory_id, version, content, memory_metadata, importance, change_type,
    changed_by_id, created_by_id, last_updated_by_id, created_at, updated_at, reason, metadata,
    is_deleted)
SELECT agentmem_uuid7(), c.organization_id, c.id, c.version, c.content, c.metadata, c.importance,
    %s, %s, %s, %s, %s, %s, '', '{{}}', false
FROM ({changed}) AS c (organization_id, id, version, content, metadata, importance)
""")
_OF_HISTORY = ("organization_id", "id", "version", "content", "metadata", "importance")
# The loader's: {changed} gives (id, change_type, reason) of memories as they are now. Parameters:
# who, who, who, when, when, those of {changed}, organization.
WRITE_HISTORY = sql.SQL("""
INSERT INTO memories_memoryhistory (
    id, organization_id, memory_id, version, change_type, reason, content, memory_metadata,
    importance, changed_by_id, created_by_id, last_updated_by_id, created_at, updated_at,
    metadata, is_deleted)
SELECT agentmem_uuid7(), m.organization_id, m.id, m.version, c.change_type, c.reason, m.content,
    m.metadata, m.importance, %s, %s, %s, %s, %s, '{{}}', false
FROM memories_memory m JOIN ({changed}) AS c (id, change_type, reason)
    ON c.id = m.id
WHERE m.organization_id = %s
""")


class MemoryQuerySet(TenantQuerySet):
    # What comes back is put into the HNSW index by the worker: a hundred thousand at once would
    # take minutes.
    set_by_move = {"is_indexed": False}

    def unexpired(self) -> Self:
        """Without live rows past their `expires_at`: nobody is shown them, and the sweep takes
        them. (What lies in the trash is there whatever it says.)"""
        return self.exclude(is_deleted=False, expires_at__lte=Now())

    def expired(self) -> Self:
        return self.filter(expires_at__lte=Now())

    def by_expiry(self, wanted: str | None) -> Self:
        """`only` what has expired, or what has too (`include`); without it otherwise."""
        if wanted == "include":
            return self
        return self.expired() if wanted == "only" else self.unexpired()

    def matching(self, words: str, *, languages: Sequence[str] = LANGUAGES) -> Self:
        """Full text: speaker, content and context, as a person types into a search box, each row
        in its own of these languages."""
        matches = models.Q()
        for name in languages:
            query = SearchQuery(words, config=name, search_type="websearch")
            matches |= models.Q(language=name, document=query)
        return self.filter(matches)

    def write_history(
        self, change_type: str, *, organization: Any, changed_by_id: UUID | None, at: datetime
    ) -> None:
        changed = self.order_by().values_list(*_OF_HISTORY)
        compiled, parameters = changed.query.sql_with_params()
        by = changed_by_id
        with connection.cursor() as cursor:
            cursor.execute(
                _INTO_HISTORY.format(changed=sql.SQL(compiled)),
                [change_type, by, by, by, at, at, *parameters],
            )


class MemoryManager(models.Manager.from_queryset(MemoryQuerySet)):  # type: ignore[misc]
    def get_queryset(self) -> Any:
        # A vector is 1.5 KB and nobody reads it; the search document is for the index alone.
        return super().get_queryset().defer("embedding", "document")
