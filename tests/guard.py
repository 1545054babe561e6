"""The first wall, watched: each statement on a data-plane table carries its organization."""

import re
from typing import Any

from django.apps import apps

from agentmem_site.db.fields import tenant_key

# A join to the organization itself picks none.
_OF_IDENTITY = re.compile(r'"\w+"\."organization_id" = \("accounts_organization"\."id"\)')
_PREDICATE = re.compile(r'organization_id"?\)?\s*(=|IN|IS NOT DISTINCT)')


def data_plane_tables() -> list[str]:
    return sorted(m._meta.db_table for m in apps.get_models() if tenant_key(m))


def refuse_without_organization(
    execute: Any, statement: Any, parameters: Any, many: bool, context: Any
) -> Any:
    text = statement if isinstance(statement, str) else statement.as_string(None)
    text = _OF_IDENTITY.sub("", text)
    names = "|".join(map(re.escape, data_plane_tables()))
    read = re.findall(rf'(?:FROM|JOIN|UPDATE)\s+(?:ONLY\s+)?"?(?:{names})"?\b', text)
    if not text.startswith("TRUNCATE") and len(_PREDICATE.findall(text)) < len(read):
        raise AssertionError(f"No organization in: {text}")
    return execute(statement, parameters, many, context)
