"""Agents and their attachments, blocks, tools, memories and their history."""

from typing import Any

from drf_spectacular.utils import OpenApiExample, extend_schema, extend_schema_view
from rest_framework import status
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.api.shapes import PageQuery
from accounts.api.views import Listing, RecordViewSet, TenantViewSet
from accounts.errors import Conflict, NotFound
from accounts.tenancy import tenant
from memories.api.adding import (
    UNREAD,
    UNREAD_NOTE,
    BatchMemorySerializer,
    NewMemorySerializer,
)
from memories.api.serializers import (
    AgentQuery,
    AgentSerializer,
    AttachBlock,
    AttachTool,
    BlockQuery,
    BlockSerializer,
    MemoryHistorySerializer,
    MemoryQuery,
    MemorySerializer,
    ToolQuery,
    ToolSerializer,
)
from memories.models import Agent, Block, Memory, MemoryHistory, Tool
from memories.services.adding import add_memory
from memories.services.agents import (
    agents,
    attach_block,
    attach_tool,
    blocks,
    detach_block,
    detach_tool,
    tools,
)
from memories.services.memories import memories


class AgentViewSet(RecordViewSet):
    tag = "Agents"
    words = ("agent", "agents")
    records = agents
    resource = "agent"
    serializer_class = AgentSerializer
    list_query = AgentQuery


class BlockViewSet(RecordViewSet):
    tag = "Blocks"
    words = ("block", "blocks")
    records = blocks
    resource = "agent"
    serializer_class = BlockSerializer
    list_query = BlockQuery


class ToolViewSet(RecordViewSet):
    tag = "Tools"
    words = ("tool", "tools")
    records = tools
    resource = "agent"
    serializer_class = ToolSerializer
    list_query = ToolQuery
    natural_key = "name"


class Attached(Listing, TenantViewSet):
    """Attachments of an agent: a subclass names the services and the field of the body."""

    tag = "Agents"
    resource = "agent"
    list_query = PageQuery
    parent_model = Agent
    parent_kwarg = "agent_id"
    parent_field = "agent_links__agent"
    body_class: Any
    body_field = ""
    attach: Any
    detach: Any

    def of_parent(self, rows: Any) -> Any:
        return rows.filter(agent_links__agent=self.parent, agent_links__is_deleted=False)

    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Nothing changes if it is attached already."""
        agent = self.parent
        body = self.body_class(data=request.data, context=self.get_serializer_context())
        body.is_valid(raise_exception=True)
        row = body.validated_data[self.body_field]
        is_there = self.may_read and self.get_queryset().filter(pk=row.pk).exists()
        type(self).attach(agent, row, **self.by)
        return self.answered(row, status.HTTP_200_OK if is_there else status.HTTP_201_CREATED)

    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Only the attachment is removed."""
        type(self).detach(self.parent, self.get_object(), **self.by)
        return Response(status=status.HTTP_204_NO_CONTENT)


@extend_schema_view(
    list=extend_schema(summary="List an agent's blocks"),
    create=extend_schema(summary="Attach a block to an agent", request=AttachBlock),
    destroy=extend_schema(summary="Detach a block from an agent"),
)
class AgentBlockViewSet(Attached):
    model = Block
    serializer_class = BlockSerializer
    shown_at = "blocks"
    lookup_url_kwarg = "block_id"
    body_class = AttachBlock
    body_field = "block_id"
    attach = staticmethod(attach_block)
    detach = staticmethod(detach_block)


@extend_schema_view(
    list=extend_schema(summary="List an agent's tools"),
    create=extend_schema(summary="Attach a tool to an agent", request=AttachTool),
    destroy=extend_schema(summary="Detach a tool from an agent"),
)
class AgentToolViewSet(Attached):
    model = Tool
    natural_key = "name"
    serializer_class = ToolSerializer
    shown_at = "tools"
    lookup_url_kwarg = "tool_id"
    body_class = AttachTool
    body_field = "tool_id"
    attach = staticmethod(attach_tool)
    detach = staticmethod(detach_tool)


