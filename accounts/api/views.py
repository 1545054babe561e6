"""Base classes of all viewsets; viewsets of organizations, members, keys, users, audit events."""

from contextlib import ExitStack, nullcontext
from functools import cached_property
from io import BytesIO
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.db import Error, transaction
from django.db.models import Model
from django.urls import reverse
from drf_spectacular.utils import extend_schema, inline_serializer
from rest_framework import mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework.viewsets import GenericViewSet

from accounts.actors import Actor
from accounts.api.authentication import Caller
from accounts.api.fields import KeyFilter, checked_in, find
from accounts.api.pagination import KeysetPagination
from accounts.api.permissions import AnyKey, read_scope, require
from accounts.api.schema import RecordSchema
from accounts.api.serializers import (
    ApiKeySerializer,
    AuditEventQuery,
    AuditEventSerializer,
    IssuedKeySerializer,
    MemberQuery,
    MemberSerializer,
    OrganizationSerializer,
    UserQuery,
    UserSerializer,
)
from accounts.api.shapes import ListQuery, Query, TrashQuery
from accounts.errors import Conflict, Forbidden, NotFound
from accounts.models import AuditEvent, Organization
from accounts.roles import MANAGE_KEYS, MANAGE_MEMBERS, VIEW_AUDIT, permission
from accounts.services.keys import api_keys, issue_key, record_use, revoke_key
from accounts.services.organizations import members, organizations
from accounts.services.records import Records
from accounts.services.users import users
from accounts.tenancy import tenant
from agentmem_site.db.keys import MAX_ECHOED, as_id


