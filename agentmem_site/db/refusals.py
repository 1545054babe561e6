"""Why a connection was not made: told apart, each with what to do about it.

PostgreSQL gives no SQLSTATE where a sign-in fails, only words: those of an English server are
understood here, and others are passed on.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from django.conf import settings

from agentmem_site.db.outages import AWAY, outage_of, sqlstate
from agentmem_site.db.urls import Settings, connection_words, settings_of_url

_ASKED_WITHIN_S = 3


@dataclass(frozen=True, slots=True)
class Refusal:
    """`words` name nothing, for anybody; `sentence` has the fields `host`, `role`, `database` and
    `detail` (what libpq says of TLS), for the operator."""

    words: str
    sentence: str


_SETUP = "run `manage.py setup_database`"
PASSWORD = Refusal(
    "The database refuses the password of its sign-in.",
    "{host} refuses the password of the role {role}: mend it in the URL, or "
    f"{_SETUP}, which sets it.",
)
PASSWORD_OR_ROLE = Refusal(
    "The database refuses its sign-in: the password is wrong, or there is no such role.",
    "{host} refuses the password of the role {role}, or has no such role: mend the URL, or "
    f"{_SETUP}, which makes the role and sets its password.",
)
OF_SECRETS = Refusal(
    PASSWORD.words,
    "{host} refuses the password of the role {role}: restore secrets.json in its folder from a "
    "backup.",
)
ROLE = Refusal(
    "The database has no role of that name.",
    f"{{host}} has no role {{role}}: mend the URL, or {_SETUP}, which makes it.",
)
DATABASE = Refusal(
    "The server has no database of that name.",
    f"{{host}} has no database {{database}}: mend the URL, or {_SETUP}, which makes it.",
)
NOT_ADMITTED = Refusal(
    "The server does not admit this machine, role and database.",
    "{host} does not admit the role {role} to the database {database} from here: add a line to its "
    "pg_hba.conf, or use TLS (sslmode) where it asks for that.",
)
STARTING = Refusal(
    "The database is starting or stopping.",
    "{host} is starting or stopping: try again in a while.",
)
CROWDED = Refusal(
    "The database has no connection left.",
    "{host} has no connection left: raise its max_connections, or lower AGENTMEM_MAX_THREADS.",
)
TLS = Refusal(
    "TLS with the database failed.",
    "TLS with {host} failed ({detail}): look at the sslmode and the certificates that the URL "
    "names.",
)
NO_HOST = Refusal(
    "The host of the database is not known.",
    "{host} is not found: its name has no address here; mend it in the URL.",
)
DOWN = Refusal(
    "The database cannot be reached.",
    "{host} cannot be reached: start PostgreSQL there, or mend host and port in the URL.",
)
_OF_TLS = re.compile(r"(?:SSL error: )?([^:\n]*(?:SSL (?!error)|certificate).*)")
_BY_WORDS = [
    (re.compile(words), refusal)
    for words, refusal in [
        (r"password authentication failed|no password supplied", PASSWORD_OR_ROLE),
        (r"role \".*\" does not exist|no such user", ROLE),
        (r"database \".*\" does not exist|no such database", DATABASE),
        (r"no pg_hba\.conf entry|pg_hba\.conf rejects|is not permitted to log in", NOT_ADMITTED),
        (r"the database system is (starting|shutting|not )", STARTING),
        (r"too many (clients|connections)|remaining connection slots", CROWDED),
        (r"\bSSL\b|certificate", TLS),
        (r"failed to resolve host|could not translate host name", NO_HOST),
        (r"Connection refused|No such file or directory|timeout|timed out|unreachable", DOWN),
    ]
]


class CannotConnect(psycopg.OperationalError):
    """Says in one sentence why, without a secret. `name` is where the settings come from."""

    def __init__(self, refusal: Refusal, name: str, place: Settings, said: str) -> None:
        self.refusal = refusal
        self.name = name
        self.role = str(place.get("USER", ""))
        self._place = place
        detail = _OF_TLS.search(said)
        self._detail = detail[1].strip() if detail else "no more is known"
        super().__init__(self.sentence)

    @property
    def sentence(self) -> str:
        host, port = self._place.get("HOST") or "the local server", self._place.get("PORT")
        at = f"PostgreSQL at {host}" + (f", port {port}," if port else "")
        sentence = self.refusal.sentence.format(
            host=at, role=self.role, database=self._place.get("NAME", ""), detail=self._detail
        )
        return f"{self.name}: {sentence}"


def cannot_connect(error: psycopg.OperationalError, place: Settings, name: str = "") -> Exception:
    """What to raise of a connection to `place` that failed; the error itself, where its words are
    not known."""
    said = str(error)
    if outage_of(error) is not AWAY:
        return error
    refusal = next((refusal for words, refusal in _BY_WORDS if words.search(said)), None)
    if refusal is None:
        return error
    if refusal is PASSWORD_OR_ROLE and settings.EMBEDDED_SERVER is not None and not name:
        refusal = OF_SECRETS
    return CannotConnect(refusal, name or _name_of(place), place, said)


def explained(error: BaseException) -> CannotConnect | None:
    """Of an error, or what it came of: the connection that was not made. A wrong password is told
    from a missing role, which the server itself does not, where another sign-in of the settings can
    ask: that takes one connection."""
    found = _refused(error)
    if found is not None and found.refusal is PASSWORD_OR_ROLE:
        exists = _role_exists(found.role)
        if exists is not None:
            found.refusal = PASSWORD if exists else ROLE
    return found


def reason(error: BaseException) -> str:
    """What a line of the log says of an outage beside its words: why no connection was made, or the
    SQLSTATE. Asks nobody."""
    found = _refused(error)
    return found.refusal.words.rstrip(".") if found else f"SQLSTATE {sqlstate(error) or 'none'}"


def _refused(error: BaseException) -> CannotConnect | None:
    return next((e for e in (error, error.__cause__) if isinstance(e, CannotConnect)), None)


def told(error: BaseException) -> str:
    """What an operator reads of an outage, in one sentence: one that `outage_of` knows."""
    outage = outage_of(error)
    if outage is not AWAY:
        return outage.words if outage else str(error)
    found = explained(error)
    return found.sentence if found else f"No database: {' '.join(str(error).split())}"


def _name_of(place: Mapping[str, Any]) -> str:
    """(As the owner, the settings of the connection have the owner's place: roles.py.)"""
    if settings.EMBEDDED_SERVER is not None:
        return "The embedded server"
    application = settings_of_url(settings.DATABASE_URL, "DATABASE_URL")["USER"]
    return "DATABASE_URL" if place.get("USER") == application else "DATABASE_OWNER_URL"


def _role_exists(role: str) -> bool | None:
    """None: nobody can be asked."""
    for place in _sign_ins():
        if not place.get("USER") or place["USER"] == role:
            continue
        words = {**connection_words(place), "connect_timeout": _ASKED_WITHIN_S}
        try:
            with psycopg.connect(**words) as asked:
                found = asked.execute("SELECT FROM pg_roles WHERE rolname = %s", [role])
                return found.fetchone() is not None
        except psycopg.Error:
            continue
    return None


def _sign_ins() -> Iterator[Settings]:
    application = settings.DATABASES["default"]
    yield application
    yield {**application, **(application.get("OWNER") or {})}
