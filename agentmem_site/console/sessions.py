"""Where the console's sessions are kept: in the database, as Django does."""

import re
from typing import Any

from django.contrib.sessions.backends import db

_OURS = re.compile(r"[a-z0-9]{8,40}")


class SessionStore(db.SessionStore):
    def _validate_session_key(self, key: Any) -> bool:
        """A cookie that holds no key of ours (a NUL in it no column could hold) is no session."""
        return isinstance(key, str) and bool(_OURS.fullmatch(key))
