"""QuerySets of organizations, members and audit events."""

from typing import Any, Self

from django.db import models

from accounts.tenancy import AuditedQuerySet, TenantQuerySet


class OrganizationQuerySet(AuditedQuerySet):
    def for_organization(self, organization: Any) -> Self:
        """The organization itself: nobody may list others."""
        return self.filter(pk=getattr(organization, "pk", organization))


class MemberQuerySet(TenantQuerySet):
    """Members have no wall: they sign in before the organization is known. Start each list here."""


class AuditEventQuerySet(models.QuerySet[Any]):
    def for_organization(self, organization: Any) -> Self:
        return self.filter(organization=organization)
