"""Locks the rows that a new or changed row refers to: they stay out of the trash until it is
written. Whoever deletes a parent waits and then includes the row, or was first and the write is
refused.

(The foreign key alone does not do that: PostgreSQL does not know about the trash.)
"""

from collections.abc import Iterable, Sequence
from typing import Any

from django.db import connection, models
from psycopg import sql

from accounts.errors import Invalid
from accounts.models import Organization
from agentmem_site.db.fields import TenantForeignKey


def lock_parents(
    records: Sequence[Any], organization: Organization, *, fields: Iterable[str] | None = None
) -> None:
    """Locks the rows that these records of one model refer to (through `fields`, if given).

    Runs in the caller's transaction. One statement. The order is that of a deletion: parents before
    their dependents, each by id. (Without OFFSET only rows in the trash would be locked.)
    Raises: Invalid (a parent is in the trash).
    """
    if not records:
        return
    model = type(records[0])
    wanted = []
    for field in sorted(_references(model), key=lambda f: _depth(f.related_model)):
        ids = {getattr(record, field.attname) for record in records} - {None}
        if ids and (fields is None or field.name in fields):
            wanted.append((field, ids))
    if not wanted:
        return
    statement = sql.SQL(" UNION ALL ").join(
        sql.SQL(
            "SELECT {name} FROM (SELECT is_deleted FROM {table} WHERE organization_id = {own} "
            "AND id = ANY ({ids}) ORDER BY id OFFSET 0 FOR KEY SHARE) AS t WHERE is_deleted"
        ).format(
            name=sql.Literal(field.name),
            table=sql.Identifier(field.related_model._meta.db_table),
            own=sql.Literal(organization.pk),
            ids=sql.Literal(list(ids)),
        )
        for field, ids in wanted
    )
    with connection.cursor() as cursor:
        cursor.execute(statement)
        row = cursor.fetchone()
    if row:
        name = str(row[0])
        parent: Any = model._meta.get_field(name).related_model
        message = f"The {parent._meta.verbose_name} is in the trash: restore it first."
        raise Invalid(message, field=f"{name}_id", code="unknown_reference")


def _references(model: type[models.Model]) -> list[Any]:
    return [f for f in model._meta.concrete_fields if isinstance(f, TenantForeignKey)]


def _depth(model: type[models.Model]) -> int:
    above = [f.related_model for f in _references(model) if f.related_model is not model]
    return 1 + max(map(_depth, above), default=0)