class TenantView(APIView):
    """Runs permission checks and the handler in the caller's organization, in one transaction that
    is rolled back if the response is an error."""

    schema = RecordSchema()
    tag = ""
    http_method_names = ["get", "head", "post", "put", "patch", "delete"]

    def dispatch(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            with ExitStack() as self._context:
                response = super().dispatch(request, *args, **kwargs)
                if response.status_code >= 400 and self._is_inside:
                    transaction.set_rollback(True)
        except Error as error:  # the COMMIT failed
            answer = self.handle_exception(error)
            response = self.finalize_response(self.request, answer, *args, **kwargs)
        return response

    _is_inside = False

    @property
    def max_body_bytes(self) -> int:
        """A larger body is refused without reading it."""
        return settings.DATA_UPLOAD_MAX_MEMORY_SIZE

    streams = False  # the handler reads the body as a stream of any length

    @property
    def enters_late(self) -> bool:
        """Whether the handler enters `tenant()` itself: it encodes text without a connection."""
        return False

    def initialize_request(self, request: Any, *args: Any, **kwargs: Any) -> Request:
        """Replaces the stream of a chunked body: it has no length, so Django would read nothing."""
        is_chunked = "chunked" in request.headers.get("Transfer-Encoding", "").lower()
        if is_chunked and not self.streams:
            body = request.META["wsgi.input"].read(self.max_body_bytes + 1)
            request.META["CONTENT_LENGTH"] = str(len(body))
            request._stream = BytesIO(body)
        return super().initialize_request(request, *args, **kwargs)

    def perform_authentication(self, request: Request) -> None:
        super().perform_authentication(request)
        if request.auth is None:
            return
        if not self.enters_late:
            self._context.enter_context(tenant(self.organization))
            self._is_inside = True
        if self.caller.is_use_due:
            with nullcontext() if self._is_inside else tenant(self.organization):
                record_use(self.actor, organization=self.organization)

    @property
    def caller(self) -> Caller:
        return self.request.user  # type: ignore[return-value]

    @property
    def organization(self) -> Organization:
        return self.caller.organization

    @property
    def actor(self) -> Actor:
        return self.caller.actor


class TenantViewSet(TenantView, GenericViewSet[Any]):
    """Rows of the caller's organization. A subclass declares its `resource` or `scope`
    (permissions.py), its `records`, and a `parent_model` for nested routes."""

    records: Records[Any]
    model: Any = None
    resource = ""
    scope = ""
    also: tuple[str, ...] = ()  # further scopes
    words = ("", "")
    natural_key = "external_id"  # addresses a row, besides its uuid
    has_trash = True
    late_actions: tuple[str, ...] = ()  # actions that enter the organization's context themselves
    page_key = "created_at"
    pagination_class = KeysetPagination
    lookup_url_kwarg = "id"
    lookup_value_regex = "[^/]+"
    list_query: type[Query] = ListQuery
    # Route names that a key in a path would hide: a row with such a key is read at `by-key`.
    path_words: tuple[str, ...] = ("bulk", "by-key")
    shown_at = ""  # the basename of the routes that show a row, if these routes do not
    unread = "the response holds the id alone"  # for the schema: what callers without `read` get

    # /agents/{agent_id}/sessions: the reference to the parent, and how to look it up.
    parent_model: type[Model] | None = None
    parent_field = ""
    parent_kwarg = ""
    parent_key = "external_id"

    @property
    def enters_late(self) -> bool:
        return self.action in self.late_actions

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        if self.action is None:
            return  # the response is 405
        looks_up = self.parent_model is not None or self.query_class()().fields
        with tenant(self.organization) if self.enters_late and looks_up else nullcontext():
            if self.parent_model is not None:
                _ = self.parent  # 404 for an unknown parent comes first
            self.query = self._checked_query(request)

    def query_class(self) -> type[Query]:
        """The query parameters of this action."""
        if self.action == "list":
            return self.list_query
        if self.action == "by_key":
            return type("KeyQuery", (TrashQuery,), {self.natural_key: KeyFilter(required=True)})
        return TrashQuery if self.action == "retrieve" and self.has_trash else Query

    def _checked_query(self, request: Request) -> dict[str, Any]:
        given = dict(request.query_params.lists())
        twice = {n: ["This parameter is repeated."] for n, v in given.items() if len(v) > 1}
        if twice:
            raise serializers.ValidationError(twice, code="twice")
        data = {name: values[0] for name, values in given.items()}
        self._query = self.query_class()(data=data, context=self.get_serializer_context())
        self._query.is_valid(raise_exception=True)
        return dict(self._query.validated_data)

    def get_serializer_context(self) -> dict[str, Any]:
        context = super().get_serializer_context()
        caller = getattr(self.request, "user", None)
        return {**context, "organization": getattr(caller, "organization", None)}

    @property
    def path_ids(self) -> dict[str, str]:
        """Descriptions of the ids in this view's path, for the schema."""
        own = f"uuid or {self.natural_key}" if self.natural_key else "uuid"
        parent = f"uuid or {self.parent_key}"
        return {self.lookup_url_kwarg: own, self.parent_kwarg: parent}

    # -- which rows --------------------------------------------------------------------------------

    def get_queryset(self) -> Any:
        model = self.model or self.records.model
        if getattr(self, "swagger_fake_view", False):
            return model.objects.none()
        rows = model.objects.for_organization(self.organization)
        if self.parent_model is not None:
            rows = self.of_parent(rows)
        return self.shown(self._by_trash(rows))

    def of_parent(self, rows: Any) -> Any:
        return rows.filter(**{self.parent_field: self.parent})

    def shown(self, rows: Any) -> Any:
        """Adds what the serializer shows besides the row's own columns."""
        return rows

    def _by_trash(self, rows: Any) -> Any:
        if not self.has_trash:
            return rows
        wanted = "include" if self.action == "restore" else self.query.get("deleted")
        if wanted == "include":
            return rows
        return rows.deleted() if wanted == "only" else rows.live()

    @cached_property
    def parent(self) -> Any:
        rows: Any = self.parent_model
        rows = rows.objects.for_organization(self.organization).live()
        row = find(rows, self.kwargs[self.parent_kwarg], self.parent_key)
        return self.unknown_parent(self.kwargs[self.parent_kwarg]) if row is None else row

    def unknown_parent(self, name: str) -> Any:
        """A substitute for a parent that has no live row. Raises: NotFound."""
        raise NotFound

    def get_object(self) -> Any:
        row = find(self.get_queryset(), self.kwargs[self.lookup_url_kwarg], self.natural_key)
        if row is None:
            raise NotFound
        return row

    def as_rows(self, row: Any) -> Any:
        """A queryset of only this row, for the services."""
        return self.records.model.objects.for_organization(self.organization).filter(pk=row.pk)

    @property
    def may_read(self) -> bool:
        """A response shows only rows that the key may read."""
        return self.actor.may(read_scope(self))

    def answered(self, row: Any, status_code: int = status.HTTP_200_OK, **more: Any) -> Response:
        """The response to a write: the row as it is now, or its id if the key may not read it."""
        shown = self.get_serializer(row).data if self.may_read else {"id": str(row.pk)}
        is_new = status_code == status.HTTP_201_CREATED
        headers = self.places_of(row) if is_new else None
        return Response({**shown, **more}, status_code, headers=headers)

    def places_of(self, row: Any) -> dict[str, str]:
        """The Location of a new row, and a notice if its key cannot be part of a path."""
        location = self.address_of(row.pk)
        headers = {"Location": location}
        key = getattr(row, self.natural_key, None) if self.natural_key else None
        if key is not None and not self.fits_path(key):
            by_key = f"{location.rpartition('/')[0]}/by-key?{urlencode({self.natural_key: key})}"
            headers["X-AgentMem-Notice"] = (
                f"This key cannot stand in a path. The row is found by its id, and at {by_key}"
            )
        return headers

    def address_of(self, name: Any) -> str:
        """The path of the row of this id or key."""
        if self.shown_at:
            return reverse(f"{self.shown_at}-detail", kwargs={"id": name})
        parent = {self.parent_kwarg: self.parent.pk} if self.parent_kwarg else {}
        kwargs = {**parent, self.lookup_url_kwarg: name}
        return reverse(f"{self.basename}-detail", kwargs=kwargs)

    def fits_path(self, key: str) -> bool:
        """Whether a path can hold this key."""
        return "/" not in key and key not in (".", "..", *self.path_words)

    @property
    def by(self) -> dict[str, Any]:
        """Organization and actor: arguments of every service."""
        return {"organization": self.organization, "actor": self.actor}


class Listing(mixins.ListModelMixin):
    def list(self: Any, request: Request, *args: Any, **kwargs: Any) -> Response:
        page = self.paginate_queryset(self._query.filter_rows(self.get_queryset()))
        return self.get_paginated_response(self.get_serializer(page, many=True).data)


class Adding(mixins.CreateModelMixin):
    def create(self: Any, request: Request, *args: Any, **kwargs: Any) -> Response:
        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        values = serializer.values()
        if self.parent_model is not None:
            values[self.parent_field] = self.parent
        try:
            row, is_new = self.perform_create(values)
        except Conflict as conflict:
            raise self.explained(conflict, values.get(self.natural_key)) from conflict
        return self.answered(row, status.HTTP_201_CREATED if is_new else status.HTTP_200_OK)

    def explained(self: Any, conflict: Conflict, key: str | None) -> Conflict:
        """The same conflict; of a key that is in the trash, with what can be done."""
        rows = self.records.model.objects.for_organization(self.organization).deleted()
        if self.parent_model is not None and not self.shown_at:
            rows = self.of_parent(rows)
        row = rows.filter(**{self.natural_key: key}).first() if key else None
        if row is None or conflict.field != self.natural_key:
            return conflict
        label = self.records.model._meta.verbose_name
        message = (
            f"The {label} with this {self.natural_key} is in the trash: "
            f"POST {self.address_of(row.pk)}/restore restores it"
        )
        if self.fits_path(key):
            message += f"; PUT {self.address_of(key)} replaces it by a new one"
        return Conflict(f"{message}.", field=conflict.field, code="in_trash")

    def perform_create(self: Any, values: dict[str, Any]) -> tuple[Any, bool]:  # type: ignore[override]
        return self.records.create(values=values, **self.by), True


class Changing(mixins.UpdateModelMixin):
    creates_by_put = False

    def update(self: Any, request: Request, *args: Any, **kwargs: Any) -> Response:
        is_partial = kwargs.get("partial", False)
        row = self.get_object()
        serializer = self.get_serializer(row, data=request.data, partial=is_partial)
        serializer.is_valid(raise_exception=True)
        return self.answered(self.records.update(row, values=serializer.values(), **self.by))


class Putting(Changing):
    """PUT of a key creates the row, replaces it, or takes the place of the one in the trash."""

    creates_by_put = True

    def update(self: Any, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Replaces the row; a field left out gets its default. If no row has this key, creates it:
        201. So does a key of a row in the trash, which is purged then: that requires the delete
        scope as well."""
        if kwargs.get("partial", False):
            return super().update(request, *args, **kwargs)
        if (row := self.row_to_replace()) is not None:
            return self.replaced(row, request)
        key, deleted = self.place_for_new()
        serializer = self.get_serializer(data=self.with_key(request.data, key))
        serializer.is_valid(raise_exception=True)
        values = serializer.values()
        if self.parent_model is not None:
            values[self.parent_field] = self.parent
        try:
            with transaction.atomic():
                if deleted is not None:
                    # (Not if somebody has restored it meanwhile.)
                    self.records.purge(self.as_rows(deleted).deleted(), **self.by)
                row, _ = self.perform_create(values)
        except Conflict:
            if (row := self.row_to_replace()) is None:  # another request has created it
                raise
            return self.replaced(row, request)
        return self.answered(row, status.HTTP_201_CREATED)

    def row_to_replace(self: Any) -> Any:
        return find(self.get_queryset(), self.kwargs[self.lookup_url_kwarg], self.natural_key)

    def place_for_new(self: Any) -> tuple[str, Any]:
        """The key of the row to create, and the row in the trash that has it.
        Raises: ValidationError, Conflict, Forbidden."""
        key = checked_in(self.natural_key, self.kwargs[self.lookup_url_kwarg])
        rows = self.records.model.objects.for_organization(self.organization).deleted()
        deleted = find(
            rows if self.parent_model is None else self.of_parent(rows), key, self.natural_key
        )
        if deleted is None:
            return key, None
        if getattr(deleted, self.natural_key) != key:
            raise Conflict("It is in the trash: restore it first.", code="in_trash")
        require(self.actor, permission(self.resource, "delete"))
        return key, deleted

    def with_key(self: Any, body: Any, key: str) -> Any:
        """The body, which names the key of the path or none. Raises: ValidationError."""
        if not isinstance(body, dict):
            return body
        given = body.get(self.natural_key)
        if given is not None and checked_in(self.natural_key, given) != key:
            message = f"The path says {key[:MAX_ECHOED]!r}: PATCH renames a row."
            raise serializers.ValidationError({self.natural_key: [message]}, code="mismatch")
        return {**body, self.natural_key: key}

    def replaced(self: Any, row: Any, request: Request) -> Response:
        name, body = self.kwargs[self.lookup_url_kwarg], request.data
        key = getattr(row, self.natural_key)
        if as_id(name.strip()) != row.pk:  # (by its id, a row may get another key)
            body = self.with_key(body, key)
        serializer = self.get_serializer(row, data=body)
        serializer.is_valid(raise_exception=True)
        return self.answered(self.records.update(row, values=serializer.values(), **self.by))


class Trashing(mixins.DestroyModelMixin):
    def destroy(self: Any, request: Request, *args: Any, **kwargs: Any) -> Response:
        self.records.delete(self.as_rows(self.get_object()), **self.by)
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(request=None)
    @action(detail=True, methods=["post"])
    def restore(self: Any, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Also restores what was deleted with it. A live row does not change."""
        rows = self.as_rows(self.get_object())
        self.records.restore(rows, **self.by)
        return self.answered(self.get_object())


class Retrieving(mixins.RetrieveModelMixin):
    @action(detail=False, url_path="by-key")
    def by_key(self: Any, request: Request, *args: Any, **kwargs: Any) -> Response:
        """For keys that a path cannot hold: with a slash, or equal to the name of a route."""
        key = self.query[self.natural_key]
        row = self.get_queryset().filter(**{self.natural_key: key}).first()
        if row is None:
            raise NotFound
        return Response(self.get_serializer(row).data)


class RecordViewSet(Listing, Retrieving, Adding, Putting, Trashing, TenantViewSet):
    """List, read, create, update, delete and restore."""


class IdentityViewSet(Listing, Retrieving, Adding, Changing, Trashing, TenantViewSet):
    """The same for the identity plane, where a key alone creates nothing."""


class OrganizationViewSet(IdentityViewSet):
    tag = "Organizations"
    words = ("organization", "organizations")
    records = organizations
    resource = "organization"
    serializer_class = OrganizationSerializer
    natural_key = "slug"

    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Only the platform can do that: `manage.py create_organization`."""
        raise Forbidden("Only the platform can create organizations.")

    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Only the platform can do that, in the console."""
        self.get_object()
        raise Forbidden("Only the platform can delete organizations.")

    @extend_schema(request=None)
    @action(detail=True, methods=["post"])
    def restore(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Only the platform can do that, in the console."""
        self.get_object()
        raise Forbidden("Only the platform can restore organizations.")


class MemberViewSet(IdentityViewSet):
    """People who sign in to the console."""

    tag = "Members"
    words = ("member", "members")
    records = members
    scope = MANAGE_MEMBERS
    serializer_class = MemberSerializer
    list_query = MemberQuery
    natural_key = "email"


class ApiKeyViewSet(IdentityViewSet):
    """Keys that agents and services authenticate with."""

    tag = "API keys"
    words = ("API key", "API keys")
    records = api_keys
    scope = MANAGE_KEYS
    serializer_class = ApiKeySerializer
    natural_key = ""
    by_key: Any = None  # it has none
    http_method_names = ["get", "head", "post", "patch", "delete"]

    @extend_schema(responses={201: IssuedKeySerializer})
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """The response holds the secret in `key`. It cannot be read again."""
        serializer: Any = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        key, secret = issue_key(**serializer.values(), **self.by)
        return self.answered(key, status.HTTP_201_CREATED, key=secret)

    @extend_schema(request=None)
    @action(detail=True, methods=["post"])
    def revoke(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Revoke an API key.

        Requests with it are refused from now on. This cannot be undone.
        """
        key = self.get_object()
        if key.revoked_at is None:
            key = revoke_key(key, **self.by)
        return self.answered(key)


class UserViewSet(RecordViewSet):
    """The end users of the organization's agents."""

    tag = "Users"
    words = ("user", "users")
    records = users
    resource = "user"
    serializer_class = UserSerializer
    list_query = UserQuery


class AuditEventViewSet(Listing, mixins.RetrieveModelMixin, TenantViewSet):
    """Who changed what, when and from where."""

    tag = "Audit"
    words = ("audit event", "audit events")
    model = AuditEvent
    scope = VIEW_AUDIT
    serializer_class = AuditEventSerializer
    list_query = AuditEventQuery
    natural_key = ""
    has_trash = False


class MeView(TenantView):
    """The key of the request."""

    tag = "Me"
    permission_classes = [AnyKey]

    @extend_schema(
        operation_id="me",
        responses=inline_serializer(
            "Me",
            {
                "organization": inline_serializer(
                    "MyOrganization",
                    {
                        "id": serializers.UUIDField(),
                        "name": serializers.CharField(),
                        "slug": serializers.CharField(),
                    },
                ),
                "key": inline_serializer(
                    "MyKey", {"id": serializers.UUIDField(), "name": serializers.CharField()}
                ),
                "scopes": serializers.ListField(child=serializers.CharField()),
            },
        ),
    )
    def get(self, request: Request) -> Response:
        """Show the organization, the key and its scopes."""
        mine = self.organization
        return Response(
            {
                "organization": {"id": str(mine.pk), "name": mine.name, "slug": mine.slug},
                "key": {"id": str(self.actor.id), "name": self.actor.name},
                "scopes": sorted(self.actor.permissions),
            }
        )
