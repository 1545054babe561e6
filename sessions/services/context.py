"""Builds the working set of a prompt, within a budget: an agent's blocks, the best memories, the
latest messages.

Items are taken in this order: the system prompt, blocks in the order of their attachment, memories
by score, messages from newest to oldest. Items that do not fit are left out completely and listed;
only a message that is longer than half the room for messages is cut, with a mark.
"""

from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import Any, Literal
from uuid import UUID

from accounts.errors import Invalid
from accounts.models import Organization, User
from accounts.tenancy import tenant
from agentmem_site.db.ids import NOBODY
from memories.models import Agent, AgentBlock
from memories.services.searching import Hit, SearchResult, search_memories
from sessions.models import Message, Session

CHARACTERS_PER_TOKEN = 4  # in English; other scripts have fewer
Kind = Literal["system", "block", "memory", "message"]
Reason = Literal["over_budget", "after_a_gap", "another_user", "empty"]
MIN_CUT = 200  # characters: a message is not cut to less
_HEADINGS = {"memory": "# Memories\n", "message": "# Recent messages\n"}
_BETWEEN_PARTS, _BETWEEN_LINES = "\n\n", "\n"


@dataclass(frozen=True, slots=True)
class Item:
    """A part of the prompt. `characters` includes the heading or line break before it; `is_cut`: a
    mark at its end gives the full length."""

    kind: Kind
    id: UUID
    label: str
    text: str
    characters: int
    score: float | None = None
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class LeftOut:
    kind: Kind
    id: UUID
    label: str
    characters: int
    reason: Reason


@dataclass(slots=True)
class WorkingSet:
    """The items of the prompt, in order, and the items left out, with the reason."""

    max_characters: int
    items: list[Item] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    characters: int = 0
    notice: str = ""  # the search's

    @property
    def text(self) -> str:
        """The prompt, `characters` long."""
        parts: list[str] = []
        for kind, items in groupby(self.items, key=attrgetter("kind")):
            texts = [item.text for item in items]
            heading = _HEADINGS.get(kind)
            parts += [heading + _BETWEEN_LINES.join(texts)] if heading else texts
        return _BETWEEN_PARTS.join(parts)

    def room(self, kind: Kind) -> int:
        """How many characters one more item of this kind may have; negative if none fits."""
        return self.max_characters - self.characters - self._lead(kind)

    def offer(
        self,
        kind: Kind,
        row_id: UUID,
        label: str,
        text: str,
        *,
        score: float | None = None,
        is_cut: bool = False,
    ) -> bool:
        """Adds the item if it fits; returns whether it did."""
        if len(text) > self.room(kind):
            self.leave_out(kind, row_id, label, text, "over_budget")
            return False
        size = self._lead(kind) + len(text)
        self.items.append(Item(kind, row_id, label, text, size, score, is_cut))
        self.characters += size
        return True

    def _lead(self, kind: Kind) -> int:
        if kind in _HEADINGS and any(item.kind == kind for item in self.items):
            return len(_BETWEEN_LINES)
        return len(_HEADINGS.get(kind, "")) + (len(_BETWEEN_PARTS) if self.items else 0)

    def leave_out(self, kind: Kind, row_id: UUID, label: str, text: str, reason: Reason) -> None:
        self.left_out.append(LeftOut(kind, row_id, label, len(text), reason))


