"""`postgres://` URLs as Django's connection settings. All URLs of the project are parsed here, by
libpq itself: it gets every option that it knows, and any other is refused by name."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import psycopg
from django.core.exceptions import ImproperlyConfigured
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Conninfo, PGconn

Settings = Mapping[str, Any]  # Django's keys: NAME USER PASSWORD HOST PORT OPTIONS

_SCHEMES = ("postgres", "postgresql")
_KEYS = {"dbname": "NAME", "user": "USER", "password": "PASSWORD", "host": "HOST", "port": "PORT"}
_ENCODED = "; special characters of a password (# / ? % [) are %-encoded."
_NOWHERE = "/nowhere"
_INTEGERS = {
    "connect_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
}
_CHECKED = {
    "sslmode",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
    "gssencmode",
    "channel_binding",
    "require_auth",
    "target_session_attrs",
    "load_balance_hosts",
    "sslcertmode",
}
_REFUSED = {
    "client_encoding": "AgentMem speaks UTF-8",
    "replication": "AgentMem does not replicate",
    "conn_max_age": "set AGENTMEM_CONN_MAX_AGE_S",
    "conn_health_checks": "they are always on",
}


def settings_of_url(url: str, name: str) -> dict[str, Any]:
    """NAME, USER, PASSWORD, HOST and PORT ("" if the URL has none) and OPTIONS, all strings.

    `name` is the variable with the URL. Errors never quote the URL: it has a password.

    Raises: ImproperlyConfigured.
    """
    shape = f"{name} must be postgres://USER:PASSWORD@HOST:PORT/DATABASE?OPTION=VALUE"
    if url[:1] in ("'", '"'):
        raise ImproperlyConfigured(f"{shape}, without quotation marks around it.")
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise ImproperlyConfigured(f"{shape}.")
    try:
        parts = urlsplit(f"postgresql://{rest}")
        options = [option for option, _ in parse_qsl(parts.query, keep_blank_values=True)]
    except ValueError:
        raise ImproperlyConfigured(f"{shape}{_ENCODED}") from None
    known = {option.keyword.decode() for option in Conninfo.get_defaults()} | {"ssl"}
    for option in options:
        if not option.isidentifier():  # perhaps a part of a password
            raise ImproperlyConfigured(f"{shape}{_ENCODED}")
        if option.lower() in _REFUSED:
            raise ImproperlyConfigured(
                f"{name}: {option} cannot be set there: {_REFUSED[option.lower()]}."
            )
        if option not in known:
            raise ImproperlyConfigured(
                f"{name}: the installed libpq knows no option {option}: remove it, or correct its "
                "spelling (PostgreSQL's manual, Parameter Key Words)."
            )
        if options.count(option) > 1:
            raise ImproperlyConfigured(f"{name}: {option} is given twice: remove one.")
    user, at, place = parts.netloc.rpartition("@")
    # (libpq itself ends the password at the first @.)
    user = quote(user, safe="%:!$&'()*+,;=~")
    try:
        parameters = conninfo_to_dict(f"postgresql://{user}{at}{place}{parts.path}?{parts.query}")
    except psycopg.ProgrammingError:
        raise ImproperlyConfigured(f"{shape}{_ENCODED}") from None
    settings: dict[str, Any] = {key: str(parameters.pop(word, "")) for word, key in _KEYS.items()}
    if not settings["HOST"] and settings["NAME"].startswith("/"):  # //FOLDER/DATABASE
        settings["HOST"], _, settings["NAME"] = settings["NAME"].rpartition("/")
    if parts.fragment or not settings["NAME"] or set(settings["NAME"]) & set("/@"):
        raise ImproperlyConfigured(f"{shape}{_ENCODED}")
    ports = [port for port in settings["PORT"].split(",") if port]
    if not all(port.isascii() and port.isdecimal() and 0 < int(port) < 65536 for port in ports):
        raise ImproperlyConfigured(f"{shape}{_ENCODED}")
    for option, value in parameters.items():
        if not _is_valid(option, str(value)):
            raise ImproperlyConfigured(f"{name}: {option} has a value that libpq does not accept.")
    return {**settings, "OPTIONS": parameters}


def _is_valid(option: str, value: str) -> bool:
    """Whether libpq accepts the value. It checks before it connects, here to a missing socket."""
    if option in _INTEGERS:
        return value.strip().removeprefix("-").isdecimal()
    if option not in _CHECKED:
        return True
    attempt = PGconn.connect_start(make_conninfo(host=_NOWHERE, **{option: value}).encode())
    try:
        return _NOWHERE.encode() in attempt.error_message
    finally:
        attempt.finish()


def connection_parameters(settings: Settings) -> dict[str, Any]:
    """Django's connection settings as the parameters of psycopg.connect and libpq."""
    parameters = {word: settings[key] for word, key in _KEYS.items() if settings.get(key)}
    return {**settings.get("OPTIONS", {}), **parameters}