class MemoryViewSet(RecordViewSet):
    tag = "Memories"
    words = ("memory", "memories")
    records = memories
    resource = "memory"
    serializer_class = MemorySerializer
    list_query = MemoryQuery
    path_words = (
        *RecordViewSet.path_words,
        "batch",
        "duplicates",
        "export",
        "search",
        "stats",
    )

    late_actions = ("create", "update")

    @property
    def unread(self) -> str:  # type: ignore[override]
        return UNREAD_NOTE if self.action == "create" else super().unread

    @extend_schema(
        request=NewMemorySerializer,
        responses={201: NewMemorySerializer, 200: NewMemorySerializer},
        examples=[
            OpenApiExample(
                "A fact about a user",
                request_only=True,
                value={
                    "content": "I take my coffee without sugar.",
                    "speaker": "Alice",
                    "context": "What can I get you?",
                    "user_id": "alice",
                    "agent_id": "barista",
                    "session_id": "cafe:2026-01-31",
                    "memory_type": "semantic",
                    "importance": 0.7,
                    "metadata": {"topic": "preferences"},
                },
            )
        ],
    )
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """201 with the new memory; or 200 with the existing one, if it has the same speaker,
        content, agent and user, or the same external_id and text. Callers who may not read memories
        always get 201."""
        shape = NewMemorySerializer(data=request.data, context=self.get_serializer_context())
        shape.is_valid(raise_exception=True)
        values = dict(shape.validated_data)
        try:
            added = add_memory(embed=values.pop("embed"), values=values, **self.by)
        except Conflict as conflict:
            with tenant(self.organization):
                raise self.explained(conflict, values.get("external_id")) from conflict
        if not self.may_read:
            return Response(UNREAD, status.HTTP_201_CREATED)
        with tenant(self.organization):
            memory = self.get_queryset().filter(pk=added.id).first()
            if memory is None:  # deleted meanwhile
                raise NotFound
            memory.status = added.status
            memory.embedded = memory.embedding_state == Memory.EmbeddingState.READY
            answer = shape.to_representation(memory)
        if added.status != "created":
            return Response(answer)
        return Response(answer, status.HTTP_201_CREATED, headers=self.places_of(memory))

    @extend_schema(request=BatchMemorySerializer)
    def update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Replaces the memory; a field left out gets its default. If no memory has this key,
        creates it: 201. So does a key of a memory in the trash, which is purged then, with its
        versions: that requires the delete scope as well."""
        if kwargs.get("partial", False):
            return super().update(request, *args, **kwargs)
        with tenant(self.organization):
            if (row := self.row_to_replace()) is not None:
                return self.replaced(row, request)
            key, deleted = self.place_for_new()
        body = self.with_key(request.data, key)
        shape = BatchMemorySerializer(data=body, context=self.get_serializer_context())
        shape.is_valid(raise_exception=True)
        replaces = None if deleted is None else deleted.pk
        failure: Exception = NotFound()
        try:
            added = add_memory(values=shape.validated_data, replaces=replaces, **self.by)
            is_new = added.status == "created"
        except Conflict as conflict:
            failure, is_new = conflict, False
        with tenant(self.organization):
            if (row := self.row_to_replace()) is None:
                raise failure
            if not is_new:  # another request has created it
                return self.replaced(row, request)
            return self.answered(row, status.HTTP_201_CREATED)


class MemoryHistoryViewSet(Listing, TenantViewSet):
    tag = "Memories"
    model = MemoryHistory
    resource = "memory"
    serializer_class = MemoryHistorySerializer
    list_query = PageQuery
    has_trash = False
    parent_model = Memory
    parent_kwarg = "memory_id"
    parent_field = "memory"

    @extend_schema(summary="List the versions of a memory")
    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """The content of each version, and the change that made it."""
        return super().list(request, *args, **kwargs)


class AgentMemoryViewSet(Listing, TenantViewSet):
    tag = "Agents"
    model = Memory
    resource = "memory"
    serializer_class = MemorySerializer
    list_query = MemoryQuery
    parent_model = Agent
    parent_kwarg = "agent_id"
    parent_field = "agent"

    @extend_schema(summary="List an agent's memories")
    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return super().list(request, *args, **kwargs)
