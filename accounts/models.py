"""Organizations, the people and keys that sign in, the agents' end users, and the audit log.

Identity plane: Organization and Member, which are read before an organization is known (access.py),
and ApiKey and AuditEvent, which have a wall. Data plane: User.
"""

from typing import Any

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.postgres.fields import ArrayField
from django.core.validators import RegexValidator
from django.db import models
from django.db.models import Q
from django.db.models.functions import Lower
from django.db.models.lookups import Exact
from django.utils import timezone

from accounts.querysets import AuditEventQuerySet, MemberQuerySet, OrganizationQuerySet
from accounts.roles import ALL_PERMISSIONS, PERMISSIONS, Role
from accounts.tenancy import AuditColumns, LoadedModel, TenantModel
from agentmem_site.db.fields import KeyField, OrganizationKey
from agentmem_site.db.ids import uuid7
from agentmem_site.db.walls import TenantWall

SLUG = RegexValidator(
    r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$",
    "A slug has 1 to 63 lower-case letters, digits and inner hyphens.",
)


class Organization(AuditColumns):
    """A customer of this server. Everything else belongs to one."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    name = models.CharField(max_length=255)
    slug = models.CharField(max_length=63, unique=True, validators=[SLUG])
    # Retention, quotas, defaults.
    settings = models.JSONField(default=dict, blank=True)

    objects = OrganizationQuerySet.as_manager()

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class MemberManager(BaseUserManager.from_queryset(MemberQuerySet)):  # type: ignore[misc]
    def create_superuser(self, email: str, password: str | None = None, **fields: Any) -> "Member":
        """A platform superuser, of no organization. For `manage.py createsuperuser`."""
        member = self.model(email=email.lower(), is_superuser=True, is_staff=True, **fields)
        member.set_password(password)
        member.validate_constraints()  # (the command shows what this raises)
        member.save(using=self._db)
        return member


class Member(AbstractBaseUser, AuditColumns):
    """A person who signs in: to one organization, or as a platform superuser. Someone who works for
    two organizations has a row, a role and a password in each; neither learns of the other."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    email = models.EmailField()
    name = models.CharField(max_length=255, blank=True, default="")
    organization = models.ForeignKey(
        Organization, models.PROTECT, null=True, blank=True, related_name="members"
    )
    role = models.CharField(max_length=16, choices=Role.choices, default=Role.VIEWER)
    is_staff = models.BooleanField("may open the console", default=True)
    is_active = models.BooleanField(default=True)
    is_superuser = models.BooleanField("platform superuser", default=False)

    objects = MemberManager()

    USERNAME_FIELD = "email"
    EMAIL_FIELD = "email"
    REQUIRED_FIELDS = ["name"]

    class Meta:
        ordering = ["email"]
        indexes = [
            # Sign-in: the only look-up before the organization is known.
            models.Index(fields=["email"], name="accounts_member_email"),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["organization", "email"], name="accounts_member_email_unique"
            ),
            models.UniqueConstraint(
                fields=["email"],
                condition=Q(organization__isnull=True),
                name="accounts_member_platform_email_unique",
                violation_error_message="There is a platform superuser with this email already.",
            ),
            models.CheckConstraint(
                name="accounts_member_organization_or_platform",
                condition=Q(is_superuser=True, organization__isnull=True)
                | Q(is_superuser=False, organization__isnull=False),
                violation_error_message=(
                    "A member belongs to one organization, a platform superuser to none."
                ),
            ),
            models.CheckConstraint(
                name="accounts_member_email_lower",
                condition=Q(email=Lower("email")),
                violation_error_message="An address is kept in lower case.",
            ),
            models.CheckConstraint(
                name="accounts_member_role_known", condition=Q(role__in=Role.values)
            ),
        ]

    def __str__(self) -> str:
        return self.name or self.email

    @property
    def permissions(self) -> frozenset[str]:
        """The permissions of the role (accounts/roles.py); all of them for a superuser."""
        return frozenset(ALL_PERMISSIONS) if self.is_superuser else PERMISSIONS[self.role]

    # The console checks permissions by these (Django's own permission tables are not used).

    def has_perm(self, permission: str, obj: object = None) -> bool:
        """Whether the role allows it: `memory:read`."""
        return self.is_active and permission in self.permissions

    def has_module_perms(self, app_label: str) -> bool:
        return self.is_active and self.is_staff

    def get_full_name(self) -> str:
        return self.name


