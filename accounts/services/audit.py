"""The audit log: one event per change, written with it.

What `changes` of an event holds, where it holds anything:

- `fields`: {name: [old, new], or null where a value may be somebody's words}
- `rows`: {model or resource: how many}
- `ids`: the uuids of those rows, the first of them; `with`: the uuid of the other row
- `filter`: the names of the conditions that picked the rows
- any other name: a number, a word, a flag, or {name: number}: what a load or an export counted.

Rows written before this was checked may hold anything: who shows them takes any JSON.
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
    """Writes one event in the caller's transaction. `changes` must not hold anybody's content.

    Raises: TypeError (`changes` is of another shape than the module says).
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
        if not _SHAPES.get(name, _is_counted)(value):
            raise TypeError(f"changes[{name!r}] of an audit event cannot be {value!r:.100}.")


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_named(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and fits(each) for name, each in value.items()
    )


def _are_words(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(word, str) for word in value)


def _are_fields(value: Any) -> bool:
    return _is_named(value, lambda told: told is None or _is_old_and_new(told))


def _is_old_and_new(told: Any) -> bool:
    return isinstance(told, list | tuple) and len(told) == 2 and all(map(_is_plain, told))


def _is_counted(value: Any) -> bool:
    return _is_plain(value) or _is_named(value, _is_number)


_SHAPES: dict[str, Callable[[Any], bool]] = {
    "fields": _are_fields,
    "rows": lambda value: _is_named(value, _is_number),
    "ids": _are_words,
    "with": lambda value: isinstance(value, str),
    "filter": _are_words,
}
