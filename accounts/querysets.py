"""The words in which lists of accounts are asked for."""

from typing import Any, Self

from django.db import models

from accounts.tenancy import AuditedQuerySet, TenantQuerySet


class OrganizationQuerySet(AuditedQuerySet):
    def for_organization(self, organization: Any) -> Self:
        """The organization itself: nobody's list holds another."""
        return self.filter(pk=getattr(organization, "pk", organization))


class MemberQuerySet(TenantQuerySet):
    """Members stand behind no wall (they sign in before one is known): start every list here."""


class AuditEventQuerySet(models.QuerySet[Any]):
    def for_organization(self, organization: Any) -> Self:
        return self.filter(organization=organization)
