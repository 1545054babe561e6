"""Serializers of the identity plane and of users."""

from typing import Any

from django.utils import timezone
from rest_framework import serializers

from accounts.api.fields import Array, JsonObject, KeyFilter, QueryMoment, ReferenceField
from accounts.api.shapes import KEPT_BY_SERVER, ListQuery, PageQuery, RecordSerializer
from accounts.models import ApiKey, AuditEvent, Member, Organization, User
from accounts.roles import ALL_PERMISSIONS, Role


class OrganizationSerializer(RecordSerializer):
    kept_by_put = ("settings",)  # they hold the platform's quotas
    organization_id = None
    settings = JsonObject(required=False, help_text="Retention, quotas, defaults.")

    class Meta:
        model = Organization
        fields = ["id", "name", "slug", "settings", *KEPT_BY_SERVER]
        read_only_fields = ["slug"]  # commands and scripts refer to it

    def validate_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        before = self.instance.settings if self.instance else {}
        if settings.get("quotas") != before.get("quotas"):
            raise serializers.ValidationError("Only the platform can set quotas.", code="quotas")
        return settings


class MemberSerializer(RecordSerializer):
    kept_by_put = ("password",)
    moving = ("last_login",)
    password = serializers.CharField(
        write_only=True,
        required=False,
        trim_whitespace=False,
        max_length=128,
        help_text="Without a password the member cannot sign in.",
    )

    class Meta:
        model = Member
        fields = [
            "id",
            "organization_id",
            "email",
            "name",
            "role",
            "is_active",
            "is_staff",
            "password",
            "last_login",
            *KEPT_BY_SERVER,
        ]
        read_only_fields = ["last_login"]
        # The service checks uniqueness: in the organization, and also against the trash.
        extra_kwargs: dict[str, Any] = {"email": {"validators": []}}


class MemberQuery(ListQuery):
    role = serializers.ChoiceField(Role.choices, required=False)
    email = serializers.CharField(source="email__iexact", required=False)


class ApiKeySerializer(RecordSerializer):
    moving = ("last_used_at",)
    scopes = Array(
        child=serializers.ChoiceField(ALL_PERMISSIONS),
        allow_empty=False,
        help_text="The key's scopes; at most those of your key.",
    )
    member_id = ReferenceField(
        Member, key="email", source="member", required=False, allow_null=True
    )

    class Meta:
        model = ApiKey
        fields = [
            "id",
            "organization_id",
            "name",
            "prefix",
            "scopes",
            "member_id",
            "expires_at",
            "last_used_at",
            "revoked_at",
            *KEPT_BY_SERVER,
        ]

    def validate_expires_at(self, moment: Any) -> Any:
        if self.instance is None and moment is not None and moment <= timezone.now():
            raise serializers.ValidationError("The key would already have expired.", code="past")
        return moment

    def validate(self, values: dict[str, Any]) -> dict[str, Any]:
        if self.instance is None:
            return values
        fixed = {
            {"member": "member_id"}.get(name, name): [
                "Only the name can be changed: issue another key."
            ]
            for name, value in values.items()
            if name != "name" and value != getattr(self.instance, name)
        }
        if fixed:
            raise serializers.ValidationError(fixed, code="fixed")
        return {name: value for name, value in values.items() if name == "name"}


class IssuedKeySerializer(ApiKeySerializer):
    key = serializers.CharField(read_only=True, help_text="The secret. It is shown only once.")

    class Meta(ApiKeySerializer.Meta):
        fields = [*ApiKeySerializer.Meta.fields, "key"]


class UserSerializer(RecordSerializer):
    class Meta:
        model = User
        fields = [
            "id",
            "organization_id",
            "external_id",
            "name",
            "status",
            "timezone",
            "email",
            "metadata",
            *KEPT_BY_SERVER,
        ]


class UserQuery(ListQuery):
    external_id = KeyFilter()
    status = serializers.ChoiceField(User.Status.choices, required=False)
    email = serializers.CharField(source="email__iexact", required=False)


class AuditEventSerializer(RecordSerializer):
    changes = JsonObject(read_only=True)

    class Meta:
        model = AuditEvent
        fields = [
            "id",
            "organization_id",
            "actor_id",
            "actor_kind",
            "actor_name",
            "action",
            "resource_type",
            "resource_id",
            "request_id",
            "ip",
            "user_agent",
            "status",
            "duration_ms",
            "changes",
            "created_at",
        ]
        read_only_fields = fields


class AuditEventQuery(PageQuery):
    action = serializers.CharField(required=False)
    actor_id = serializers.UUIDField(required=False)
    resource_type = serializers.CharField(required=False)
    resource_id = serializers.UUIDField(required=False)
    request_id = serializers.CharField(required=False)
    status = serializers.ChoiceField(AuditEvent.Status.choices, required=False)
    created_after = QueryMoment(source="created_at__gte", required=False)
    created_before = QueryMoment(source="created_at__lt", required=False)
