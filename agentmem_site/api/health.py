"""Whether this process lives, and whether it may be sent requests."""

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
from agentmem_site.db.refusals import explained
from agentmem_site.db.setup import vector_fault
from agentmem_site.embedded import EmbeddedError

MB = 1024 * 1024
_LOCKED_MS = 200
_FULL = "The disk is full: nothing can be saved. Make room."
_AWAY = "The database cannot be reached."
_WORDS = {DISK_FULL: _FULL, READ_ONLY: "The database is read-only: nothing can be saved."}

writes = WriteProbe()


@require_safe
@never_cache
def live(request: HttpRequest) -> JsonResponse:
    """Asks nothing but this process."""
    return JsonResponse({"status": "live"})


@require_safe
@never_cache
def ready(request: HttpRequest) -> JsonResponse:
    """503 with the reasons while requests would fail, or would not be walled in.

    `warnings` ask for an operator, and make nothing unready.
    """
    reasons = reasons_not_ready(is_serving=True) or _reasons_not_to_write()
    warnings: list[str] = []
    if not reasons:
        with suppress(Error):  # it is gone since
            warnings = [*database_warnings(), *_full_folders()]
    body = {"status": "unavailable" if reasons else "ready", "reasons": reasons}
    answer = JsonResponse({**body, "warnings": warnings}, status=503 if reasons else 200)
    if reasons:
        answer["Retry-After"] = str(_wait_s(reasons))
    return answer


def reasons_not_ready(*, is_serving: bool = False) -> list[str]:
    """What an operator has to mend before this serves. A few statements on the catalog, and the
    list of migrations. A table that somebody has locked is waited for; not if it `is_serving`
    already, for it was all in order then."""
    try:
        with limited(lock_timeout_ms=_LOCKED_MS if is_serving else None):
            if without := vector_fault(connection):
                return [without]
            reasons = database_faults()
            executor = MigrationExecutor(connection)
            if executor.migration_plan(executor.loader.graph.leaf_nodes()):
                reasons.append("Migrations are missing: run `manage.py migrate`.")
    except (Error, EmbeddedError) as error:
        if is_serving and isinstance(error.__cause__, LockNotAvailable):
            return []
        if outage_of(error) is DISK_FULL:
            return [_FULL]
        found = explained(error)
        if found is None:
            return [_AWAY if is_serving or not isinstance(error, EmbeddedError) else str(error)]
        return [found.refusal.words if is_serving else found.sentence]
    return reasons


def _reasons_not_to_write() -> list[str]:
    """Of a server that reads, and cannot save."""
    try:
        found = writes.ask(connection)
    except Error:
        return [_AWAY]
    return [f"{_WORDS[found[0]]} Seen since {found[1]:%Y-%m-%d %H:%M:%S} UTC."] if found else []


def _wait_s(reasons: list[str]) -> int:
    said = (outage for outage, words in _WORDS.items() if reasons[0].startswith(words))
    return next(said, AWAY).wait_s


def _full_folders() -> Iterator[str]:
    """Disks of this machine on which little is left; the database's own is asked above."""
    server = settings.EMBEDDED_SERVER
    folders = {"for temporary files, which uploads go through,": Path(tempfile.gettempdir())}
    if server is not None:
        folders["of the database"] = server.root
    for what, folder in folders.items():
        with suppress(OSError):
            left = shutil.disk_usage(folder).free
            if left < settings.DISK_LEAST_BYTES:
                yield f"The folder {what} has {left // MB:,} MB left: make room."
