"""Users, who can also be erased: with what every app holds of them."""

from typing import Any

from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.api.permissions import require
from accounts.api.shapes import Query
from accounts.api.views import UserViewSet
from accounts.roles import permission
from sessions.services.erasing import count_person, erase_person


class EraseQuery(Query):
    erase = serializers.ChoiceField(
        ["true", "preview"],
        required=False,
        help_text="`true`: for good, with all that is theirs; `preview`: tells what that would "
        "take, and changes nothing. Into the trash otherwise.",
    )


class Erased(serializers.Serializer[Any]):
    erased = serializers.BooleanField(help_text="False for a preview.")
    rows = serializers.DictField(
        child=serializers.IntegerField(), help_text='By kind: `{"memory": 12, "user": 1}`.'
    )


class PeopleViewSet(UserViewSet):
    __doc__ = UserViewSet.__doc__

    def query_class(self) -> type[Query]:
        return EraseQuery if self.action == "destroy" else super().query_class()

    @extend_schema(
        responses={200: Erased, 204: OpenApiResponse(description="It lies in the trash.")},
    )
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Into the trash, with what hangs on it; or erased for good, also from there. A preview
        needs `user:read`, too."""
        asked = self.query.get("erase")
        if asked is None:
            return super().destroy(request, *args, **kwargs)
        is_preview = asked == "preview"
        if is_preview:  # a question
            require(self.actor, permission("user", "read"))
        self.query["deleted"] = "include"
        user = self.get_object()
        if is_preview:
            rows = count_person(user, organization=self.organization)
        else:
            rows = erase_person(user, **self.by)
        return Response({"erased": not is_preview, "rows": rows})
