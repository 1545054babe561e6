"""The first wall, watched: each statement on a data-plane table carries its organization."""

import re
from typing import Any

from django.apps import apps

from accounts.tenancy import LoadedModel
from agentmem_site.db.fields import tenant_key

# A join to the organization itself picks none.
_OF_IDENTITY = re.compile(r'"\w+"\."organization_id" = \("accounts_organization"\."id"\)')
# What no line of a file says: it may change without a word. (A reference that is emptied has lost
# its row, and is looked for again.)
_OF_THE_SERVER = re.compile(
    r"access_count|last_accessed|is_deleted|deleted_at|last_updated_by_id|embedding\w*|is_indexed"
    r"|language|(agent|user|session|run|block)_id"
)
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
    _refuse_silent_change(text)
    return execute(statement, parameters, many, context)


def _loaded_tables() -> list[str]:
    return [m._meta.db_table for m in apps.get_models() if issubclass(m, LoadedModel)]


def _refuse_silent_change(text: str) -> None:
    """The loader knows a line that it has loaded before by its hash, which holds while nobody has
    moved `updated_at`: whoever changes such a row does, or empties the hash."""
    names = "|".join(map(re.escape, _loaded_tables()))
    for change in re.findall(rf'UPDATE\s+"?(?:{names})"?\s.*?SET\s(.*?)\sWHERE', text, re.DOTALL):
        columns = re.findall(r'"?(\w+)"?\s*=', change)
        if {"updated_at", "line_hash"} & set(columns):
            continue
        silent = [column for column in columns if not _OF_THE_SERVER.fullmatch(column)]
        if silent:
            raise AssertionError(f"{silent} change, `updated_at` does not: {text}")
