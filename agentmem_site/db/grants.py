"""The application's privileges on the tables. The owner grants them after each migration."""

from django.apps import apps
from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import sql

from agentmem_site.db.roles import ADMIN, APPLICATION

_GRANTS = (
    "GRANT USAGE ON SCHEMA public TO {roles}",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {roles}",
    "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {roles}",
)


def grant_to_application(connection: BaseDatabaseWrapper) -> None:
    """Idempotent. Rows of a model with `is_append_only` can be inserted, not updated or deleted."""
    present = set(connection.introspection.table_names())  # fewer after `migrate accounts zero`
    roles = sql.SQL(", ").join(map(sql.Identifier, (APPLICATION, ADMIN)))
    statements = [sql.SQL(grant).format(roles=roles) for grant in _GRANTS]
    statements += [
        sql.SQL("REVOKE UPDATE, DELETE ON {} FROM {}").format(
            sql.Identifier(model._meta.db_table), roles
        )
        for model in apps.get_models()
        if getattr(model, "is_append_only", False) and model._meta.db_table in present
    ]
    # In one transaction, so that the audit log can never be changed in between.
    with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
