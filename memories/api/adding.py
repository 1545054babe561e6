"""`POST memories` and `memories/batch`: their serializers, and the view of the batch."""

from codecs import BOM_UTF8
from collections.abc import Sequence
from typing import Any

import msgspec
from django.http import HttpResponse
from drf_spectacular.utils import OpenApiExample, extend_schema
from rest_framework import serializers
from rest_framework.exceptions import ParseError
from rest_framework.request import Request

from accounts.api.fields import KeyField
from accounts.api.parsers import UnreadJSONParser
from accounts.api.shapes import Strict
from accounts.api.views import TenantViewSet
from accounts.strict_json import RefusedJson, parse_json
from memories.api.serializers import MemorySerializer
from memories.models import Memory
from memories.services.adding import MAX_ITEMS, Added, add_memories

MAX_BATCH_BYTES = 16 * 1024 * 1024  # 1,000 vectors as decimal numbers are 8 MB
EMBED = ("now", "later")
# An id, or the status `duplicate`, would let callers guess content that they may not read.
UNREAD: dict[str, Any] = {"id": None, "status": "stored"}
UNREAD_NOTE = '`status` is "stored" and `id` null, whether it existed before or not'


class BatchMemorySerializer(MemorySerializer):
    user_id: Any = KeyField(
        required=False, allow_null=True, help_text="uuid or external_id; a new one makes the user."
    )
    agent_id: Any = KeyField(
        required=False, allow_null=True, help_text="uuid or external_id; a new one makes the agent."
    )
    embedding_model: Any = serializers.CharField(
        required=False,
        allow_null=True,
        allow_blank=True,
        max_length=64,
        trim_whitespace=False,
        help_text="The encoder of `embedding`; by default the server's own. Vectors of different "
        "encoders are never compared.",
    )


class NewMemorySerializer(BatchMemorySerializer):
    embed = serializers.ChoiceField(
        EMBED,
        write_only=True,
        default="now",
        help_text="`later`: a worker makes the vector; until then it is found by keyword only",
    )
    status: Any = serializers.ChoiceField(["created", "duplicate", "stored"], read_only=True)
    embedded = serializers.BooleanField(read_only=True, help_text="It has its vector.")

    class Meta(MemorySerializer.Meta):
        fields = [*MemorySerializer.Meta.fields, "embed", "status", "embedded"]


class BatchSerializer(Strict):
    memories = BatchMemorySerializer(
        many=True,
        help_text=f"1 to {MAX_ITEMS:,}.",
        error_messages={"not_a_list": "An array of memories is needed."},
    )
    embed = serializers.ChoiceField(EMBED, default="now", help_text="For all of them.")


class FaultSerializer(Strict):
    field = serializers.CharField()
    code = serializers.CharField()
    message = serializers.CharField()


class AddedSerializer(Strict):
    index = serializers.IntegerField(help_text="Its index in `memories`, from 0.")
    status = serializers.ChoiceField(["created", "duplicate", "stored", "rejected"])
    id = serializers.UUIDField(
        allow_null=True, help_text="For a duplicate the id of the existing memory."
    )
    error = FaultSerializer(required=False)


class BatchAnswerSerializer(Strict):
    results = AddedSerializer(many=True)
    created = serializers.IntegerField()
    duplicates = serializers.IntegerField()
    rejected = serializers.IntegerField()
    embedded = serializers.BooleanField(
        help_text="Whether all created memories have their vector, without a worker."
    )


class _Body(msgspec.Struct):
    memories: msgspec.Raw = msgspec.Raw()


class MemoryBatchViewSet(TenantViewSet):
    tag = "Memories"
    model = Memory
    resource = "memory"
    serializer_class = BatchSerializer
    parser_classes = [UnreadJSONParser]
    max_body_bytes = MAX_BATCH_BYTES
    late_actions = ("create",)
    unread = f"{UNREAD_NOTE}; and they are counted as `stored`"

    @extend_schema(
        operation_id="memories_batch_create",
        summary="Add up to 1,000 memories",
        request=BatchSerializer,
        responses={200: BatchAnswerSerializer},
        examples=[
            OpenApiExample(
                "What two people said",
                request_only=True,
                value={
                    "memories": [
                        {"content": "I take my coffee without sugar.", "speaker": "Alice"},
                        {"content": "And I with.", "speaker": "Bob", "user_id": "bob"},
                    ]
                },
            )
        ],
    )
    def create(self, request: Request, *args: Any, **kwargs: Any) -> HttpResponse:
        """Each is created, is a duplicate, or is rejected on its own, in one transaction. At most
        16 MiB; base64 of little-endian float32 is the shortest form of a vector."""
        # (DRF does not parse an empty body and returns an empty dict. The body may have a BOM.)
        body = request.data if isinstance(request.data, bytes) else b"{}"
        items, embed = self._checked(body.removeprefix(BOM_UTF8))
        added = add_memories(items=items, embed=embed, **self.by)
        answer = _answer(added) if self.may_read else _unread_answer(added)
        return HttpResponse(msgspec.json.encode(answer), content_type="application/json")

    def _checked(self, body: bytes) -> tuple[Sequence[bytes], Any]:
        """The undecoded items, and whether to embed them now. The rest is parsed strictly."""
        try:
            memories = msgspec.json.decode(body, type=_Body).memories
            items = msgspec.json.decode(memories, type=list[msgspec.Raw])
            # Small without the items. (It still has the earlier ones if the key is repeated.)
            rest = body.replace(memories, b"[]", 1)
        except (msgspec.DecodeError, RecursionError):
            items, rest = [], body
        try:
            data = parse_json(rest, name="The body")
        except RefusedJson as refusal:
            raise ParseError(str(refusal)) from refusal
        shape = BatchSerializer(data=data, context=self.get_serializer_context())
        shape.is_valid(raise_exception=True)
        return [bytes(item) for item in items], shape.validated_data["embed"]


def _answer(added: Sequence[Added]) -> dict[str, Any]:
    count = dict.fromkeys(("created", "duplicate", "rejected"), 0)
    results = []
    for one in added:
        count[one.status] += 1
        result: dict[str, Any] = {"index": one.index, "status": one.status, "id": one.id}
        if one.error:
            result["error"] = one.error
        results.append(result)
    return {
        "results": results,
        "created": count["created"],
        "duplicates": count["duplicate"],
        "rejected": count["rejected"],
        "embedded": all(one.is_embedded for one in added if one.status == "created"),
    }


def _unread_answer(added: Sequence[Added]) -> dict[str, Any]:
    results = [
        {"index": one.index, "status": "rejected", "id": None, "error": one.error}
        if one.error
        else {"index": one.index, **UNREAD}
        for one in added
    ]
    rejected = sum(one.error is not None for one in added)
    return {"results": results, "stored": len(added) - rejected, "rejected": rejected}
