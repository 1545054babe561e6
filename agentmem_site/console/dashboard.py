"""The overview: a few bounded statements, for tables of any size."""

from collections import Counter
from datetime import timedelta
from typing import Any

from django.http import HttpRequest
from django.utils import timezone

from accounts.console import show
from accounts.console.context import member_of, seen_by, sole_organization
from accounts.console.lists import COUNT_BOUND
from accounts.models import Organization, User
from accounts.roles import permission
from memories.models import Agent, Memory
from memories.services.embed_progress import Progress, embed_progress
from sessions.models import Run, Session

SHOWN = 6
LATEST = 1_000  # shares are computed over the newest rows
DAYS = 14
_OF_EMBEDDING = {"ready": "good", "pending": "info", "failed": "bad", "unreadable": "warn"}

_COUNTED: tuple[tuple[Any, str, str], ...] = (
    (Agent, "agent", "smart_toy"),
    (Memory, "memory", "neurology"),
    (Session, "session", "forum"),
    (User, "user", "group"),
)


def dashboard(request: HttpRequest) -> dict[str, Any]:
    member = member_of(request)
    cards = [
        {
            "title": model._meta.verbose_name_plural,
            "icon": icon,
            "number": _number(_unexpired(seen_by(request, model.objects.live()))),
            "url": show.list_url(model),
        }
        for model, resource, icon in _COUNTED
        if member.has_perm(permission(resource, "read"))
    ]
    if member.is_superuser:
        # Newest first across organizations would sort whole tables: a superuser selects one first.
        rows = Organization.objects.live().order_by("-created_at")[: SHOWN * 2]
        return {"cards": cards, "organizations": [_organization(row) for row in rows]}
    return {"cards": cards, "activity": _activity(request), **_newest(request)}


def _unexpired(rows: Any) -> Any:
    """The rows that lists and searches show."""
    return rows.unexpired() if rows.model is Memory else rows


def _number(rows: Any) -> str:
    number = rows.order_by().values("pk")[: COUNT_BOUND + 1].count()
    return _bounded(number)


def _bounded(number: int) -> str:
    return f"{COUNT_BOUND:,}+" if number > COUNT_BOUND else f"{number:,}"


def _newest(request: HttpRequest) -> dict[str, Any]:
    sessions = seen_by(request, Session.objects.live()).select_related("agent", "user")
    memories = seen_by(request, Memory.objects.live()).select_related("user", "agent")
    return {
        "sessions": [
            {
                "link": show.link(row),
                "who": " · ".join(str(x) for x in (row.agent, row.user) if x),
                "at": show.when(row.created_at),
            }
            for row in sessions.newest_first()[:SHOWN]
        ],
        "memories": [
            {
                "link": show.link(row, row.content[:90]),
                "who": " · ".join(
                    str(x) for x in (row.get_memory_type_display(), row.user, row.agent) if x
                ),
                "at": show.when(row.created_at),
            }
            for row in memories.newest_first()[:SHOWN]
        ],
        "shares": [
            _embedding(request),
            _share(request, "Kinds of the newest memories", Memory, "memory_type", {}),
            _share(
                request,
                "State of the newest runs",
                Run,
                "status",
                {
                    "completed": "good",
                    "running": "info",
                    "pending": "info",
                    "failed": "bad",
                    "cancelled": "warn",
                },
            ),
        ],
    }


def _embedding(request: HttpRequest) -> dict[str, Any]:
    """How many memories are embedded, and why others are not."""
    organization = sole_organization(request)
    assert organization is not None  # noqa: S101  (a superuser has another page)
    progress = embed_progress(organization)
    labels = dict(Memory.EmbeddingState.choices)
    counts = {state: counted for state, counted in progress.counts.items() if counted.number}
    total = sum(counted.number for counted in counts.values())
    return {
        "title": "Embedding of all memories",
        "parts": [
            {
                "label": labels[state],
                "number": f"{counted.number:,}{'+' if counted.is_more else ''}",
                # (Even one in a million is visible.)
                "percent": max(1, round(100 * counted.number / total)),
                "kind": _OF_EMBEDDING[state],
                "url": show.list_url(Memory, embedding_state__exact=state),
            }
            for state, counted in counts.items()
        ],
        **_embedding_note(progress),
    }


def _embedding_note(progress: Progress) -> dict[str, Any]:
    """Whether pending memories are being embedded; if not, why."""
    if not progress.counts["pending"].number:
        return {}
    until = "Until then only keyword search finds them."
    if progress.visited_at is None:
        reason = "No embedding worker has run yet. Start one: manage.py embed_worker."
    elif not progress.has_worker:
        at = timezone.localtime(progress.visited_at)
        reason = (
            f"No embedding worker has run since {at:%d %b %Y, %H:%M}. "
            "Start one: manage.py embed_worker."
        )
    elif progress.is_failing:
        reason = "The embedding worker cannot use its encoder: see the server's log."
    else:
        return {"sentence": f"A worker is embedding the pending memories. {until}"}
    return {"sentence": f"{reason} {until}", "is_bad": True}


def _share(
    request: HttpRequest, title: str, model: Any, column: str, kinds: dict[str, str]
) -> dict[str, Any]:
    """The newest rows by the values of a column. One statement, over at most LATEST rows."""
    newest = seen_by(request, model.objects.live()).newest_first()
    counts = Counter(newest.values_list(column, flat=True)[:LATEST])
    total = sum(counts.values())
    labels = dict(model._meta.get_field(column).flatchoices)
    return {
        "title": title,
        "total": total,
        "parts": [
            {
                "label": labels.get(value, value),
                "number": number,
                "percent": round(100 * number / total),
                "kind": kinds.get(value, f"tone-{position % 8}"),
                "url": show.list_url(model, **{f"{column}__exact": value}),
            }
            for position, (value, number) in enumerate(counts.most_common())
        ],
    }


def _activity(request: HttpRequest) -> dict[str, Any]:
    """Sessions per day, of the newest COUNT_BOUND at most."""
    today = timezone.localdate()
    days = [today - timedelta(days=back) for back in reversed(range(DAYS))]
    since = timezone.now() - timedelta(days=DAYS)
    newest = seen_by(request, Session.objects.live()).filter(created_at__gte=since).newest_first()
    moments = list(newest.values_list("created_at", flat=True)[: COUNT_BOUND + 1])
    counts = Counter(timezone.localtime(moment).date() for moment in moments[:COUNT_BOUND])
    highest = max(counts.values(), default=0) or 1
    return {
        "total": _bounded(len(moments)),
        "days": [
            {
                "label": f"{day.day} {day:%b}" if day.day == 1 or day == days[0] else day.day,
                "title": f"{day.day} {day:%B}: {counts[day]:,}",
                "number": counts[day],
                "height": round(100 * counts[day] / highest),
            }
            for day in days
        ],
    }


def _organization(row: Organization) -> dict[str, Any]:
    return {
        "link": show.link(row),
        "slug": row.slug,
        "at": show.when(row.created_at),
        "lists": [
            (model._meta.verbose_name_plural, show.list_url(model, organization__id__exact=row.pk))
            for model, _, _ in _COUNTED
        ],
    }
