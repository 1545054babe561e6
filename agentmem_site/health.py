"""Whether this process lives, and whether it may be sent requests."""

from django.apps import apps
from django.db import Error, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from agentmem_site.db.fields import tenant_key

# pg_has_role: membership of the owner's role is as good as owning.
_ROLE = "SELECT rolsuper, rolbypassrls FROM pg_roles WHERE rolname = current_user"
_TABLES = """
SELECT count(*) FILTER (WHERE pg_has_role(current_user, relowner, 'USAGE')),
       count(*) FILTER (WHERE NOT relrowsecurity)
FROM pg_class WHERE oid = ANY (SELECT to_regclass(t) FROM unnest(%s::text[]) AS t)
"""


@require_safe
@never_cache
def live(request: HttpRequest) -> JsonResponse:
    """Asks nothing but this process."""
    return JsonResponse({"status": "live"})


@require_safe
@never_cache
def ready(request: HttpRequest) -> JsonResponse:
    """503 with the reasons while requests would fail, or would not be walled in."""
    reasons = reasons_not_ready()
    status = "unavailable" if reasons else "ready"
    answer = JsonResponse({"status": status, "reasons": reasons}, status=503 if reasons else 200)
    if reasons:
        answer["Retry-After"] = "1"
    return answer


def reasons_not_ready() -> list[str]:
    """Three statements and the list of migrations."""
    tables = [model._meta.db_table for model in apps.get_models() if tenant_key(model)]
    try:
        with connection.cursor() as cursor:
            cursor.execute(_ROLE)
            is_superuser, bypasses = cursor.fetchone()
            cursor.execute(_TABLES, [tables])
            owned, unwalled = cursor.fetchone()
        executor = MigrationExecutor(connection)
        missing = executor.migration_plan(executor.loader.graph.leaf_nodes())
    except Error:
        return ["The database cannot be reached."]
    found = {
        "The database role is a superuser: row security does not bind it.": is_superuser,
        "The database role bypasses row security.": bypasses,
        "The database role owns tables of the data plane: row security does not bind it.": owned,
        "A table of the data plane has no row security.": unwalled,
        "Migrations are missing: `manage.py migrate`.": missing,
    }
    return [reason for reason, is_so in found.items() if is_so]
