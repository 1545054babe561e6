"""The loadable resources of this app."""

from typing import Annotated

from msgspec import Meta

from accounts.models import User
from agentmem_site.bulk.spec import (
    Key,
    KeyText,
    Line,
    LoadSpec,
    Name,
    Reference,
)

USER = Reference("user_id", User)


class UserLine(Line):
    external_id: KeyText
    name: Name | None = None
    email: Annotated[str, Meta(max_length=254)] | None = None
    timezone: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    status: User.Status | None = None


class RestoredUserLine(UserLine, kw_only=True):
    timezone: Annotated[str, Meta(max_length=64)] | None = None


USERS = LoadSpec(
    resource="users",
    model=User,
    line=UserLine,
    columns=[
        "external_id",
        "name",
        "email",
        "timezone",
        "status",
        "metadata",
    ],
    keys=[Key(("external_id",))],
    restored_line=RestoredUserLine,
)
