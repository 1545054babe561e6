"""The context that opens the walls for one organization, and the base of all tenant models.

The door (a request, a console page, a command) enters `tenant(organization)`; everything below
uses plain `atomic()`. Inside, PostgreSQL shows the rows of that organization and no others.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Self
from uuid import UUID

from django.db import DatabaseError, connection, models, transaction
from django.db.models.lookups import Exact
from django.utils import timezone
from psycopg import sql

from agentmem_site.db.fields import OrganizationKey
from agentmem_site.db.ids import uuid7
from agentmem_site.db.limits import transaction_limits
from agentmem_site.db.roles import ADMIN
from agentmem_site.db.walls import CONTEXT, TenantWall

_is_inside = ContextVar("is_inside", default=False)


def is_inside() -> bool:
    """Whether a context is open: it holds a transaction, and with it a database connection."""
    return _is_inside.get()


@contextmanager
def tenant(organization: models.Model | UUID) -> Iterator[None]:
    """One transaction that can read and write the rows of this organization, and no others."""
    organization_id = organization if isinstance(organization, UUID) else organization.pk
    yield from _context(
        sql.SQL("SET LOCAL {} = {}").format(sql.SQL(CONTEXT), sql.Literal(str(organization_id))),
        sql.SQL("SET LOCAL {} = ''").format(sql.SQL(CONTEXT)),
    )


@contextmanager
def snapshot(organization: models.Model | UUID) -> Iterator[None]:
    """The same, read-only: all statements see one snapshot."""
    with tenant(organization):
        _execute(sql.SQL("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        yield


@contextmanager
def platform() -> Iterator[None]:
    """One transaction across all organizations: the console of a superuser, maintenance."""
    yield from _context(
        sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(ADMIN)), sql.SQL("SET LOCAL ROLE NONE")
    )


def _context(enter: sql.Composed, leave: sql.SQL | sql.Composed) -> Iterator[None]:
    with transaction.atomic(durable=True), transaction_limits() as limits:
        _execute(limits + enter)
        token = _is_inside.set(True)
        try:
            yield
        finally:
            _is_inside.reset(token)
        # The end of the transaction ends the context. Inside a test's transaction, which goes on,
        # it is reset here; after an error the rollback to the savepoint resets it.
        if len(connection.atomic_blocks) > 1 and not connection.needs_rollback:
            _execute(leave)


def _execute(statement: sql.SQL | sql.Composed) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


class AuditedQuerySet(models.QuerySet[Any]):
    """Filters of every list. The default manager shows deleted rows too: hiding them would break
    uniqueness checks and get_or_create."""

    # Columns that are set when a row is deleted or restored.
    set_by_move: Mapping[str, Any] = {}

    def live(self) -> Self:
        return self.filter(is_deleted=False)

    def deleted(self) -> Self:
        return self.filter(is_deleted=True)

    def newest_first(self) -> Self:
        return self.order_by("-created_at", "-id")

    def write_history(
        self, change_type: str, *, organization: Any, changed_by_id: UUID | None, at: datetime
    ) -> None:
        """Writes a change of all these rows to their history, in one statement. Most models have no
        history."""


class TenantQuerySet(AuditedQuerySet):
    def for_organization(self, organization: models.Model | UUID) -> Self:
        return self.filter(organization=organization)


class AuditColumns(models.Model):
    """When a row was created and last changed, by whom, and whether it is in the trash."""

    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(default=timezone.now, editable=False)
    # A member or an API key; plain ids, not references (docs/decisions/0001).
    created_by_id = models.UUIDField(null=True, editable=False)
    last_updated_by_id = models.UUIDField(null=True, editable=False)
    is_deleted = models.BooleanField(default=False, editable=False)
    deleted_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        abstract = True


class TenantModel(AuditColumns):
    """A table of the data plane. Subclasses extend, never replace, Meta.constraints and .indexes:
    `constraints = [*TenantModel.Meta.constraints, ...]`."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    organization = OrganizationKey()
    metadata = models.JSONField(
        default=dict, db_default=models.Value({}, models.JSONField()), blank=True
    )

    # False if rows never go to the trash: they stay until their parent is purged.
    has_trash = True
    # A row that names an unknown value of this column creates the row; empty: it is refused.
    auto_create_key = ""

    objects = TenantQuerySet.as_manager()

    class Meta:
        abstract = True
        constraints = [
            TenantWall(name="%(app_label)s_%(class)s_wall"),
            models.CheckConstraint(
                name="%(app_label)s_%(class)s_deleted_at",
                condition=models.Q(is_deleted=False, deleted_at__isnull=True)
                | models.Q(is_deleted=True, deleted_at__isnull=False),
            ),
            models.CheckConstraint(
                name="%(app_label)s_%(class)s_metadata_object",
                condition=Exact(
                    models.Func(
                        "metadata", function="jsonb_typeof", output_field=models.TextField()
                    ),
                    models.Value("object"),
                ),
                violation_error_message="Metadata must be a JSON object.",
            ),
        ]
        indexes = [
            # Lists, newest first, page by page.
            models.Index(
                fields=["organization", "created_at", "id"], name="%(app_label)s_%(class)s_created"
            ),
            # The trash, and the sweep that empties it.
            models.Index(
                fields=["organization", "deleted_at"],
                condition=models.Q(is_deleted=True),
                name="%(app_label)s_%(class)s_trash",
            ),
        ]

    def _do_update(self, base_qs: Any, using: Any, pk_val: Any, values: Any, *rest: Any) -> Any:
        # UPDATE .. WHERE id and organization, and never SET organization_id: both are rules of
        # the sharded schema (docs/decisions/0001).
        values = [value for value in values if not isinstance(value[0], OrganizationKey)]
        own = base_qs.filter(organization=self.organization_id)
        is_updated = super()._do_update(own, using, pk_val, values, *rest)
        if not is_updated and not self._state.adding:
            # Django would INSERT now: that would recreate a purged row, or copy a row whose
            # organization was changed in memory, with the same id.
            raise DatabaseError(
                f"{self._meta.label} {pk_val} is not a row of {self.organization_id}."
            )
        return is_updated

    def refresh_from_db(
        self, using: str | None = None, fields: Any = None, from_queryset: Any = None
    ) -> None:
        # Deferred columns are loaded by this too. (`only()` may have left out the organization.)
        if "organization_id" in self.__dict__:
            rows = type(self)._base_manager.all() if from_queryset is None else from_queryset
            from_queryset = rows.filter(organization=self.__dict__["organization_id"])
        super().refresh_from_db(using=using, fields=fields, from_queryset=from_queryset)


class LoadedModel(TenantModel):
    """A table that files are loaded into."""

    # A hash of the line that the row was last loaded from, and of the `updated_at` that it set. Any
    # change of the row moves `updated_at`, so the line is compared again (docs/decisions/0007).
    line_hash = models.BinaryField(max_length=24, null=True, editable=False)

    class Meta(TenantModel.Meta):
        abstract = True
