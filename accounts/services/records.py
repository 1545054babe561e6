"""The life of a row: created, updated, moved to the trash with what hangs on it, restored, purged.

One `Records` per model serves the API, the console and the commands. Each method is one change
that a person would name: its own atomic block, the audit columns, the history, one audit event.
The door holds the organization's context (accounts/tenancy.py).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

from django.db import models, transaction
from django.utils import timezone

from accounts.actors import Actor
from accounts.errors import Conflict, Invalid, NotFound, named_violations
from accounts.models import Organization
from accounts.services.audit import record_event
from accounts.services.seen import refuse_stale
from accounts.tenancy import LoadedModel
from agentmem_site.db.fields import TenantForeignKey

M = TypeVar("M", bound=models.Model)
Rows = Any  # an AuditedQuerySet of any model
Narrow = Callable[[Rows], Rows]
Counts = dict[str, int]  # rows by model, e.g. {"session": 1, "run": 4}

MAX_IDS_IN_EVENT = 100
# The audit log tells old and new only of values that are no one's words.
_TELLING = (models.BooleanField, models.IntegerField, models.FloatField)


class Records(Generic[M]):
    """Create, update, delete, restore and purge for one model."""

    def __init__(self, model: type[M]) -> None:
        self.model: Any = model
        self.name = str(model._meta.model_name)

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
        """The new row. Raises: Conflict, Invalid."""
        return self.create_many(organization=organization, actor=actor, rows=[values])[0]

    def create_many(
        self, *, organization: Organization, actor: Actor, rows: Sequence[Mapping[str, Any]]
    ) -> list[M]:
        """The new rows, in order: one INSERT, all or none. Raises: Conflict, Invalid."""
        now = timezone.now()
        stamps = {
            "created_at": now,
            "updated_at": now,
            "created_by_id": actor.id,
            "last_updated_by_id": actor.id,
        }
        records = [self.model(**{**stamps, **row}) for row in rows]
        for record, row in zip(records, rows, strict=True):
            record.organization = organization  # whatever the row says, organization_id too
            self.derive(record, frozenset(row), is_new=True)
        with transaction.atomic(), named_violations(self.model):
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

        Raises: NotFound (purged or in the trash meanwhile), Stale, Conflict, Invalid.
        """
        with transaction.atomic(), named_violations(self.model):
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
            locked.save(update_fields=[*written, "updated_at", "last_updated_by_id"])
            self.after_update(locked, frozenset(changes))
            self._note("updated", organization, actor, [locked.pk], now, {"fields": changes})
        return locked

    def delete(self, rows: Rows, *, organization: Organization, actor: Actor) -> Counts:
        """Moves the live ones of `rows` to the trash, with all that hangs on them; how many.

        The whole set gets one `deleted_at`: by it, `restore` finds what went together.
        """
        stamp = {"is_deleted": True, "deleted_at": timezone.now()}
        rows = rows.for_organization(organization)
        with transaction.atomic():
            return self._move("deleted", rows, _live, stamp, organization, actor)

    def restore(self, rows: Rows, *, organization: Organization, actor: Actor) -> Counts:
        """Brings `rows` back from the trash, each with what was deleted with it.

        Raises: Conflict (a live row has taken the place, or the parent lies in the trash).
        """
        stamp = {"is_deleted": False, "deleted_at": None}
        rows = rows.for_organization(organization)
        counts: Counts = {}
        with transaction.atomic():
            deleted = rows.filter(is_deleted=True).order_by("deleted_at")
            for moment in list(deleted.values_list("deleted_at", flat=True).distinct()):
                together = _deleted_at(moment)
                for below in _descend(together(rows), organization, together):
                    _refuse_orphans(below, but=None if below.model is self.model else moment)
                part = self._move("restored", rows, together, stamp, organization, actor)
                counts = {k: counts.get(k, 0) + part.get(k, 0) for k in {**counts, **part}}
        return counts

    def purge(self, rows: Rows, *, organization: Organization, actor: Actor) -> Counts:
        """Removes `rows` and all that hangs on them for good; references that outlive them are
        emptied. How many rows of which model went."""
        rows = rows.for_organization(organization)
        counts: Counts = {}
        with transaction.atomic(), named_violations(self.model):
            self.before_move(rows, organization=organization, actor=actor)
            ids = _first_ids(rows)
            for below in _descend(rows, organization, _all, for_good=True):
                # Not .delete(): Django would collect the rows in Python and go by id alone.
                _add(counts, below, below._raw_delete(below.db))
            self._event("purged", organization, actor, ids, {"rows": counts})
        return counts

    # -- questions -------------------------------------------------------------------------------

    def reach(
        self, rows: Rows, *, organization: Organization, at_most: int, for_good: bool = False
    ) -> Counts:
        """How many rows of which model `delete` (`purge`, if `for_good`) would take; `at_most` + 1
        stands for more. One bounded statement per model."""
        narrow = _all if for_good else _live
        found: dict[type[models.Model], list[Rows]] = {}
        for below in _descend(narrow(rows), organization, narrow):
            found.setdefault(below.model, []).append(below.order_by().values("pk")[: at_most + 1])
        counts: Counts = {}
        for model, parts in found.items():  # reached on two ways, a row counts once
            if number := parts[0].union(*parts[1:])[: at_most + 1].count():
                counts[str(model._meta.model_name)] = number
        return counts

    # -- inside ----------------------------------------------------------------------------------

    def _move(
        self,
        action: str,
        rows: Rows,
        narrow: Narrow,
        stamp: Mapping[str, Any],
        organization: Organization,
        actor: Actor,
    ) -> Counts:
        """Stamps `rows` and what hangs on them, the deepest first: parents still tell their own."""
        counts: Counts = {}
        now = timezone.now()
        self.before_move(narrow(rows), organization=organization, actor=actor)
        ids = _first_ids(narrow(rows))
        with named_violations(self.model):
            for below in _descend(narrow(rows), organization, narrow):
                below.write_history(
                    action, organization=organization, changed_by_id=actor.id, at=now
                )
                set_too = {**below.set_by_move, "last_updated_by_id": actor.id}
                _add(counts, below, below.update(**stamp, **set_too))
        if counts:
            self._event(action, organization, actor, ids, {"rows": counts})
        return counts

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


