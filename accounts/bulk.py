"""What the bulk loader has to know of this app's resources."""

from typing import Annotated

from msgspec import Meta

from accounts.models import User
from agentmem_site.bulk import binary
from agentmem_site.bulk.spec import (
    Column,
    Key,
    KeyText,
    Line,
    LoadSpec,
    Name,
    Reference,
    json_object,
)

METADATA = Column("metadata", json_object)
USER = Reference("user_id", User)


class UserLine(Line):
    external_id: KeyText
    name: Name | None = None
    email: Annotated[str, Meta(max_length=254)] | None = None
    timezone: Annotated[str, Meta(max_length=64)] | None = None
    status: User.Status | None = None


USERS = LoadSpec(
    resource="users",
    model=User,
    line=UserLine,
    columns=[
        Column("external_id", binary.text),
        Column("name", binary.text),
        Column("email", binary.text),
        Column("timezone", binary.text),
        Column("status", binary.text),
        METADATA,
    ],
    keys=[Key(("external_id",))],
)
