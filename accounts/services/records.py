"""The life of a row: created, updated, moved to the trash with what hangs on it, restored, purged.

One `Records` per model serves the API, the console and the commands. Each method is one change
that a person would name: its own atomic block, the audit columns, the history, one audit event.
The door holds the organization's context (accounts/tenancy.py).
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
from accounts.services.hanging import (
    Chunk,
    Counts,
    Found,
    Pick,
    Progress,
    Reach,
    Rows,
    add,
    everything,
    find_all,
    parents_of,
    progress,
    remove,
    walk,
)
from accounts.services.holding import hold_parents
from accounts.services.naming import add_named
from accounts.services.seen import refuse_stale

M = TypeVar("M", bound=models.Model)

MAX_IDS_IN_EVENT = 100
# The audit log tells old and new only of values that are no one's words.
_TELLING = (models.BooleanField, models.IntegerField, models.FloatField)


class Records(Generic[M]):
    """Create, update, delete, restore and purge for one model. What a new or changed row names and
    nobody has yet is added with it (naming.py)."""

    def __init__(self, model: type[M]) -> None:
        self.model: Any = model
        self.name = str(model._meta.model_name)

    # In which order the rows are locked, of which a change is asked.
    lock_order: Sequence[str] = ("pk",)

    # -- what a subclass may say ---------------------------------------------------------------

    def derive(self, record: M, changed: frozenset[str], *, is_new: bool) -> frozenset[str]:
        """Sets the columns that follow from `changed` ones; returns all names to write."""
        return changed

    def before_update(
        self, record: M, values: Mapping[str, Any], *, organization: Organization, actor: Actor
    ) -> None:
        """Refuses what `actor` may not do. `record` is locked and as it was; `values` differ."""

    def after_update(self, record: M, changed: frozenset[str]) -> None:
        """Carries a change on to rows that repeat it, in the same transaction."""

    def before_move(self, rows: Rows, *, organization: Organization, actor: Actor) -> None:
        """Before `rows` go to the trash, come back or are purged, in the same transaction."""

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
                record.organization = organization  # whatever the row says, organization_id too
                self.derive(record, frozenset(row), is_new=True)
            hold_parents(records, organization)
            self.model.objects.bulk_create(records)
            self._note("created", organization, actor, [r.pk for r in records], now)
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
        """The row with `values` set; untouched, timestamps too, when it has them already.

        `seen` holds digests of what the caller knows of these columns (services/seen.py): one
        that has changed since is not written over. Without it the last writer wins.

        Raises: NotFound (purged or in the trash meanwhile), Stale, Conflict, Forbidden,
            Invalid.
        """
        with transaction.atomic(), named_violations(self.model):
            add_named(values, organization=organization, actor=actor)
            rows = self.model.objects.for_organization(organization).filter(pk=record.pk)
            locked = rows.select_for_update(of=("self",)).first()
            if locked is None:
                raise NotFound
            if locked.is_deleted:
                raise NotFound("It lies in the trash: restore it first.")
            changes = {
                name: _told(field, old, new)
                for name, value in values.items()
                for field in [self.model._meta.get_field(name)]
                for old, new in [(getattr(locked, field.attname), getattr(value, "pk", value))]
                if old != new
            }
            if not changes:
                return locked
            if {"organization", "organization_id"} & changes.keys():
                raise Invalid("A row stays in its organization.", field="organization")
            refuse_stale(locked, changes, seen or {})
            told = {name: values[name] for name in changes}
            self.before_update(locked, told, organization=organization, actor=actor)
            for name in changes:
                setattr(locked, name, values[name])
            now = timezone.now()
            locked.updated_at, locked.last_updated_by_id = now, actor.id
            written = self.derive(locked, frozenset(changes), is_new=False)
            hold_parents([locked], organization, fields=written)
            locked.save(update_fields=[*written, "updated_at", "last_updated_by_id"])
            self.after_update(locked, frozenset(changes))
            self._note("updated", organization, actor, [locked.pk], now, {"fields": changes})
        return locked

    def delete(self, rows: Rows, *, organization: Organization, actor: Actor) -> Counts:
        """Moves the live ones of `rows` to the trash, with all that hangs on them; how many.

        The whole set gets one `deleted_at`: by it, `restore` finds what went together.
        Raises: Unavailable (it takes longer than a request may).
        """
        stamp = {"is_deleted": True, "deleted_at": timezone.now()}
        live = rows.for_organization(organization).filter(is_deleted=False)
        return self._move("deleted", live, _live, stamp, organization, actor)

    def restore(self, rows: Rows, *, organization: Organization, actor: Actor) -> Counts:
        """Brings `rows` back from the trash, each with what was deleted with it.

        Raises: Conflict (a live row has taken the place, or the parent lies in the trash),
        Unavailable (it takes longer than a request may).
        """
        stamp = {"is_deleted": False, "deleted_at": None}
        # (Not by `is_deleted`: the index of the trash would seem the shortest way to a row.)
        lying = rows.for_organization(organization).filter(deleted_at__isnull=False)
        return self._move("restored", lying, _moved_with, stamp, organization, actor)

    def purge(self, rows: Rows, *, organization: Organization, actor: Actor) -> Counts:
        """Removes `rows` and all that hangs on them for good; references that outlive them are
        emptied. How many rows of which model went.

        Raises: Unavailable (it takes longer than a request may)."""
        rows = rows.for_organization(organization)
        counts: Counts = {}
        with transaction.atomic(), self._changing("purge") as going:
            self.before_move(rows, organization=organization, actor=actor)
            roots = self._lock(rows)
            chunks = walk(self.model, roots, organization, everything, for_good=True)
            remove(chunks, organization, counts, going)
            self._event("purged", organization, actor, _first_ids(roots), {"rows": counts})
        return counts

    # -- questions -------------------------------------------------------------------------------

    def reach(
        self, rows: Rows, *, organization: Organization, at_most: int, for_good: bool = False
    ) -> Counts:
        """How many rows of which model `delete` (`purge`, if `for_good`) would take; `at_most` + 1
        stands for more. Nothing is locked."""
        rows = rows.for_organization(organization)
        rows = rows if for_good else rows.filter(is_deleted=False)
        roots = find_all(rows.order_by())
        reach = Reach(everything if for_good else _unlocked, for_good=for_good, at_most=at_most)
        return reach.count(walk(self.model, roots, organization, reach.pick, for_good=for_good))

    # -- inside ----------------------------------------------------------------------------------

    def _move(
        self,
        action: str,
        rows: Rows,
        pick: Pick,
        stamp: Mapping[str, Any],
        organization: Organization,
        actor: Actor,
    ) -> Counts:
        """Stamps `rows` and what hangs on them, the deepest first."""
        counts: Counts = {}
        now = timezone.now()
        is_back = not stamp["is_deleted"]
        with transaction.atomic(), self._changing("restore" if is_back else "delete") as going:
            self.before_move(rows, organization=organization, actor=actor)
            # (Who writes what hangs on a row holds it: a deletion waits, and takes that along.)
            roots = self._lock(rows, no_key=is_back)
            for chunk in walk(self.model, roots, organization, pick, is_together=is_back):
                if is_back:
                    _refuse_orphans(chunk, organization)
                moved = chunk.rows(organization)
                moved.write_history(
                    action, organization=organization, changed_by_id=actor.id, at=now
                )
                set_too = {**moved.set_by_move, "last_updated_by_id": actor.id}
                add(counts, chunk.model, moved.update(**stamp, **set_too), going)
            if counts:
                self._event(action, organization, actor, _first_ids(roots), {"rows": counts})
        return counts

    @contextmanager
    def _changing(self, verb: str) -> Iterator[Progress]:
        with named_violations(self.model), progress(f"{verb} {self.name}") as going:
            yield going

    def _lock(self, rows: Rows, *, no_key: bool = False) -> Found:
        ordered = rows.order_by(*self.lock_order)
        return find_all(ordered.select_for_update(of=("self",), no_key=no_key))

    def _note(
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
    """Refuses to bring back rows whose parent stays in the trash: a purge of it would take them.
    A parent that went there with its row is being brought back with it."""
    for place, field in enumerate(parents_of(chunk.model)):
        parents = set(chunk.found.parents[place]) - {None}
        if field is chunk.way or not parents:
            continue
        parent: Any = field.related_model
        rows = parent.objects.for_organization(organization)
        lying = rows.filter(pk__among=parents, deleted_at__isnull=False)
        moments = dict(lying.order_by().values_list("pk", "deleted_at"))
        for parent_id, went in zip(chunk.found.parents[place], chunk.found.moments, strict=True):
            moment = moments.get(parent_id)
            if moment and (chunk.way is None or moment != went):
                child = chunk.model._meta.verbose_name
                name = parent._meta.verbose_name
                raise Conflict(f"The {name} of this {child} lies in the trash: restore that first.")


# What goes along: see `Pick`.


def _unlocked(rows: Rows, chunk: Chunk) -> Rows:
    return rows.filter(is_deleted=False)


def _live(rows: Rows, chunk: Chunk) -> Rows:
    return rows.filter(is_deleted=False).select_for_update(of=("self",))


def _moved_with(rows: Rows, chunk: Chunk) -> Rows:
    moments = set(chunk.found.moments)
    return rows.filter(deleted_at__among=moments).select_for_update(of=("self",), no_key=True)


def _first_ids(found: Found) -> list[UUID]:
    return list(found.ids[: MAX_IDS_IN_EVENT + 1])


def _told(field: Any, old: Any, new: Any) -> Any:
    """Old and new for the audit log where the values are no one's words; else None."""
    if isinstance(field, models.DateTimeField):
        return [str(old), str(new)]
    return [old, new] if isinstance(field, _TELLING) or field.choices else None
