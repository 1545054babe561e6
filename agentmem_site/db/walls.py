"""Row-level security as a model constraint: the second wall between organizations.

The first wall is the organization in every query. This one is in PostgreSQL: a query that forgot
the organization returns nothing. A policy compares the row's organization with the one that
`tenant()` set for the transaction. Outside `tenant()` it is '' or NULL, and nothing matches.
"""

from collections.abc import Sequence
from typing import Any

from django.db import models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.backends.ddl_references import Statement, Table

from agentmem_site.db.roles import ADMIN, APPLICATION

CONTEXT = "app.organization_id"

_BUILD = (
    "ALTER TABLE %(table)s ENABLE ROW LEVEL SECURITY; "
    f"CREATE POLICY %(name)s ON %(table)s TO {APPLICATION} USING "
    f"(organization_id = NULLIF(current_setting('{CONTEXT}', true), '')::uuid); "
    f"CREATE POLICY %(admin_name)s ON %(table)s TO {ADMIN} USING (true)"
)
_BUILD_ORPHANS = (
    f"; CREATE POLICY %(orphan_name)s ON %(table)s FOR INSERT TO {APPLICATION} "
    "WITH CHECK (organization_id IS NULL)"
)
_TEAR_DOWN = (
    "DROP POLICY IF EXISTS %(orphan_name)s ON %(table)s; "
    "DROP POLICY %(admin_name)s ON %(table)s; DROP POLICY %(name)s ON %(table)s; "
    "ALTER TABLE %(table)s DISABLE ROW LEVEL SECURITY"
)


class TenantWall(models.BaseConstraint):
    """Rows of this table can be read, changed and inserted only in their organization's context.

    With `admits_orphans`, the application may insert (never read) rows without an organization.
    """

    def __init__(self, *, name: str, admits_orphans: bool = False) -> None:
        super().__init__(name=name)
        self.admits_orphans = admits_orphans

    def constraint_sql(self, model: Any, schema_editor: Any) -> None:  # type: ignore[override]
        # Deferred, because a policy needs the table to exist.
        schema_editor.deferred_sql.append(self.create_sql(model, schema_editor))

    def create_sql(self, model: Any, schema_editor: Any) -> Statement:  # type: ignore[override]
        template = _BUILD + (_BUILD_ORPHANS if self.admits_orphans else "")
        return self._statement(template, model, schema_editor)

    def remove_sql(self, model: Any, schema_editor: Any) -> Statement:  # type: ignore[override]
        return self._statement(_TEAR_DOWN, model, schema_editor)

    def validate(self, *args: Any, **kwargs: Any) -> None:
        """A wall says who may see a row, not what the row may hold."""

    def _statement(
        self, template: str, model: Any, schema_editor: BaseDatabaseSchemaEditor
    ) -> Statement:
        quote = schema_editor.quote_name
        return Statement(
            template,
            table=Table(model._meta.db_table, quote),
            name=quote(self.name),
            admin_name=quote(f"{self.name}_admin"),
            orphan_name=quote(f"{self.name}_orphans"),
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TenantWall):
            return NotImplemented
        return (self.name, self.admits_orphans) == (other.name, other.admits_orphans)

    __hash__ = models.BaseConstraint.__hash__

    def deconstruct(self) -> tuple[str, Sequence[Any], dict[str, Any]]:
        path, args, kwargs = super().deconstruct()
        if self.admits_orphans:
            kwargs["admits_orphans"] = True
        return path, args, kwargs
