"""Agents, their blocks and their tools."""

from typing import Any

from django.db import transaction

from accounts.actors import Actor
from accounts.errors import Invalid, NotFound, named_violations
from accounts.models import Organization
from accounts.services.records import Records
from memories.models import Agent, AgentBlock, AgentTool, Block, Tool


def over_limit(value: str, limit: int) -> str:
    return f"The value has {len(value)} characters; the block's limit is {limit}."


class BlockRecords(Records[Block]):
    def derive(self, record: Block, changed: frozenset[str], *, is_new: bool) -> frozenset[str]:
        if len(record.value) > record.limit:
            raise Invalid(
                over_limit(record.value, record.limit),
                field="value" if is_new or "value" in changed else "limit",
                code="too_long",
            )
        if is_new:
            return changed
        record.version += 1
        return changed | {"version"}

    def after_update(self, record: Block, changed: frozenset[str]) -> None:
        if "label" in changed:  # links repeat it, for the unique constraint on agent and label
            links = AgentBlock.objects.for_organization(record.organization_id)
            with named_violations(AgentBlock):
                links.filter(block=record).update(block_label=record.label)


class AgentBlockRecords(Records[AgentBlock]):
    def derive(
        self, record: AgentBlock, changed: frozenset[str], *, is_new: bool
    ) -> frozenset[str]:
        if "block" not in changed:
            return changed
        record.block_label = record.block.label
        return changed | {"block_label"}


agents = Records(Agent)
blocks = BlockRecords(Block)
tools = Records(Tool)
agent_blocks = AgentBlockRecords(AgentBlock)
agent_tools = Records(AgentTool)


def attach_block(
    agent: Agent, block: Block, *, organization: Organization, actor: Actor
) -> AgentBlock:
    """Adds the block to the agent's prompt; nothing changes if it is attached already.

    Raises: Conflict (another block with this label is attached).
    """
    return _attach(agent_blocks, organization, actor, agent=agent, block=block)


def detach_block(agent: Agent, block: Block, *, organization: Organization, actor: Actor) -> None:
    """Raises: NotFound (it was not attached)."""
    _detach(agent_blocks, organization, actor, agent=agent, block=block)


def attach_tool(agent: Agent, tool: Tool, *, organization: Organization, actor: Actor) -> AgentTool:
    """Lets the agent call the tool; nothing changes if it is attached already."""
    return _attach(agent_tools, organization, actor, agent=agent, tool=tool)


def detach_tool(agent: Agent, tool: Tool, *, organization: Organization, actor: Actor) -> None:
    """Raises: NotFound (it was not attached)."""
    _detach(agent_tools, organization, actor, agent=agent, tool=tool)


def _attach(links: Records[Any], organization: Organization, actor: Actor, **ends: Any) -> Any:
    with transaction.atomic():
        existing = links.model.objects.for_organization(organization).live().filter(**ends).first()
        return existing or links.create(organization=organization, actor=actor, values=ends)


def _detach(links: Records[Any], organization: Organization, actor: Actor, **ends: Any) -> None:
    # A link has no data of its own: it is deleted, not moved to the trash.
    rows = links.model.objects.for_organization(organization).live().filter(**ends)
    with transaction.atomic():
        if not links.purge(rows, organization=organization, actor=actor):
            raise NotFound
