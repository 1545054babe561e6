"""Users, and their erasure from every app."""

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
        help_text="`true`: erases the user and all their data permanently; `preview`: counts what "
        "that would remove. By default the user is moved to the trash.",
    )


class Erased(serializers.Serializer[Any]):
    erased = serializers.BooleanField(help_text="false for a preview.")
    rows = serializers.DictField(
        child=serializers.IntegerField(), help_text='By model: `{"memory": 12, "user": 1}`.'
    )


class PeopleViewSet(UserViewSet):
    __doc__ = UserViewSet.__doc__

    def query_class(self) -> type[Query]:
        return EraseQuery if self.action == "destroy" else super().query_class()

    @extend_schema(
        responses={200: Erased, 204: OpenApiResponse(description="It is in the trash.")},
    )
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Moves the user and dependent rows to the trash; or erases them permanently, also from the
        trash. A preview needs `user:read`, too."""
        erase = self.query.get("erase")
        if erase is None:
            return super().destroy(request, *args, **kwargs)
        is_preview = erase == "preview"
        if is_preview:  # its counts reveal content
            require(self.actor, permission("user", "read"))
        self.query["deleted"] = "include"
        user = self.get_object()
        if is_preview:
            rows = count_person(user, organization=self.organization)
        else:
            rows = erase_person(user, **self.by)
        return Response({"erased": not is_preview, "rows": rows})
