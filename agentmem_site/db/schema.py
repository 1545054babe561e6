"""The schema editor. It gives tenant tables their shape, so that no migration is edited by hand."""

from collections.abc import Iterator
from typing import Any

from django.db.backends.ddl_references import Columns, Statement
from django.db.backends.postgresql.schema import DatabaseSchemaEditor as PostgresSchemaEditor

from agentmem_site.db.fields import OrganizationKey, TenantForeignKey, tenant_key


def _place(field: Any) -> int:
    """Sorts columns: the id, the organization, the others, generated ones (docs/decisions)."""
    if field.primary_key:
        return 0
    if isinstance(field, OrganizationKey):
        return 1
    return 3 if field.generated else 2


class DatabaseSchemaEditor(PostgresSchemaEditor):
    # A foreign key that is added to a table later gets its constraint from _create_fk_sql, too.
    sql_create_column_inline_fk = None  # type: ignore[assignment]

    def table_sql(self, model: Any) -> tuple[str, list[Any]]:
        model._meta.local_fields.sort(key=_place)
        key = tenant_key(model)
        if key is None:
            return super().table_sql(model)
        stock = self.sql_create_table
        self.sql_create_table = stock.replace(
            "%(definition)s", f'%(definition)s, PRIMARY KEY ("id", "{key.column}")'
        )
        try:
            return super().table_sql(model)
        finally:
            self.sql_create_table = stock

    def _iter_column_sql(
        self, column_db_type: Any, params: Any, model: Any, field: Any, *rest: Any
    ) -> Iterator[str]:
        parts = super()._iter_column_sql(  # type: ignore[misc]
            column_db_type, params, model, field, *rest
        )
        if field.primary_key and tenant_key(model):
            return (part for part in parts if part != "PRIMARY KEY")
        return parts

    def _constraint_names(self, model: Any, column_names: Any = None, **kinds: Any) -> list[str]:
        names_of = super()._constraint_names  # type: ignore[misc]
        names = names_of(model, column_names, **kinds)
        key = tenant_key(model)
        if key and column_names and kinds.get("foreign_key"):
            # Django asks for the field's column alone. Without this, a foreign key that changes
            # its target would keep the constraint to the old one.
            names = [*names, *names_of(model, [*column_names, key.column], **kinds)]
        return names

    def _create_fk_sql(self, model: Any, field: Any, suffix: str) -> Statement:
        statement = super()._create_fk_sql(model, field, suffix)  # type: ignore[misc]
        if isinstance(field, TenantForeignKey):
            # NO ACTION, checked immediately: the services decide what happens to children.
            statement.parts["column"] = Columns(
                model._meta.db_table, [field.column, "organization_id"], self.quote_name
            )
            statement.parts["to_column"] = Columns(
                field.related_model._meta.db_table, ["id", "organization_id"], self.quote_name
            )
            statement.parts["deferrable"] = " DEFERRABLE INITIALLY IMMEDIATE"
        return statement
