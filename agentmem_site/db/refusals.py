"""Why a connection failed, and what to do about it.

PostgreSQL gives no SQLSTATE when a sign-in fails, only a message. Messages of a server in English
are recognized here; others are passed on.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from django.conf import settings

from agentmem_site.db.outages import AWAY, outage_of, sqlstate
from agentmem_site.db.urls import Settings, connection_parameters, settings_of_url

_CONNECT_TIMEOUT_S = 3


@dataclass(frozen=True, slots=True)
class Refusal:
    """`message` is for anybody and has no names. `explanation` is for the operator; its fields are
    `host`, `role`, `database` and `detail` (libpq's message about TLS)."""

    message: str
    explanation: str


_SETUP = "run `manage.py setup_database`"
PASSWORD = Refusal(
    "The database refuses the password of its sign-in.",
    "{host} refuses the password of the role {role}: correct it in the URL, or "
    f"{_SETUP}, which sets it.",
)
PASSWORD_OR_ROLE = Refusal(
    "The database refuses its sign-in: the password is wrong, or there is no such role.",
    "{host} refuses the password of the role {role}, or has no such role: correct the URL, or "
    f"{_SETUP}, which creates the role and sets its password.",
)
SECRETS_PASSWORD = Refusal(
    PASSWORD.message,
    "{host} refuses the password of the role {role}: restore secrets.json in its folder from a "
    "backup.",
)
ROLE = Refusal(
    "The database has no role of that name.",
    f"{{host}} has no role {{role}}: correct the URL, or {_SETUP}, which creates it.",
)
DATABASE = Refusal(
    "The server has no database of that name.",
    f"{{host}} has no database {{database}}: correct the URL, or {_SETUP}, which creates it.",
)
NOT_ADMITTED = Refusal(
    "The server does not admit this machine, role and database.",
    "{host} does not admit the role {role} to the database {database} from here: add a line to its "
    "pg_hba.conf, or use TLS (sslmode) if it requires that.",
)
STARTING = Refusal(
    "The database is starting or stopping.",
    "{host} is starting or stopping: try again later.",
)
CROWDED = Refusal(
    "The database has no connection left.",
    "{host} has no connection left: raise its max_connections, or lower AGENTMEM_MAX_THREADS.",
)
TLS = Refusal(
    "TLS with the database failed.",
    "TLS with {host} failed ({detail}): check the sslmode and the certificates in the URL.",
)
NO_HOST = Refusal(
    "The host of the database is not known.",
    "{host} is not found: its name has no address here; correct it in the URL.",
)
DOWN = Refusal(
    "The database cannot be reached.",
    "{host} cannot be reached: start PostgreSQL there, or correct host and port in the URL.",
)
_TLS_DETAIL = re.compile(r"(?:SSL error: )?([^:\n]*(?:SSL (?!error)|certificate).*)")
_BY_PATTERN = [
    (re.compile(pattern), refusal)
    for pattern, refusal in [
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
    """Its message says why in one sentence, without a secret. `name` is where `target` is set."""

    def __init__(self, refusal: Refusal, name: str, target: Settings, message: str) -> None:
        self.refusal = refusal
        self.name = name
        self.role = str(target.get("USER", ""))
        self._target = target
        detail = _TLS_DETAIL.search(message)
        self._detail = detail[1].strip() if detail else "no details are known"
        super().__init__(self.explanation)

    @property
    def explanation(self) -> str:
        host, port = self._target.get("HOST") or "the local server", self._target.get("PORT")
        at = f"PostgreSQL at {host}" + (f", port {port}," if port else "")
        explanation = self.refusal.explanation.format(
            host=at, role=self.role, database=self._target.get("NAME", ""), detail=self._detail
        )
        return f"{self.name}: {explanation}"


def cannot_connect(error: psycopg.OperationalError, target: Settings, name: str = "") -> Exception:
    """The exception to raise when a connection to `target` failed; `error` itself if its message
    is not recognized."""
    message = str(error)
    if outage_of(error) is not AWAY:
        return error
    refusal = next((refusal for pattern, refusal in _BY_PATTERN if pattern.search(message)), None)
    if refusal is None:
        return error
    if refusal is PASSWORD_OR_ROLE and settings.EMBEDDED_SERVER is not None and not name:
        refusal = SECRETS_PASSWORD
    return CannotConnect(refusal, name or _name_of(target), target, message)


def connection_failure(error: BaseException) -> CannotConnect | None:
    """The CannotConnect that is the error or its cause. The server does not distinguish a wrong
    password from a missing role: this looks the role up, by one connection of another sign-in."""
    failure = _cannot_connect_in(error)
    if failure is not None and failure.refusal is PASSWORD_OR_ROLE:
        exists = _role_exists(failure.role)
        if exists is not None:
            failure.refusal = PASSWORD if exists else ROLE
    return failure


def reason(error: BaseException) -> str:
    """The reason of an outage, for the log: why no connection was made, or the SQLSTATE. Makes no
    connection."""
    failure = _cannot_connect_in(error)
    if failure:
        return failure.refusal.message.rstrip(".")
    return f"SQLSTATE {sqlstate(error) or 'none'}"


def _cannot_connect_in(error: BaseException) -> CannotConnect | None:
    return next((e for e in (error, error.__cause__) if isinstance(e, CannotConnect)), None)


def outage_message(error: BaseException) -> str:
    """One sentence for the operator, about an error that `outage_of` recognizes."""
    outage = outage_of(error)
    if outage is not AWAY:
        return outage.message if outage else str(error)
    failure = connection_failure(error)
    return failure.explanation if failure else f"No database: {' '.join(str(error).split())}"


def _name_of(target: Mapping[str, Any]) -> str:
    """The variable that has the URL. (`as_owner` puts the owner's into the settings: roles.py.)"""
    if settings.EMBEDDED_SERVER is not None:
        return "The embedded server"
    application = settings_of_url(settings.DATABASE_URL, "DATABASE_URL")["USER"]
    return "DATABASE_URL" if target.get("USER") == application else "DATABASE_OWNER_URL"


def _role_exists(role: str) -> bool | None:
    """None if no other role can sign in to look."""
    for target in _sign_ins():
        if not target.get("USER") or target["USER"] == role:
            continue
        parameters = {**connection_parameters(target), "connect_timeout": _CONNECT_TIMEOUT_S}
        try:
            with psycopg.connect(**parameters) as connection:
                rows = connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [role])
                return rows.fetchone() is not None
        except psycopg.Error:
            continue
    return None


def _sign_ins() -> Iterator[Settings]:
    application = settings.DATABASES["default"]
    yield application
    yield {**application, **(application.get("OWNER") or {})}
