"""A conversation for the console: its turns in order, grouped by run."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from accounts.console.lists import BoundedPaginator
from sessions.models import Message, Run, Session
from sessions.words import with_placeholders, words_of

RUNS_PER_PAGE = 20
MESSAGES_PER_PAGE = 200
TURNS_PER_RUN = 50


@dataclass
class Turn:
    role: str
    text: str
    who: str = ""
    at: datetime | None = None
    model: str = ""
    message: Message | None = None
    data: list[tuple[str, Any]] = field(default_factory=list)  # label and JSON, folded


@dataclass
class Part:
    """A run with its turns; or, without a run, messages outside of runs."""

    turns: list[Turn]
    run: Run | None = None
    at: datetime | None = None


def conversation(session: Session, page_number: Any) -> tuple[list[Part], Any]:
    """The parts of one page, oldest first, and the page object. At most four statements."""
    alike = {"session": session, "is_deleted": session.is_deleted}
    runs = Run.objects.for_organization(session.organization_id).filter(**alike)
    page = BoundedPaginator(runs.order_by("position", "id"), RUNS_PER_PAGE).get_page(page_number)
    shown = list(page)
    rows = Message.objects.for_organization(session.organization_id).filter(**alike)
    rows = rows.select_related("user", "agent").order_by("created_at", "id")
    if not shown:
        page = BoundedPaginator(rows, MESSAGES_PER_PAGE).get_page(page_number)
        turns = [message_turn(message) for message in page]
        return ([Part(turns)] if turns else []), page
    by_run: dict[Any, list[Message]] = {}
    for message in rows.filter(run__in=[run.pk for run in shown])[: RUNS_PER_PAGE * TURNS_PER_RUN]:
        by_run.setdefault(message.run_id, []).append(message)
    parts = [run_part(run, by_run.get(run.pk, [])) for run in shown]
    # Messages outside of runs are placed between them, by time.
    outside = rows.filter(run=None)
    if page.has_previous():
        outside = outside.filter(created_at__gte=parts[0].at)
    if page.has_next():
        outside = outside.filter(created_at__lt=parts[-1].at)
    parts += [Part([message_turn(m)], at=m.created_at) for m in outside[:MESSAGES_PER_PAGE]]
    return sorted(parts, key=lambda part: part.at or session.created_at), page


def run_part(run: Run, messages: list[Message]) -> Part:
    turns = [message_turn(message) for message in messages] or list(_turns_in_run(run))
    answer = words_of(text=run.content)
    answered = any(turn.role == "assistant" and turn.text == answer for turn in turns)
    if answer and not answered:
        turns.append(Turn("assistant", answer, at=run.completed_at, model=run.model))
    return Part(turns, run, run.started_at or run.created_at)


def message_turn(message: Message) -> Turn:
    speaker = {"user": message.user, "assistant": message.agent}.get(message.role)
    labels = (
        ("Tool calls", message.tool_calls),
        ("Tool returns", message.tool_returns),
    )
    return Turn(
        role=message.role,
        text=message.words,
        who=message.name or (str(speaker) if speaker else ""),
        at=message.created_at,
        model=message.model,
        message=message,
        data=[(label, with_placeholders(value)) for label, value in labels if value],
    )


def _turns_in_run(run: Run) -> Iterator[Turn]:
    """The messages stored in the run itself, without those repeated from earlier runs."""
    for message in run.messages[:TURNS_PER_RUN] if isinstance(run.messages, list) else []:
        if not isinstance(message, dict) or message.get("from_history"):
            continue
        calls = message.get("tool_calls")
        yield Turn(
            role=str(message.get("role", "")),
            text=words_of(content=message.get("content"), tool_calls=calls),
            who=str(message.get("name") or ""),
            data=[("Tool calls", with_placeholders(calls))] if calls else [],
        )
