"""Optimistic locking: digests of the values that a caller has read. A column that has changed since
is not overwritten."""

import json
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

from django.db import models

from accounts.errors import Stale

_BYTES = 12


def digest(value: Any) -> str:
    """16 ASCII characters; equal for values of equal JSON, in any order of keys."""
    text = json.dumps(value, sort_keys=True, default=str)
    return urlsafe_b64encode(blake2b(text.encode(), digest_size=_BYTES).digest()).decode()


def digest_of(record: models.Model, name: str) -> str:
    """The digest of the record's exact value of this column."""
    field: Any = record._meta.get_field(name)
    return digest(getattr(record, field.attname))


def refuse_stale(record: models.Model, names: Iterable[str], seen: Mapping[str, str]) -> None:
    """`seen`: {name: digest_of() when it was read}; other columns are not compared.

    Raises: Stale (one of `names` has changed).
    """
    for name in names:
        if name in seen and digest_of(record, name) != seen[name]:
            raise Stale(field=name)
