"""Database URLs: each option reaches libpq, or is refused by name."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from django.conf import settings as site
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from psycopg.conninfo import conninfo_to_dict

from agentmem_site.db.roles import as_owner, owner_beside
from agentmem_site.db.urls import connection_parameters, settings_of_url
from tests.db.tls import behind_tls, make_certificate, socket_of

ROOT = Path(__file__).resolve().parents[2]
EMPTY = {"USER": "", "PASSWORD": "", "HOST": "", "PORT": "", "OPTIONS": {}}


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("postgres:///d", {}),
        ("postgresql://u:p@h:5433/d", {"USER": "u", "PASSWORD": "p", "HOST": "h", "PORT": "5433"}),
        ("postgres://u:p%40%2F%3A%23@h/d", {"USER": "u", "PASSWORD": "p@/:#", "HOST": "h"}),
        ("postgres://u:p@q@h/d", {"USER": "u", "PASSWORD": "p@q", "HOST": "h"}),
        ("postgres://u@%2Frun%2Fpg/d", {"USER": "u", "HOST": "/run/pg"}),
        ("postgres:///d?host=/run/pg&user=u", {"USER": "u", "HOST": "/run/pg"}),
        ("postgres://u@//run/pg/d", {"USER": "u", "HOST": "/run/pg"}),
        ("postgres://[::1]:5/d", {"HOST": "::1", "PORT": "5"}),
        ("postgres://a:1,b:2/d", {"HOST": "a,b", "PORT": "1,2"}),
        (
            "postgres://h/d?sslmode=verify-full&sslrootcert=%2Fca%20x.pem&options=-c%20a%3Db",
            {
                "HOST": "h",
                "OPTIONS": {
                    "sslmode": "verify-full",
                    "sslrootcert": "/ca x.pem",
                    "options": "-c a=b",
                },
            },
        ),
    ],
)
def test_a_url_is_parsed(url, wanted):
    assert settings_of_url(url, "X") == {"NAME": "d", **EMPTY, **wanted}


EVERY_OPTION = {
    "sslmode": "verify-ca",
    "sslrootcert": "/ca",
    "sslcert": "/cert",
    "sslkey": "/key",
    "sslcrl": "/crl",
    "ssl_min_protocol_version": "TLSv1.3",
    "channel_binding": "require",
    "require_auth": "scram-sha-256",
    "target_session_attrs": "read-write",
    "options": "-c search_path=x",
    "connect_timeout": "7",
    "application_name": "mine",
    "keepalives_idle": "9",
    "tcp_user_timeout": "8",
    "passfile": "/pass",
    "service": "s",
    "gssencmode": "disable",
    "load_balance_hosts": "random",
}


def test_every_option_reaches_every_connection():
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in EVERY_OPTION.items())
    settings = settings_of_url(f"postgres://u:p@h:1/d?{query}", "X")
    place = {"user": "u", "password": "p", "host": "h", "port": "1", "dbname": "d"}
    assert connection_parameters(settings) == EVERY_OPTION | place
    psql, env = connection.client_class.settings_to_cmd_args_env(settings, ["-c", "SELECT 1"])
    del place["password"]
    assert conninfo_to_dict(psql[1]) == EVERY_OPTION | place
    assert (psql[2:], env) == (["-c", "SELECT 1"], {"PGPASSWORD": "p"})


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgres://u:secret@h/d?sslmod=require", "knows no option sslmod: remove it"),
        ("postgres://u:secret@h/d?sslmode=require&sslmode=disable", "sslmode is given twice"),
        ("postgres://u:secret@h/d?CONN_MAX_AGE=5", "set AGENTMEM_CONN_MAX_AGE_S"),
        ("postgres://u:secret@h/d?client_encoding=latin1", "AgentMem speaks UTF-8"),
        ("postgres://u:secret@h/d?pool=true", "knows no option pool"),
        ("postgres://u:secret@h/d?pgbouncer=true", "knows no option pgbouncer"),
        ("postgres://u:secret@h/d?schema=x", "knows no option schema"),
        ("postgres://u:secret@h/d?sslmode=requierd", "sslmode has a value that libpq does not"),
        ("postgres://u:secret@h/d?connect_timeout=secret", "connect_timeout has a value"),
        ("postgres://u:secret@h/d?require_auth=secret", "require_auth has a value that"),
        ("postgres://u:secret@h:54x2/d", "X must be postgres://"),
        ("postgres://u:secret@h:99999/d", "X must be postgres://"),
        ("'postgres://u:secret@h/d'", "without quotation marks"),
        ('"postgres://u:secret@h/d"', "without quotation marks"),
        ("mysql://u:secret@h/d", "X must be postgres://"),
        ("secret", "X must be postgres://"),
        ("postgres://u:secret@h/", "X must be postgres://"),
        ("postgres://u:se/cret@h/d", "are %-encoded"),
        ("postgres://u:se#cret@h/d", "are %-encoded"),
        ("postgres://u:se?cret@h/d", "are %-encoded"),
        ("postgres://u:se%cret@h/d", "are %-encoded"),
        ("postgres://u:secret@[h/d", "are %-encoded"),
    ],
)
def test_a_url_is_refused_without_its_password(url, message):
    with pytest.raises(ImproperlyConfigured) as refusal:
        settings_of_url(url, "X")
    assert message in str(refusal.value)
    assert "cret" not in str(refusal.value)


@pytest.mark.django_db(transaction=True)
def test_the_owner_connects_with_its_own_options(monkeypatch):
    known = connection.settings_dict
    own = {**known["OPTIONS"], "application_name": "owner"}
    monkeypatch.setitem(known, "OWNER", {**known["OWNER"], "OPTIONS": {**own, "pool": True}})
    with owner_beside(connection) as beside:
        assert beside is None or beside.settings_dict["OPTIONS"] == own
    with as_owner(connection), connection.cursor() as cursor:
        assert known["OPTIONS"] == own
        cursor.execute("SELECT current_setting('application_name')")
        assert cursor.fetchone() == ("owner",)
    assert known["OPTIONS"]["application_name"] == "agentmem"


# -- against a server that speaks TLS -------------------------------------------------------------

_AS_OWNER = """
import django; django.setup()
from django.db import connection
from agentmem_site.db.roles import as_owner
with as_owner(connection), connection.cursor() as cursor:
    cursor.execute("SELECT current_user, current_database(), current_setting('application_name')")
    print(*cursor.fetchone(), connection.connection.pgconn.ssl_in_use)
