"""Authentication by an API key, in `X-API-Key` or as a bearer token."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from accounts.access import KeyHolder, authenticate_key
from accounts.actors import Actor
from accounts.models import Organization

KEY_PREFIX = "agm_"
MAX_KEY_LENGTH = 200


@dataclass(frozen=True, slots=True)
class Caller:
    """`request.user`: the organization of a key, and the actor."""

    organization: Organization
    actor: Actor
    is_use_due: bool  # the key's last_used_at is to be updated
    is_authenticated: bool = True


class ApiKeyAuthentication(BaseAuthentication):
    def authenticate(self, request: Request) -> tuple[Caller, Actor] | None:
        key = key_of(request.headers)
        if not key:
            return None
        holder = holder_of(key)
        if holder is None:
            raise AuthenticationFailed("This API key is unknown, revoked or expired.")
        actor = holder.actor.at(
            request_id=request.id,  # type: ignore[attr-defined]
            ip=_address(request),
            user_agent=request.headers.get("User-Agent", ""),
        )
        return Caller(holder.organization, actor, holder.is_use_due), actor

    def authenticate_header(self, request: Request) -> str:
        return 'Bearer realm="AgentMem"'


def key_of(headers: Mapping[str, str]) -> str:
    """The key in the headers, or "". `headers` ignores case, or has names in lower case."""
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    return headers.get("x-api-key", "") or (bearer.strip() if scheme.lower() == "bearer" else "")


def holder_of(key: str) -> KeyHolder | None:
    """As `authenticate_key`, without a look-up for text that cannot be a key."""
    is_sane = key.startswith(KEY_PREFIX) and key.isascii() and len(key) <= MAX_KEY_LENGTH
    return authenticate_key(key) if is_sane else None


def _address(request: Request) -> str | None:
    """The client's IP address; None on a Unix socket."""
    try:
        return str(ipaddress.ip_address(request.META.get("REMOTE_ADDR", "")))
    except ValueError:
        return None


class ApiKeyScheme(OpenApiAuthenticationExtension):
    target_class = ApiKeyAuthentication
    name = ["apiKey", "bearer"]

    def get_security_requirement(self, auto_schema: Any) -> list[dict[str, list[Any]]]:
        return [{"apiKey": []}, {"bearer": []}]  # either

    def get_security_definition(self, auto_schema: Any) -> list[dict[str, str]]:
        return [
            {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            {"type": "http", "scheme": "bearer", "bearerFormat": "agm_..."},
        ]
