"""The audit log: one event per change, written in the same transaction.

Keys of an event's `changes`, all optional:

- `fields`: {name: [old, new], or null if a value may hold personal content}
- `rows`: {model or resource: count}
- `ids`: the uuids of the first of those rows; `with`: the uuid of the other row
- `filter`: the names of the conditions that selected the rows
- any other name: a number, a string, a flag, or {name: number}: counts of a load or an export.

Older events may hold any JSON; code that displays them must accept that.
"""

from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from accounts.actors import Actor
from accounts.models import AuditEvent, Organization


def record_event(
    *,
    organization: Organization | UUID | None,
    actor: Actor,
    action: str,
    resource_type: str,
    resource_id: UUID | None = None,
    changes: Mapping[str, Any] | None = None,
    status: str = AuditEvent.Status.SUCCESS,
    duration_ms: int | None = None,
) -> None:
    """Writes one event in the caller's transaction. `changes` must not hold personal content.

    Raises: TypeError (`changes` does not have the shape above).
    """
    changes = dict(changes or {})
    _check(changes)
    organization_id = organization.pk if isinstance(organization, Organization) else organization
    AuditEvent.objects.create(
        organization_id=organization_id,
        actor_id=actor.id,
        actor_kind=actor.kind,
        actor_name=actor.name[:255],
        action=action,
        resource_type=resource_type,
        resource_id=resource_id,
        request_id=actor.request_id,
        ip=actor.ip,
        user_agent=actor.user_agent,
        status=status,
        duration_ms=duration_ms,
        changes=changes,
    )


def _check(changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        if not _SHAPES.get(name, _is_plain_or_counts)(value):
            raise TypeError(f"changes[{name!r}] of an audit event cannot be {value!r:.100}.")


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_named(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and fits(each) for name, each in value.items()
    )


def _are_strings(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


def _are_fields(value: Any) -> bool:
    return _is_named(value, lambda pair: pair is None or _is_old_and_new(pair))


def _is_old_and_new(pair: Any) -> bool:
    return isinstance(pair, list | tuple) and len(pair) == 2 and all(map(_is_plain, pair))


def _is_plain_or_counts(value: Any) -> bool:
    return _is_plain(value) or _is_named(value, _is_number)


_SHAPES: dict[str, Callable[[Any], bool]] = {
    "fields": _are_fields,
    "rows": lambda value: _is_named(value, _is_number),
    "ids": _are_strings,
    "with": lambda value: isinstance(value, str),
    "filter": _are_strings,
}
