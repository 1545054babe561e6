"""The console's session store: Django's, in the database, with a check of the key."""

import re
from typing import Any

from django.contrib.sessions.backends import db

_OURS = re.compile(r"[a-z0-9]{8,40}")


class SessionStore(db.SessionStore):
    def _validate_session_key(self, key: Any) -> bool:
        """Refuses keys that we did not create: a NUL, for example, cannot be stored in a column."""
        return isinstance(key, str) and bool(_OURS.fullmatch(key))
