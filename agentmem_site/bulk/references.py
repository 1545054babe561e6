"""The ids of the rows that lines refer to: looked up in sets, created if missing, kept between
batches."""

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db import connection
from psycopg import sql

from agentmem_site.bulk import binary
from agentmem_site.bulk import sql as statements
from agentmem_site.bulk.lines import Known, Name
from agentmem_site.bulk.spec import LoadSpec, Reference
from agentmem_site.bulk.sql import Stamp
from agentmem_site.db.ids import uuid7_at
from agentmem_site.db.keys import as_id

_MAX_KNOWN = 200_000  # per column


class References:
    """What the lines of one spec refer to, in one organization. With `locks`, rows that are found
    stay out of the trash until the transaction ends."""

    def __init__(self, spec: LoadSpec, *, locks: bool = False) -> None:
        self._locks = locks
        self.known: Known = {reference.column: {} for reference in spec.references}
        # (column, name) of rows in the trash; they are in `known` as well.
        self.deleted: set[tuple[str, Name]] = set()
        self.created: dict[str, int] = {}  # rows by model

    def forget(self) -> None:
        """Called after a rollback: rows that the transaction created do not exist."""
        self.deleted.clear()
        for known in self.known.values():
            known.clear()

    def find(self, reference: Reference, names: Sequence[Name], stamp: Stamp) -> list[Name]:
        """Looks up the ids of `names`. Returns those that have no row."""
        known = self.known[reference.column]
        if len(known) > _MAX_KNOWN:
            known.clear()
        unknown = [name for name in names if name not in known]
        if unknown and reference.within:
            self._find_within(reference, unknown, stamp)  # type: ignore[arg-type]
        elif unknown:
            self._find(reference, unknown, stamp)  # type: ignore[arg-type]
        return [name for name in unknown if name not in known]

    def restored(self, reference: Reference, names: Sequence[Name]) -> None:
        """Records that these are no longer in the trash."""
        self.deleted -= {(reference.column, name) for name in names}

    def create(self, reference: Reference, names: Mapping[Any, int], stamp: Stamp) -> None:
        """Creates rows with these keys. `names` has the number of the first line that names each,
        which determines its `created_at`."""
        if not names:
            return
        started_us = binary.microseconds(stamp.started)
        rows = [
            (
                UUID(bytes=uuid7_at(started_us + number, int.from_bytes(os.urandom(8)))),
                name,
                stamp.started + timedelta(microseconds=number),
            )
            for name, number in names.items()
        ]
        with connection.cursor() as cursor:
            cursor.execute(statements.create_references(reference, stamp, rows))
            model = str(reference.model._meta.model_name)
            self.created[model] = self.created.get(model, 0) + cursor.rowcount
        self._find(reference, list(names), stamp)

    def _find(self, reference: Reference, names: Sequence[str], stamp: Stamp) -> None:
        rows = _rows(
            statements.find_references(reference, stamp.organization_id, names, locks=self._locks)
        )
        by_key = {key: row_id for key, row_id, _ in rows}
        is_deleted = {row_id: deleted for _, row_id, deleted in rows}
        for name in names:
            own_id = as_id(name)
            row_id: Any = own_id if own_id in is_deleted else by_key.get(name)
            if row_id is not None:
                self.known[reference.column][name] = binary.uuid(row_id)
                if is_deleted[row_id]:
                    self.deleted.add((reference.column, name))

    def _find_within(
        self, reference: Reference, names: Sequence[tuple[str, str]], stamp: Stamp
    ) -> None:
        outer_ids = self.known[reference.within]
        pairs = {(outer, name): (UUID(bytes=outer_ids[outer][4:]), name) for outer, name in names}
        rows = _rows(
            statements.find_references_within(
                reference, stamp.organization_id, list(pairs.values())
            )
        )
        by_pair = {(outer_id, key): (row_id, deleted) for outer_id, key, row_id, deleted in rows}
        for name, pair in pairs.items():
            if pair in by_pair:
                row_id, is_deleted = by_pair[pair]
                self.known[reference.column][name] = binary.uuid(row_id)
                if is_deleted:
                    self.deleted.add((reference.column, name))


def _rows(statement: sql.Composable) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall())