def _descend(
    rows: Rows, organization: Organization, narrow: Narrow, *, for_good: bool = False
) -> Iterator[Rows]:
    """`rows` and, level by level, those that hang on them by a CASCADE reference, deepest first.

    `narrow` picks among them (the live, those deleted at one moment). Querysets stay nested, so
    that a million rows are never carried through Python. `for_good` takes along what has no trash
    of its own, and empties the references that outlive the rows.
    """
    for relation in rows.model._meta.related_objects:
        reference, child = relation.field, relation.related_model
        if not isinstance(reference, TenantForeignKey):
            continue
        below = child.objects.for_organization(organization).filter(
            **{f"{reference.name}__in": rows.order_by().values("pk")}
        )
        if relation.on_delete is models.CASCADE:
            if child.has_trash or for_good:
                yield from _descend(narrow(below), organization, narrow, for_good=for_good)
        elif for_good:
            # (What a file said of it is no longer so.)
            said = {"line_hash": None} if issubclass(child, LoadedModel) else {}
            below.update(**{reference.name: None, **said})
    yield rows


def _refuse_orphans(rows: Rows, *, but: datetime | None) -> None:
    """Refuses to bring back rows whose parent stays in the trash: a purge of it would take them.
    Parents deleted at `but` are being brought back with them."""
    for field in rows.model._meta.fields:
        if not isinstance(field, TenantForeignKey):
            continue
        if field.remote_field.on_delete is not models.CASCADE:
            continue
        orphans = rows.filter(**{f"{field.name}__is_deleted": True})
        if but is not None:
            orphans = orphans.exclude(**{f"{field.name}__deleted_at": but})
        if orphans.exists():
            child, parent = rows.model._meta.verbose_name, field.related_model._meta.verbose_name
            raise Conflict(f"The {parent} of this {child} lies in the trash: restore that first.")


def _all(rows: Rows) -> Rows:
    return rows


def _live(rows: Rows) -> Rows:
    return rows.filter(is_deleted=False)


def _deleted_at(moment: datetime) -> Narrow:
    return lambda rows: rows.filter(is_deleted=True, deleted_at=moment)


def _add(counts: Counts, rows: Rows, number: int) -> None:
    if number:
        name = str(rows.model._meta.model_name)
        counts[name] = counts.get(name, 0) + number


def _first_ids(rows: Rows) -> list[UUID]:
    return list(rows.order_by().values_list("pk", flat=True)[: MAX_IDS_IN_EVENT + 1])


def _told(field: Any, old: Any, new: Any) -> Any:
    """Old and new for the audit log where the values are no one's words; else None."""
    if isinstance(field, models.DateTimeField):
        return [str(old), str(new)]
    return [old, new] if isinstance(field, _TELLING) or field.choices else None
