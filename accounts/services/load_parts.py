"""Checkpoints of loads.

A job is a load with a name. The checkpoint of each part is written in the transactions of its
batches, by compare-and-set: after a crash it says exactly what is committed, and if two processes
load the same job, one of them fails.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from hashlib import sha256
from typing import Any

from django.db import connection
from django.utils import timezone

from accounts.actors import Actor
from accounts.models import LoadPart, Organization
from accounts.tenancy import tenant
from agentmem_site.bulk.lines import Mark
from agentmem_site.bulk.report import Tally

_MAX_NAME = 255
_LOCK_TIMEOUT_S = 10.0  # PostgreSQL ends the connection of a killed loader within this time


class JobTaken(Exception):
    """Another process is loading this job."""


class LoadParts:
    """The checkpoint of one job (agentmem_site/bulk/loader.py)."""

    def __init__(self, job: str, *, organization: Organization, actor: Actor, resource: str):
        self._given = job
        name = f"{resource} {job}"  # one name may serve several resources
        self._job = name if len(name) <= _MAX_NAME else sha256(name.encode()).hexdigest()
        self._organization = organization
        self._actor = actor
        self._resource = resource

    @property
    def _rows(self) -> Any:
        return LoadPart.objects.for_organization(self._organization).filter(job=self._job)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other processes from loading this job.

        The advisory lock belongs to a transaction on its own connection: it ends with the process,
        and works behind a transaction pooler too. Raises: JobTaken.
        """
        key = sha256(f"{self._organization.pk} {self._job}".encode()).digest()[:8]
        own = connection.copy()
        try:
            with own.cursor() as cursor:
                cursor.execute("BEGIN")
                cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
                deadline = time.monotonic() + _LOCK_TIMEOUT_S
                while True:
                    cursor.execute(
                        "SELECT pg_try_advisory_xact_lock(%s)", [int.from_bytes(key, signed=True)]
                    )
                    if cursor.fetchone()[0]:
                        break
                    if time.monotonic() > deadline:
                        raise JobTaken(f"Another process is loading the job {self._given!r}.")
                    time.sleep(0.2)
            yield
        finally:
            own.close()

    def begin(self, workers: int) -> tuple[datetime, list[tuple[Mark, Tally]]]:
        now = timezone.now()
        with tenant(self._organization):
            kept = list(self._rows.order_by("part"))
            if not kept or len(kept) != kept[0].parts:
                self._rows.delete()
                LoadPart.objects.bulk_create(
                    LoadPart(
                        organization=self._organization,
                        job=self._job,
                        resource=self._resource,
                        part=part,
                        parts=workers,
                        created_at=now,
                        updated_at=now,
                        created_by_id=self._actor.id,
                        last_updated_by_id=self._actor.id,
                        tally=Tally().as_json(),
                    )
                    for part in range(workers)
                )
                return now, [(Mark(), Tally())] * workers
        states = [(_mark(part), Tally.from_json(part.tally)) for part in kept]
        return kept[0].created_at, states

    def save(self, part: int, before: Mark, after: Mark, tally: Tally) -> bool:
        return bool(
            self._rows.filter(part=part, line=before.line).update(
                line=after.line,
                checked_line=after.checked_line,
                digest=after.digest,
                tally=tally.as_json(),
                updated_at=timezone.now(),
            )
        )

    def read(self, part: int) -> Mark:
        with tenant(self._organization):
            kept = self._rows.filter(part=part).first()
        return _mark(kept) if kept else Mark()

    def forget(self) -> None:
        """The job starts from the beginning next time. Called within the context."""
        self._rows.delete()


def _mark(part: LoadPart) -> Mark:
    return Mark(part.line, part.checked_line, bytes(part.digest))
