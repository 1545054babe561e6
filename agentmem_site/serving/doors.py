"""Who may send how much, and how slowly. Only used where a body is long, or late."""

from collections.abc import Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from importlib import import_module

from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.urls import Resolver404, resolve, reverse

from accounts.api.authentication import holder_of, key_of
from accounts.api.views import TenantView
from agentmem_site.serving.access_log import Identity

FORM_BYTES = 64 * 1024  # for somebody who is not signed in


@dataclass(frozen=True, slots=True)
class Door:
    """Where a body goes, with at most `max_bytes`; if it `streams`, it is read as it arrives,
    whatever its length."""

    is_console: bool
    max_bytes: int
    streams: bool


def door_to(path: str) -> Door:
    """`path`: unquoted, without the query."""
    if path.startswith(reverse("admin:index")):
        upload = path == reverse("admin:upload")
        return Door(True, settings.DATA_UPLOAD_MAX_MEMORY_SIZE, upload)
    try:
        view = getattr(resolve(path).func, "cls", None)
    except Resolver404:
        view = None
    if view is None or not issubclass(view, TenantView):
        return Door(False, 0, False)
    return Door(False, view().max_body_bytes, view.streams)


def identify(door: Door, headers: Mapping[str, str]) -> Identity | None:
    """The holder of the key, or who is signed in to the console; None if unknown. `headers` are in
    lower case.

    The view checks what they may do. Queries the database.
    """
    if not door.is_console:
        holder = holder_of(key_of(headers))
        return holder and Identity(holder.organization.pk, key_id=holder.actor.id)
    try:
        cookies = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return None
    cookie = cookies.get(settings.SESSION_COOKIE_NAME)
    if cookie is None:
        return None
    store = import_module(settings.SESSION_ENGINE).SessionStore(cookie.value)
    member_id = store.get(SESSION_KEY)
    return Identity(member_id=member_id) if member_id else None
