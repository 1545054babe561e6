"""Who is looking at the console, and which organization they see."""

from contextlib import AbstractContextManager
from typing import Any
from uuid import UUID

from django.http import HttpRequest

from accounts.access import member_actor
from accounts.actors import Actor
from accounts.models import Member, Organization
from accounts.tenancy import platform, tenant


def member_of(request: HttpRequest) -> Member:
    """The signed-in member: nobody else can reach the console's views."""
    assert isinstance(request.user, Member)  # noqa: S101  (for the type checker)
    return request.user


def actor_of(request: HttpRequest) -> Actor:
    return from_here(member_actor(member_of(request)), request)


def from_here(actor: Actor, request: HttpRequest) -> Actor:
    """The actor with the request's id, IP address and browser, for the audit log."""
    return actor.at(
        request_id=request.id,  # type: ignore[attr-defined]
        ip=request.META.get("REMOTE_ADDR") or None,
        user_agent=request.headers.get("User-Agent", ""),
    )


def context_of(request: HttpRequest) -> AbstractContextManager[None]:
    """The context of the member's organization; of all organizations for a platform superuser."""
    organization_id = member_of(request).organization_id
    return platform() if organization_id is None else tenant(organization_id)


def seen_by(request: HttpRequest, rows: Any) -> Any:
    """The rows of the member's organization: the first wall."""
    member = member_of(request)
    return rows if member.is_superuser else rows.for_organization(member.organization_id)


def sole_organization(request: HttpRequest) -> Organization | None:
    """The member's organization; None for a platform superuser."""
    return member_of(request).organization


def parsed_id(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
