"""Whether this process lives, and whether it may be sent requests."""

from django.db import Error, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from agentmem_site.checks import database_faults, database_warnings


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
    reasons = reasons_not_ready()
    body = {"status": "unavailable" if reasons else "ready", "reasons": reasons}
    body["warnings"] = [] if reasons else database_warnings()
    answer = JsonResponse(body, status=503 if reasons else 200)
    if reasons:
        answer["Retry-After"] = "1"
    return answer


def reasons_not_ready() -> list[str]:
    """A few statements on the catalog, and the list of migrations."""
    try:
        reasons = database_faults()
        executor = MigrationExecutor(connection)
        if executor.migration_plan(executor.loader.graph.leaf_nodes()):
            reasons.append("Migrations are missing: run `manage.py migrate`.")
    except Error:
        return ["The database cannot be reached."]
    return reasons
