"""What a row that is written refers to stays out of the trash until it is written: whoever deletes
a parent waits for it and takes it along, or was first and it is refused.

(A reference alone would not do: PostgreSQL's own look at it does not mind that the parent lies in
the trash.)
"""

from collections.abc import Iterable, Sequence
from typing import Any

from django.db import connection, models
from psycopg import sql

from accounts.errors import Invalid
from accounts.models import Organization
from agentmem_site.db.fields import TenantForeignKey


def hold_parents(
    records: Sequence[Any], organization: Organization, *, fields: Iterable[str] | None = None
) -> None:
    """Holds what these records of one model refer to, by `fields` alone where they are given.

    In the caller's transaction. Parents go before what hangs on them, each in the order of ids: as
    a deletion takes them. One statement. (OFFSET: or only what lies in the trash would be held.)
    Raises: Invalid (it lies in the trash).
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
        found = cursor.fetchone()
    if found:
        name = str(found[0])
        parent: Any = model._meta.get_field(name).related_model
        message = f"The {parent._meta.verbose_name} lies in the trash: restore it first."
        raise Invalid(message, field=f"{name}_id", code="unknown_reference")


def _references(model: type[models.Model]) -> list[Any]:
    return [f for f in model._meta.concrete_fields if isinstance(f, TenantForeignKey)]


def _depth(model: type[models.Model]) -> int:
    above = [f.related_model for f in _references(model) if f.related_model is not model]
    return 1 + max(map(_depth, above), default=0)