class ApiKey(TenantModel):
    """A key that an agent or a service authenticates with. The secret itself is not stored."""

    name = models.CharField(max_length=255)
    prefix = models.CharField(max_length=16, editable=False)  # shown, to identify the key
    hash = models.BinaryField(max_length=32, editable=False)  # SHA-256 of the whole key
    scopes = ArrayField(models.CharField(max_length=64), default=list, blank=True)
    member = models.ForeignKey(
        Member,
        models.SET_NULL,
        null=True,
        blank=True,
        db_constraint=False,
        db_index=False,  # an organization has few keys
        related_name="+",
    )
    expires_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, editable=False)
    revoked_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        verbose_name = "API key"
        constraints = [
            *TenantModel.Meta.constraints,
            models.UniqueConstraint(
                fields=["organization", "hash"], name="accounts_apikey_hash_unique"
            ),
            models.CheckConstraint(
                name="accounts_apikey_hash_length",
                condition=Exact(
                    models.Func(
                        "hash", function="octet_length", output_field=models.IntegerField()
                    ),
                    models.Value(32),
                ),
            ),
        ]
        indexes = [
            *TenantModel.Meta.indexes,
            # agentmem_find_api_key: the only look-up before the organization is known.
            models.Index(fields=["hash"], name="accounts_apikey_hash"),
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"

    @property
    def is_usable(self) -> bool:
        now = timezone.now()
        return (
            not self.is_deleted
            and self.revoked_at is None
            and (self.expires_at is None or self.expires_at > now)
        )


class User(LoadedModel):
    """An end user of the organization's agents: a person whom memories are about."""

    auto_create_key = "external_id"

    class Status(models.TextChoices):
        ACTIVE = "active", "Active"
        INACTIVE = "inactive", "Inactive"

    external_id = KeyField(null=True, blank=True)
    name = models.CharField(max_length=255, blank=True, default="")
    status = models.CharField(max_length=16, choices=Status.choices, default=Status.ACTIVE)
    timezone = models.CharField(max_length=64, default="UTC")
    email = models.EmailField(null=True, blank=True)

    class Meta:
        constraints = [
            *TenantModel.Meta.constraints,
            models.UniqueConstraint(
                fields=["organization", "external_id"], name="accounts_user_external_id_unique"
            ),
            models.CheckConstraint(
                name="accounts_user_status_known",
                condition=Q(status__in=["active", "inactive"]),
            ),
        ]
        indexes = [*TenantModel.Meta.indexes]

    def __str__(self) -> str:
        return self.name or self.external_id or str(self.pk)


class AuditEvent(models.Model):
    """One change: who, what, when, from where. Written in its transaction, never updated."""

    class Status(models.TextChoices):
        SUCCESS = "success", "Success"
        FAILURE = "failure", "Failure"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    # NULL for failed sign-ins and platform superusers.
    organization = OrganizationKey(null=True)
    actor_id = models.UUIDField(null=True)
    actor_kind = models.CharField(max_length=16)
    actor_name = models.CharField(max_length=255, blank=True, default="")
    action = models.CharField(max_length=64)
    resource_type = models.CharField(max_length=64)
    resource_id = models.UUIDField(null=True)
    request_id = models.CharField(max_length=64, blank=True, default="")
    ip = models.GenericIPAddressField(null=True)
    user_agent = models.CharField(max_length=300, blank=True, default="")
    status = models.CharField(max_length=16, choices=Status.choices, default=Status.SUCCESS)
    duration_ms = models.IntegerField(null=True)
    changes = models.JSONField(default=dict)
    created_at = models.DateTimeField(default=timezone.now)

    is_append_only = True

    objects = AuditEventQuerySet.as_manager()

    class Meta:
        constraints = [TenantWall(name="accounts_auditevent_wall", admits_orphans=True)]
        indexes = [
            # The audit log, newest first.
            models.Index(
                fields=["organization", "created_at", "id"], name="accounts_auditevent_created"
            ),
            # The history of one row.
            models.Index(
                fields=["organization", "resource_id"], name="accounts_auditevent_resource"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.resource_type}"


class LoadPart(TenantModel):
    """The checkpoint of one worker of a load, until the load is complete. The same command
    continues from it."""

    job = models.CharField(max_length=255)  # the name of the load
    part = models.SmallIntegerField()  # of the worker
    parts = models.SmallIntegerField()
    resource = models.CharField(max_length=32)
    # All lines of the part up to this one are committed. `digest` is that of the file up to
    # `checked_line`.
    line = models.BigIntegerField(default=0)
    checked_line = models.BigIntegerField(default=0)
    digest = models.BinaryField(max_length=32, default=b"")
    tally = models.JSONField(default=dict)  # counts of the lines so far

    has_trash = False

    class Meta:
        constraints = [
            *TenantModel.Meta.constraints,
            models.UniqueConstraint(
                fields=["organization", "job", "part"], name="accounts_loadpart_unique"
            ),
        ]
        indexes = [*TenantModel.Meta.indexes]

    def __str__(self) -> str:
        return f"{self.job} {self.part + 1}/{self.parts}"
