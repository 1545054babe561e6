"""Create, update, delete (to the trash, with dependent rows), restore and purge rows.

One `Records` per model serves the API, the console and the commands. Each method makes one change,
in its own atomic block: the rows, the audit columns, the history and one audit event. The door
enters the organization's context (accounts/tenancy.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

from django.db import models, transaction
from django.utils import timezone

from accounts.actors import Actor
from accounts.errors import Conflict, Invalid, NotFound, named_violations
from accounts.models import Organization
from accounts.services.audit import record_event
from accounts.services.dependents import (
    Chunk,
    Counts,
    Pick,
    Progress,
    RowCounter,
    RowKeys,
    Rows,
    add_count,
    fetch_all_keys,
    parents_of,
    pick_all,
    remove,
    track_progress,
    walk,
)
from accounts.services.naming import add_named
from accounts.services.parent_locks import lock_parents
from accounts.services.seen import refuse_stale

M = TypeVar("M", bound=models.Model)

MAX_IDS_IN_EVENT = 100
# The audit log keeps old and new values of these columns only: others may hold personal content.
_AUDITED = (models.BooleanField, models.IntegerField, models.FloatField)


class Records(Generic[M]):
    """Create, update, delete, restore and purge for one model. Rows that a new or changed row names
    and that do not exist yet are created with it (naming.py)."""

    def __init__(self, model: type[M]) -> None:
        self.model: Any = model
        self.name = str(model._meta.model_name)

    # The order in which the rows of a change are locked.
    lock_order: Sequence[str] = ("pk",)

    # -- hooks for subclasses ------------------------------------------------------------------

    def derive(self, record: M, changed: frozenset[str], *, is_new: bool) -> frozenset[str]:
        """Sets columns that are derived from `changed` ones; returns the names of all to write."""
        return changed

    def before_update(
        self, record: M, values: Mapping[str, Any], *, organization: Organization, actor: Actor
    ) -> None:
        """Refuses what `actor` may not do. `record` is locked and unchanged; `values` differ."""

    def after_update(self, record: M, changed: frozenset[str]) -> None:
        """Copies a change to denormalized columns of other rows, in the same transaction."""

    def before_move(self, rows: Rows, *, organization: Organization, actor: Actor) -> None:
        """Called before `rows` are deleted, restored or purged, in the same transaction."""

    # -- verbs -----------------------------------------------------------------------------------

    def create(self, *, organization: Organization, actor: Actor, values: Mapping[str, Any]) -> M:
        """The new row. Raises: Conflict, Forbidden, Invalid."""
        return self.create_many(organization=organization, actor=actor, rows=[values])[0]

    def create_many(
        self, *, organization: Organization, actor: Actor, rows: Sequence[Mapping[str, Any]]
    ) -> list[M]:
        """The new rows, in order: one INSERT, all or none. Raises: Conflict, Forbidden, Invalid."""
        now = timezone.now()
        stamps = {
            "created_at": now,
            "updated_at": now,
            "created_by_id": actor.id,
            "last_updated_by_id": actor.id,
        }
        with transaction.atomic(), named_violations(self.model):
            for row in rows:
                add_named(row, organization=organization, actor=actor)
            records = [self.model(**{**stamps, **row}) for row in rows]
            for record, row in zip(records, rows, strict=True):
                record.organization = organization  # whatever the values say
                self.derive(record, frozenset(row), is_new=True)
            lock_parents(records, organization)
            self.model.objects.bulk_create(records)
            self._record("created", organization, actor, [r.pk for r in records], now)
        return records

    def update(
        self,
        record: M,
        *,
        organization: Organization,
        actor: Actor,
        values: Mapping[str, Any],
        seen: Mapping[str, str] | None = None,
    ) -> M:
        """The row with `values` set. If it has them already, nothing changes, timestamps included.

        `seen` holds digests of the values that the caller has read (services/seen.py): a column
        that has changed since is not overwritten. Without it the last writer wins.

        Raises: NotFound (purged or in the trash by now), Stale, Conflict, Forbidden, Invalid.
        """
        with transaction.atomic(), named_violations(self.model):
            add_named(values, organization=organization, actor=actor)
            rows = self.model.objects.for_organization(organization).filter(pk=record.pk)
            locked = rows.select_for_update(of=("self",)).first()
            if locked is None:
                raise NotFound
            if locked.is_deleted:
                raise NotFound("It is in the trash: restore it first.")
            changes = {
                name: _audited(field, old, new)
                for name, value in values.items()
                for field in [self.model._meta.get_field(name)]
                for old, new in [(getattr(locked, field.attname), getattr(value, "pk", value))]
                if old != new
            }
            if not changes:
                return locked
            if {"organization", "organization_id"} & changes.keys():
                raise Invalid("A row cannot move to another organization.", field="organization")
            refuse_stale(locked, changes, seen or {})
            changed = {name: values[name] for name in changes}
            self.before_update(locked, changed, organization=organization, actor=actor)
            for name in changes:
                setattr(locked, name, values[name])
            now = timezone.now()
            locked.updated_at, locked.last_updated_by_id = now, actor.id
            written = self.derive(locked, frozenset(changes), is_new=False)
            lock_parents([locked], organization, fields=written)
            locked.save(update_fields=[*written, "updated_at", "last_updated_by_id"])
            self.after_update(locked, frozenset(changes))
            self._record("updated", organization, actor, [locked.pk], now, {"fields": changes})
        return locked

    def delete(self, rows: Rows, *, organization: Organization, actor: Actor) -> Counts:
        """Moves the live ones of `rows` to the trash, with their dependent rows; returns counts.

        All of them get the same `deleted_at`, by which `restore` finds them.
        Raises: Unavailable (it takes longer than a request may).
        """
        stamp = {"is_deleted": True, "deleted_at": timezone.now()}
        live = rows.for_organization(organization).filter(is_deleted=False)
        return self._move("deleted", live, _pick_live, stamp, organization, actor)

    def restore(self, rows: Rows, *, organization: Organization, actor: Actor) -> Counts:
        """Restores `rows` from the trash, each with the rows that were deleted with it.

        Raises: Conflict (a live row has the same key, or the parent is in the trash),
        Unavailable (it takes longer than a request may).
        """
        stamp = {"is_deleted": False, "deleted_at": None}
        # (A filter by `is_deleted` would make the planner choose the index of the trash.)
        deleted = rows.for_organization(organization).filter(deleted_at__isnull=False)
        return self._move("restored", deleted, _pick_deleted_with, stamp, organization, actor)

    def purge(self, rows: Rows, *, organization: Organization, actor: Actor) -> Counts:
        """Deletes `rows` and their dependent rows for good, and sets other references to them to
        NULL; returns counts.

        Raises: Unavailable (it takes longer than a request may)."""
        rows = rows.for_organization(organization)
        counts: Counts = {}
        with transaction.atomic(), self._tracked("purge") as progress:
            self.before_move(rows, organization=organization, actor=actor)
            roots = self._lock(rows)
            chunks = walk(self.model, roots, organization, pick_all, for_good=True)
            remove(chunks, organization, counts, progress)
            self._event("purged", organization, actor, _first_ids(roots), {"rows": counts})
        return counts

    # -- questions -------------------------------------------------------------------------------

    def count_affected(
        self, rows: Rows, *, organization: Organization, at_most: int, for_good: bool = False
    ) -> Counts:
        """Counts the rows that `delete` (`purge`, if `for_good`) would affect, by model. `at_most`
        + 1 stands for more. Locks nothing."""
        rows = rows.for_organization(organization)
        rows = rows if for_good else rows.filter(is_deleted=False)
        roots = fetch_all_keys(rows.order_by())
        pick = pick_all if for_good else _pick_live_unlocked
        counter = RowCounter(pick, for_good=for_good, at_most=at_most)
        return counter.count(walk(self.model, roots, organization, counter.pick, for_good=for_good))

    # -- private ---------------------------------------------------------------------------------

    def _move(
        self,
        action: str,
        rows: Rows,
        pick: Pick,
        stamp: Mapping[str, Any],
        organization: Organization,
        actor: Actor,
    ) -> Counts:
        """Sets the columns in `stamp` on `rows` and their dependent rows, deepest first."""
        counts: Counts = {}
        now = timezone.now()
        is_restore = not stamp["is_deleted"]
        with transaction.atomic(), self._tracked("restore" if is_restore else "delete") as progress:
            self.before_move(rows, organization=organization, actor=actor)
            # (Whoever writes a dependent row locks its parent: a deletion waits and includes it.)
            roots = self._lock(rows, no_key=is_restore)
            for chunk in walk(self.model, roots, organization, pick, is_same_deletion=is_restore):
                if is_restore:
                    _refuse_orphans(chunk, organization)
                moved = chunk.rows(organization)
                moved.write_history(
                    action, organization=organization, changed_by_id=actor.id, at=now
                )
                more = {**moved.set_by_move, "last_updated_by_id": actor.id}
                add_count(counts, chunk.model, moved.update(**stamp, **more), progress)
            if counts:
                self._event(action, organization, actor, _first_ids(roots), {"rows": counts})
        return counts

    @contextmanager
    def _tracked(self, verb: str) -> Iterator[Progress]:
        with named_violations(self.model), track_progress(f"{verb} {self.name}") as progress:
            yield progress

    def _lock(self, rows: Rows, *, no_key: bool = False) -> RowKeys:
        ordered = rows.order_by(*self.lock_order)
        return fetch_all_keys(ordered.select_for_update(of=("self",), no_key=no_key))

    def _record(
        self,
        action: str,
        organization: Organization,
        actor: Actor,
        ids: Sequence[UUID],
        now: datetime,
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        rows = self.model.objects.for_organization(organization).filter(pk__in=ids)
        rows.write_history(action, organization=organization, changed_by_id=actor.id, at=now)
        self._event(action, organization, actor, ids, changes or {})

    def _event(
        self,
        action: str,
        organization: Organization,
        actor: Actor,
        ids: Sequence[UUID],
        changes: Mapping[str, Any],
    ) -> None:
        many = {} if len(ids) == 1 else {"ids": [str(i) for i in ids[:MAX_IDS_IN_EVENT]]}
        record_event(
            organization=organization,
            actor=actor,
            action=action,
            resource_type=self.name,
            resource_id=ids[0] if len(ids) == 1 else None,
            changes={**changes, **many},
        )


def _refuse_orphans(chunk: Chunk, organization: Organization) -> None:
    """Refuses to restore rows whose parent stays in the trash: a purge of it would delete them.
    A parent that was deleted with its row is being restored with it."""
    for place, field in enumerate(parents_of(chunk.model)):
        parents = set(chunk.keys.parents[place]) - {None}
        if field is chunk.reference or not parents:
            continue
        parent: Any = field.related_model
        rows = parent.objects.for_organization(organization)
        deleted = rows.filter(pk__among=parents, deleted_at__isnull=False)
        moments = dict(deleted.order_by().values_list("pk", "deleted_at"))
        for parent_id, own in zip(chunk.keys.parents[place], chunk.keys.deleted_at, strict=True):
            moment = moments.get(parent_id)
            if moment and (chunk.reference is None or moment != own):
                child = chunk.model._meta.verbose_name
                name = parent._meta.verbose_name
                raise Conflict(f"The {name} of this {child} is in the trash: restore that first.")


# Which dependent rows a change includes: see `Pick`.


def _pick_live_unlocked(rows: Rows, chunk: Chunk) -> Rows:
    return rows.filter(is_deleted=False)


def _pick_live(rows: Rows, chunk: Chunk) -> Rows:
    return rows.filter(is_deleted=False).select_for_update(of=("self",))


def _pick_deleted_with(rows: Rows, chunk: Chunk) -> Rows:
    moments = set(chunk.keys.deleted_at)
    return rows.filter(deleted_at__among=moments).select_for_update(of=("self",), no_key=True)


def _first_ids(keys: RowKeys) -> list[UUID]:
    return list(keys.ids[: MAX_IDS_IN_EVENT + 1])


def _audited(field: Any, old: Any, new: Any) -> Any:
    """Old and new value for the audit log; None where they may hold personal content."""
    if isinstance(field, models.DateTimeField):
        return [str(old), str(new)]
    return [old, new] if isinstance(field, _AUDITED) or field.choices else None
