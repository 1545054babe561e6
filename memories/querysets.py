"""Reusable filters for memories, and the statements that write their history."""

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

_INSERT_HISTORY = sql.SQL("""
INSERT INTO memories_memoryhistory (
    id, organization_id, memory_id, version, content, memory_metadata, importance, change_type,
    changed_by_id, created_by_id, last_updated_by_id, created_at, updated_at, reason, metadata,
    is_deleted)
SELECT agentmem_uuid7(), c.organization_id, c.id, c.version, c.content, c.metadata, c.importance,
    %s, %s, %s, %s, %s, %s, '', '{{}}', false
FROM ({changed}) AS c (organization_id, id, version, content, metadata, importance)
""")
_HISTORY_COLUMNS = ("organization_id", "id", "version", "content", "metadata", "importance")
# For the loader: {changed} selects (id, change_type, reason) of changed memories. Parameters: by,
# by, by, at, at, those of {changed}, organization.
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
    # The worker adds restored rows to the HNSW index: for a hundred thousand that takes minutes.
    set_by_move = {"is_indexed": False}

    def unexpired(self) -> Self:
        """Excludes live rows past their `expires_at`: they are hidden until the sweep deletes them.
        (Rows in the trash do not expire.)"""
        return self.exclude(is_deleted=False, expires_at__lte=Now())

    def expired(self) -> Self:
        return self.filter(expires_at__lte=Now())

    def by_expiry(self, wanted: str | None) -> Self:
        """`only` expired rows, all rows (`include`), or by default the unexpired ones."""
        if wanted == "include":
            return self
        return self.expired() if wanted == "only" else self.unexpired()

    def matching(self, words: str, *, languages: Sequence[str] = LANGUAGES) -> Self:
        """Full-text search in speaker, content and context, with the syntax of web search engines,
        for each row in its own language."""
        matches = models.Q()
        for name in languages:
            query = SearchQuery(words, config=name, search_type="websearch")
            matches |= models.Q(language=name, document=query)
        return self.filter(matches)

    def write_history(
        self, change_type: str, *, organization: Any, changed_by_id: UUID | None, at: datetime
    ) -> None:
        changed = self.order_by().values_list(*_HISTORY_COLUMNS)
        compiled, parameters = changed.query.sql_with_params()
        by = changed_by_id
        with connection.cursor() as cursor:
            cursor.execute(
                _INSERT_HISTORY.format(changed=sql.SQL(compiled)),
                [change_type, by, by, by, at, at, *parameters],
            )


class MemoryManager(models.Manager.from_queryset(MemoryQuerySet)):  # type: ignore[misc]
    def get_queryset(self) -> Any:
        # A vector is 1.5 KB and rarely needed; only the index needs the search document.
        return super().get_queryset().defer("embedding", "document")
