"""The filters of searches and bulk changes."""

from dataclasses import astuple, dataclass, fields
from datetime import datetime
from typing import Any, Self
from uuid import UUID

from django.db.models import BooleanField, Func, Q, Value
from django.db.models.functions import Cast, Coalesce

from agentmem_site.db.fields import RealField


class MetadataMatches(Func):
    """`metadata @@ jsonpath`, but errors count as false."""

    template = "jsonb_path_match(%(expressions)s::jsonpath, '{}', true)"
    output_field = BooleanField()


@dataclass(frozen=True, slots=True)
class MemoryFilter:
    """All conditions must match; None means no condition. The fields are those of the SQL type
    `agentmem_filter`, in its order."""

    agent_id: UUID | None = None
    user_id: UUID | None = None
    session_id: str | None = None
    memory_types: tuple[str, ...] | None = None
    scopes: tuple[str, ...] | None = None
    levels: tuple[str, ...] | None = None
    since: datetime | None = None  # created at this time or later
    until: datetime | None = None  # created before it
    importance_min: float | None = None
    importance_max: float | None = None
    metadata: str | None = None  # compile_metadata()
    as_of: datetime | None = None  # existed then, whether deleted since or not
    # Beside those of `agent_id` and `user_id` also memories without an agent, or without a user.
    with_common: bool | None = None

    def as_parameters(self) -> list[Any]:
        """For ROW(..)::agentmem_filter."""
        return [list(v) if isinstance(v, tuple) else v for v in astuple(self)]

    def is_empty(self) -> bool:
        return all(getattr(self, field.name) is None for field in fields(self))

    def indexed_part(self) -> Self:
        """The conditions that an index can answer."""
        return type(self)(
            agent_id=self.agent_id,
            user_id=self.user_id,
            session_id=self.session_id,
            with_common=self.with_common,
        )

    def apply_to(self, rows: Any) -> Any:
        """Filters a queryset; `as_of` is only for searches."""
        for name in ("agent_id", "user_id"):
            if (value := getattr(self, name)) is not None:
                own = Q(**{name: value})
                rows = rows.filter(
                    own | Q(**{f"{name}__isnull": True}) if self.with_common else own
                )
        lookups = {
            "session_id": self.session_id,
            "memory_type__in": self.memory_types,
            "scope__in": self.scopes,
            "level__in": self.levels,
            "created_at__gte": self.since,
            "created_at__lt": self.until,
            "importance__gte": _real(self.importance_min),
            "importance__lte": _real(self.importance_max),
        }
        rows = rows.filter(**{name: value for name, value in lookups.items() if value is not None})
        if self.metadata is None:
            return rows
        matches = MetadataMatches("metadata", Value(self.metadata))
        return rows.filter(Coalesce(matches, Value(False)))


def _real(value: float | None) -> Any:
    """0.1 as a real is not 0.1 as a double."""
    return None if value is None else Cast(Value(value), RealField())
