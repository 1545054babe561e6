"""What somebody has seen of a row, told by digests: what has changed since is not written over."""

import json
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

from django.db import models

from accounts.errors import Stale

_BYTES = 12


def digest(value: Any) -> str:
    """16 characters of ASCII; equal for values of equal JSON, whatever the order of keys."""
    text = json.dumps(value, sort_keys=True, default=str)
    return urlsafe_b64encode(blake2b(text.encode(), digest_size=_BYTES).digest()).decode()


def digest_of(record: models.Model, name: str) -> str:
    """The digest of what the record holds in this column, to the last character."""
    field: Any = record._meta.get_field(name)
    return digest(getattr(record, field.attname))


def refuse_stale(record: models.Model, names: Iterable[str], seen: Mapping[str, str]) -> None:
    """`seen`: {name: digest_of() when it was shown}; columns that are not in it are not compared.

    Raises: Stale (one of `names` holds something else by now).
    """
    for name in names:
        if name in seen and digest_of(record, name) != seen[name]:
            raise Stale(field=name)
