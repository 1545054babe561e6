"""Liveness and readiness of this process."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from django.conf import settings
from django.db import Error, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from psycopg.errors import LockNotAvailable

from agentmem_site.checks import database_faults, database_warnings
from agentmem_site.db.limits import limited
from agentmem_site.db.outages import AWAY, DISK_FULL, READ_ONLY, WriteProbe, outage_of
from agentmem_site.db.refusals import connection_failure
from agentmem_site.db.setup import vector_fault
from agentmem_site.embedded import EmbeddedError

MB = 1024 * 1024
_LOCKED_MS = 200
_FULL = "The disk is full: nothing can be saved. Make room."
_AWAY = "The database cannot be reached."
_MESSAGES = {DISK_FULL: _FULL, READ_ONLY: "The database is read-only: nothing can be saved."}

writes = WriteProbe()


@require_safe
@never_cache
def live(request: HttpRequest) -> JsonResponse:
    """Checks nothing but this process."""
    return JsonResponse({"status": "live"})


@require_safe
@never_cache
def ready(request: HttpRequest) -> JsonResponse:
    """503 with the reasons while requests would fail, or the walls would not hold.

    `warnings` are for the operator and do not make the server unready.
    """
    reasons = reasons_not_ready(is_serving=True) or _reasons_not_writable()
    warnings: list[str] = []
    if not reasons:
        with suppress(Error):  # the database has gone away since
            warnings = [*database_warnings(), *_full_folders()]
    body = {"status": "unavailable" if reasons else "ready", "reasons": reasons}
    answer = JsonResponse({**body, "warnings": warnings}, status=503 if reasons else 200)
    if reasons:
        answer["Retry-After"] = str(_wait_s(reasons))
    return answer


def reasons_not_ready(*, is_serving: bool = False) -> list[str]:
    """What an operator has to repair before this server can serve. A few statements on the
    catalog, and the list of migrations. Waits for a locked table, unless it `is_serving` already:
    then everything was in order at its start."""
    try:
        with limited(lock_timeout_ms=_LOCKED_MS if is_serving else None):
            if fault := vector_fault(connection):
                return [fault]
            reasons = database_faults()
            executor = MigrationExecutor(connection)
            if executor.migration_plan(executor.loader.graph.leaf_nodes()):
                reasons.append("Migrations are missing: run `manage.py migrate`.")
    except (Error, EmbeddedError) as error:
        if is_serving and isinstance(error.__cause__, LockNotAvailable):
            return []
        if outage_of(error) is DISK_FULL:
            return [_FULL]
        failure = connection_failure(error)
        if failure is None:
            return [_AWAY if is_serving or not isinstance(error, EmbeddedError) else str(error)]
        return [failure.refusal.message if is_serving else failure.explanation]
    return reasons


def _reasons_not_writable() -> list[str]:
    """Why a server that can be read cannot be written."""
    try:
        outage = writes.ask(connection)
    except Error:
        return [_AWAY]
    return (
        [f"{_MESSAGES[outage[0]]} Seen since {outage[1]:%Y-%m-%d %H:%M:%S} UTC."] if outage else []
    )


def _wait_s(reasons: list[str]) -> int:
    matching = (outage for outage, reason in _MESSAGES.items() if reasons[0].startswith(reason))
    return next(matching, AWAY).wait_s


def _full_folders() -> Iterator[str]:
    """Warnings about disks of this machine with little free space. (`_reasons_not_writable` checks
    the database's own.)"""
    server = settings.EMBEDDED_SERVER
    folders = {"for temporary files, which uploads need,": Path(tempfile.gettempdir())}
    if server is not None:
        folders["of the database"] = server.root
    for purpose, folder in folders.items():
        with suppress(OSError):
            free = shutil.disk_usage(folder).free
            if free < settings.DISK_LEAST_BYTES:
                yield f"The folder {purpose} has {free // MB:,} MB left: make room."
