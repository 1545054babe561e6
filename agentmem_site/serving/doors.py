"""Who may send how much, and how slowly: asked only where a body is long, or late."""

from collections.abc import Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from importlib import import_module

from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.urls import Resolver404, resolve, reverse

from accounts.api.authentication import holder_of, key_of
from accounts.api.views import TenantView
from agentmem_site.serving.access_log import Who

FORM_BYTES = 64 * 1024  # of somebody who is not signed in


@dataclass(frozen=True, slots=True)
class Door:
    """Where a body goes. `takes` bytes at most, one more of which tells that it is too long;
    `streams`: it is read as it comes, whatever its length."""

    is_console: bool
    takes: int
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


def who_calls(door: Door, headers: Mapping[str, str]) -> Who | None:
    """Who holds a key, or is signed in to the console; None: nobody known. `headers` are in lower
    case.

    What they may do is for the view to say. Asks the database.
    """
    if not door.is_console:
        holder = holder_of(key_of(headers))
        return holder and Who(holder.organization.pk, key_id=holder.actor.id)
    try:
        cookies = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return None
    cookie = cookies.get(settings.SESSION_COOKIE_NAME)
    if cookie is None:
        return None
    store = import_module(settings.SESSION_ENGINE).SessionStore(cookie.value)
    member_id = store.get(SESSION_KEY)
    return Who(member_id=member_id) if member_id else None
