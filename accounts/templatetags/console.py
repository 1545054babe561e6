"""How the console's templates show values: accounts/console/show.py, as filters."""

from datetime import datetime
from typing import Any

from django import template

from accounts.console import show

register = template.Library()

_RUN_KINDS = {"completed": "good", "running": "info", "failed": "bad", "cancelled": "warn"}
_CHANGE_KINDS = {
    "created": "good",
    "updated": "info",
    "deleted": "bad",
    "restored": "good",
    "merged": "info",
}


@register.filter
def moment(value: datetime | None) -> Any:
    return show.when(value)


@register.filter
def as_written(text: str) -> Any:
    return show.long_text(text)


@register.filter
def folded(value: Any, label: str) -> Any:
    return show.folded_json(value, label)


@register.filter
def took(run: Any) -> str:
    return show.duration(run.started_at, run.completed_at)


@register.filter
def run_badge(run: Any) -> Any:
    return show.badge(run.get_status_display(), _RUN_KINDS.get(run.status, ""))


@register.filter
def change_badge(change: Any) -> Any:
    return show.badge(change.get_change_type_display(), _CHANGE_KINDS.get(change.change_type, ""))