"""


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """(port, the certificate that signs for it, another one)"""
    if site.EMBEDDED_SERVER is None or not shutil.which("openssl"):
        pytest.skip("needs openssl and the embedded server")
    folder = tmp_path_factory.mktemp("tls")
    right, wrong = (make_certificate(folder, name) for name in ("right", "wrong"))
    site.EMBEDDED_SERVER.start()
    with behind_tls(socket_of(site.EMBEDDED_SERVER.connection()), *right) as port:
        yield port, right[0], wrong[0]


def url(port, role, options="", database="agentmem"):
    password = site.EMBEDDED_SERVER.connection(role)["PASSWORD"]
    return f"postgres://{role}:{password}@127.0.0.1:{port}/{database}{options}"


def run(arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        check=False,
        cwd=ROOT,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "agentmem_site.settings", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.django_db
def test_the_superuser_s_url_checks_the_server(tls):
    port, right, wrong = tls
    of_app = url(port, "agentmem_app", f"?sslmode=verify-full&sslrootcert={right}")
    urls = {"DATABASE_URL": of_app, "DATABASE_OWNER_URL": url(port, "agentmem_owner")}

    def set_up(options):
        superuser = url(port, "postgres", options, database="postgres")
        return run(["manage.py", "setup_database", "--superuser-url", superuser], **urls)

    refused = set_up(f"?sslmode=verify-full&sslrootcert={wrong}")
    assert refused.returncode == 1
    assert "certificate verify failed" in refused.stderr
    # The server has no SCRAM-SHA-256-PLUS: it does not know about the TLS in front of it.
    refused = set_up("?sslmode=require&channel_binding=require")
    assert refused.returncode == 1
    assert "channel binding" in refused.stderr
    done = set_up(f"?sslmode=verify-full&sslrootcert={right}")
    assert (done.returncode, done.stderr) == (0, "")
    misspelt = set_up("?sslmod=verify-full")
    assert "--superuser-url: the installed libpq" in misspelt.stderr
    assert misspelt.returncode == 2


@pytest.mark.django_db
def test_the_owner_s_url_checks_the_server(tls):
    port, right, wrong = tls
    of_app = url(port, "agentmem_app", "?sslmode=require&application_name=app")

    def as_the_owner(options):
        of_owner = url(port, "agentmem_owner", options)
        return run(["-c", _AS_OWNER], DATABASE_URL=of_app, DATABASE_OWNER_URL=of_owner)

    refused = as_the_owner(f"?sslmode=verify-full&sslrootcert={wrong}")
    assert refused.returncode == 1
    assert "certificate verify failed" in refused.stderr
    done = as_the_owner(f"?sslmode=verify-full&sslrootcert={right}&application_name=mine")
    assert done.stdout == "agentmem_owner agentmem mine True\n", done.stderr
    # DATABASE_URL has what it does not say.
    assert as_the_owner("").stdout == "agentmem_owner agentmem app True\n"


def test_another_database_of_the_owner_is_refused():
    result = run(
        ["manage.py", "check"],
        DATABASE_URL="postgres://a:secret@h/one",
        DATABASE_OWNER_URL="postgres://o:secret@h/two",
    )
    assert result.returncode == 2
    assert result.stderr == (
        "Error: DATABASE_OWNER_URL names the database two and DATABASE_URL one. Both must "
        "name the same database.\n"
    )