def estimated_tokens(characters: int) -> int:
    return -(-characters // CHARACTERS_PER_TOKEN)


def build_context(
    *,
    organization: Organization,
    agent: Agent | None,
    query: str,
    max_characters: int,
    user_id: UUID | None = None,
    session_id: UUID | None = None,
    memory_limit: int = 10,
    message_limit: int = 20,
    allow_gaps: bool = True,
) -> WorkingSet:
    """Builds the context of a prompt for the query. Called outside `tenant()`, because it encodes.

    Messages are those of the session, or without one those of the agent with the user; without
    either there are none. Without `allow_gaps` no message is older than one that does not fit. A
    missing agent, user or session (None, or an unknown id) contributes nothing, and the notice says
    so. Raises: Invalid, EncoderError.
    """
    unknown = [] if agent else ["agent"]
    with tenant(organization):
        session = _live(Session, session_id, organization)
        if user_id is not None and _live(User, user_id, organization) is None:
            unknown.append("user")
    if session_id is not None and session is None:
        unknown.append("session")
        # The user of this future session is not known, so no user's memories are searched.
        user_id = user_id or NOBODY
    if session is not None:
        if user_id is not None and session.user_id not in (None, user_id):
            raise Invalid("This session belongs to another user.", field="session_id")
        user_id = user_id or session.user_id
    result = SearchResult([], "hybrid", 0)
    if memory_limit:
        result = search_memories(
            organization=organization,
            query=query,
            agent_id=agent.pk if agent else NOBODY,
            user_id=user_id,
            limit=memory_limit,
            with_common=True,
        )
    notices = [f"There is no such {kind} yet." for kind in unknown]
    working_set = WorkingSet(
        max_characters, notice=" ".join(filter(None, [*notices, result.notice]))
    )
    with tenant(organization):
        if agent:
            _offer_blocks(working_set, organization, agent, user_id)
        for hit in result.hits:
            memory = hit.memory
            score = hit.ranked.score
            working_set.offer(
                "memory", memory.pk, memory.external_id or "", _line(hit), score=score
            )
        rows = Message.objects.for_organization(organization).live()
        if session_id is not None:
            rows = rows.filter(session_id=session_id)
            _offer_messages(working_set, rows, message_limit, allow_gaps=allow_gaps)
        elif agent is not None and user_id is not None:
            rows = rows.filter(agent=agent, user_id=user_id)
            _offer_messages(working_set, rows, message_limit, allow_gaps=allow_gaps)
    return working_set


def _live(model: Any, row_id: UUID | None, organization: Organization) -> Any:
    if row_id is None:
        return None
    return model.objects.for_organization(organization).live().filter(pk=row_id).first()


def _offer_blocks(
    working_set: WorkingSet, organization: Organization, agent: Agent, user_id: UUID | None
) -> None:
    if agent.system.strip():
        working_set.offer("system", agent.pk, "system", agent.system)
    links = AgentBlock.objects.for_organization(organization).live()
    links = links.filter(agent=agent, block__is_deleted=False).select_related("block")
    for link in links.order_by("created_at", "pk"):
        block = link.block
        text = f"# {block.label}\n{block.value}"
        if user_id is not None and block.user_id not in (None, user_id):
            working_set.leave_out("block", block.pk, block.label, text, "another_user")
        elif not block.value.strip():
            working_set.leave_out("block", block.pk, block.label, text, "empty")
        else:
            working_set.offer("block", block.pk, block.label, text)


def _line(hit: Hit) -> str:
    memory = hit.memory
    who = f"{memory.speaker}: " if memory.speaker else ""
    return f"- {memory.created_at:%Y-%m-%d} {who}{memory.content.strip()}"


def _offer_messages(working_set: WorkingSet, rows: Any, limit: int, *, allow_gaps: bool) -> None:
    start, has_gap = len(working_set.items), False
    large = working_set.room("message") // 2
    for message in rows.newest_first()[:limit]:
        words = message.words.strip()
        text = f"{message.role}: {words}"
        label = message.external_id or ""
        room = working_set.room("message")
        if not words:
            working_set.leave_out("message", message.pk, label, text, "empty")
        elif has_gap:  # an older message would seem to precede the next one directly
            working_set.leave_out("message", message.pk, label, text, "after_a_gap")
        elif len(text) > room and len(text) > large and room // 2 >= MIN_CUT:
            cut = _cut(text, room // 2)
            working_set.offer("message", message.pk, label, cut, is_cut=True)
        elif not working_set.offer("message", message.pk, label, text):
            has_gap = not allow_gaps
    working_set.items[start:] = reversed(working_set.items[start:])


def _cut(text: str, characters: int) -> str:
    """The beginning of a longer text, and a mark with its length."""
    mark = f"… [cut: {len(text):,} characters]"
    return text[: characters - len(mark)] + mark
