"""Every setting of the site, from the environment (or `.env`), with a default that works.

docs/operations.md lists them. Nothing else in the project reads the environment.
"""

import os
import secrets
from pathlib import Path

import environ
from django.core.exceptions import ImproperlyConfigured

from agentmem_site import private
from agentmem_site.db.urls import settings_of_url
from agentmem_site.embedded import DataDirectoryRefusal, Server
from agentmem_site.variables import HOST, ORIGIN, Variables

BASE_DIR = Path(__file__).resolve().parent.parent
environ.Env.read_env(BASE_DIR / ".env")  # into os.environ, without overriding it
env = Variables(os.environ)

# --- the data directory and security ---------------------------------------------------------
DATA_DIR = Path(env.text("AGENTMEM_DATA_DIR", str(BASE_DIR / "var"), documented="`var`")).resolve()


def _kept_secret(path: Path) -> str:
    """The secret key of this installation: created once, readable only by its owner."""
    try:
        if not path.exists():
            private.make_folder(path.parent, private.PASSAGE)
            with private.open_private(path, "w") as file:
                file.write(secrets.token_urlsafe(50))
        return path.read_text().strip()
    except PermissionError as error:
        raise DataDirectoryRefusal(
            f"{path} belongs to another user. Run this as that user, or set AGENTMEM_DATA_DIR to a "
            "folder of your own."
        ) from error


DEBUG = env.flag("AGENTMEM_DEBUG", False)
SECRET_KEY = env.text(
    "AGENTMEM_SECRET_KEY", documented="made once, in the data directory"
) or _kept_secret(DATA_DIR / "secret_key")
ALLOWED_HOSTS = env.listed(
    "AGENTMEM_ALLOWED_HOSTS",
    ["127.0.0.1", "localhost", "[::1]"],
    pattern=HOST,
    example="agentmem.example.com, without scheme and port",
)
CSRF_TRUSTED_ORIGINS = env.listed(
    "AGENTMEM_TRUSTED_ORIGINS", [], pattern=ORIGIN, example="https://agentmem.example.com"
)

# --- PostgreSQL ------------------------------------------------------------------------------
# With DATABASE_URL: that server, as the application; DATABASE_OWNER_URL migrates it. Without it:
# the embedded server, which starts at the first connection (agentmem_site/db/base.py).
DATABASE_URL = env.text("DATABASE_URL", documented="none: the embedded server")
POSTGRES_VERSION = int(env.one_of("AGENTMEM_POSTGRES_VERSION", "18", ["18", "16"]))
POSTGRES_LOG_MAX_MB = env.number("AGENTMEM_POSTGRES_LOG_MAX_MB", 16)
POSTGRES_LOG_DAYS = env.number("AGENTMEM_POSTGRES_LOG_DAYS", 14)
EMBEDDED_SERVER = (
    None
    if DATABASE_URL
    else Server(
        DATA_DIR / f"postgres-{POSTGRES_VERSION}",
        version=POSTGRES_VERSION,
        log_max_bytes=round(1024 * 1024 * POSTGRES_LOG_MAX_MB),
        log_days=POSTGRES_LOG_DAYS,
    )
)
_owner_url = env.text("DATABASE_OWNER_URL")
if EMBEDDED_SERVER is None:
    _application = settings_of_url(DATABASE_URL, "DATABASE_URL")
    _owner = settings_of_url(_owner_url, "DATABASE_OWNER_URL") if _owner_url else {}
    if _owner and _owner["NAME"] != _application["NAME"]:
        raise ImproperlyConfigured(
            f"DATABASE_OWNER_URL names the database {_owner['NAME']} and DATABASE_URL "
            f"{_application['NAME']}. Both must name the same database."
        )
else:
    _application = EMBEDDED_SERVER.connection("agentmem_app")
    _owner = EMBEDDED_SERVER.connection("agentmem_owner")
    # Another process that listens on the socket's name must not learn the password.
    _application["OPTIONS"] = {"require_auth": "scram-sha-256"}
_options = {
    "connect_timeout": 5,
    "application_name": "agentmem",
    # Notices a lost host within 30 s, during any wait.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
    **_application.get("OPTIONS", {}),
}
DATABASES = {
    "default": {
        **_application,
        "ENGINE": "agentmem_site.db",
        "OWNER": {
            **{key: _owner.get(key, "") for key in ("USER", "PASSWORD", "HOST", "PORT")},
            "OPTIONS": {**_options, **_owner.get("OPTIONS", {})},
        },
        "CONN_MAX_AGE": env.integer("AGENTMEM_CONN_MAX_AGE_S", 600),
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": _options,
        "TEST": {"TEMPLATE": "agentmem_template"},
    }
}
# How long a statement of a request may run, and wait for a lock. Loads have their own limits.
STATEMENT_TIMEOUT_MS = round(1000 * env.number("AGENTMEM_STATEMENT_TIMEOUT_S", 30))
LOCK_TIMEOUT_MS = round(1000 * env.number("AGENTMEM_LOCK_TIMEOUT_S", 5))
# After this time, a request's change of many statements (deleting a row with its dependent rows)
# starts no further statement.
CHANGE_TIMEOUT_S = env.number("AGENTMEM_CHANGE_TIMEOUT_S", 50)
# A request's connection that is silent for this long (a stalled pooler) is closed.
DATABASE_SILENCE_S = env.number("AGENTMEM_DATABASE_SILENCE_S", 90)
# Per server process; `serve` divides MAX_THREADS among its processes (agentmem_site/serving).
SERVING = {
    "THREADS": env.integer(
        "AGENTMEM_THREADS",
        min(8, 2 * (os.cpu_count() or 1) + 1),
        minimum=1,
        documented="twice the cores and one, 8 at most",
    ),
    "MAX_THREADS": env.integer("AGENTMEM_MAX_THREADS", 64, minimum=1),
    "TRANSFERS": env.integer("AGENTMEM_TRANSFERS", 8, minimum=1),
    "IDLE_S": env.number("AGENTMEM_BODY_IDLE_S", 30),
}
# Each server process embeds pending memories in a thread; `serve` turns it on.
EMBED_THREAD = env.flag("AGENTMEM_EMBED_THREAD", False, documented="on under `serve`")
# A server process ends when its parent does; `serve` turns it on.
SUPERVISED = env.flag("AGENTMEM_SUPERVISED", False, documented="on under `serve`")
# /health/ready warns when a disk of this machine has less free space.
DISK_LEAST_BYTES = round(1024 * 1024 * env.number("AGENTMEM_DISK_LEAST_MB", 512))
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# --- the application -------------------------------------------------------------------------
INSTALLED_APPS = [
    "agentmem_site",
    "accounts",
    "memories",
    "sessions",
    "unfold.apps.BasicAppConfig",  # templates and ModelAdmin; the site class is ours
    "unfold.contrib.filters",
    "agentmem_site.apps.ConsoleConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.postgres",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
]
MIDDLEWARE = [
    "agentmem_site.serving.access_log.AccessLogMiddleware",
    "agentmem_site.api.middleware.RequestIdMiddleware",
    "agentmem_site.api.middleware.StatementLimitsMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "agentmem_site.api.middleware.ConsolePolicyMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "agentmem_site.console.outages.ConsoleSessionMiddleware",
    "agentmem_site.api.middleware.HostMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "agentmem_site.urls"
WSGI_APPLICATION = "agentmem_site.wsgi.application"
APPEND_SLASH = False  # the routes match with and without the slash
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True

# --- people and sign-in ----------------------------------------------------------------------
AUTH_USER_MODEL = "accounts.Member"
AUTHENTICATION_BACKENDS = ["accounts.services.sign_in.MemberBackend"]
# Several organizations may have a member with the same email address. The backend picks the one
# whose password matches, and asks if several match.
SILENCED_SYSTEM_CHECKS = ["auth.W004"]
LOGIN_URL = "admin:login"
SESSION_ENGINE = "agentmem_site.console.sessions"
LOGIN_REDIRECT_URL = "admin:index"
_validators = "django.contrib.auth.password_validation"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"{_validators}.UserAttributeSimilarityValidator"},
    {"NAME": f"{_validators}.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": f"{_validators}.CommonPasswordValidator"},
    {"NAME": f"{_validators}.NumericPasswordValidator"},
]

# --- the web ---------------------------------------------------------------------------------
HTTPS = env.flag("AGENTMEM_HTTPS", False)  # on in production, behind a proxy that terminates TLS
SECURE_SSL_REDIRECT = HTTPS
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if HTTPS else None
SECURE_REDIRECT_EXEMPT = [r"^health/"]  # probes reach this process without the proxy
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = HTTPS
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
STATIC_URL = "static/"
WHITENOISE_USE_FINDERS = True  # serves files from the packages, without collectstatic
WHITENOISE_AUTOREFRESH = DEBUG
DATA_UPLOAD_MAX_MEMORY_SIZE = 5 * 1024 * 1024

# --- the console -----------------------------------------------------------------------------
_console = "agentmem_site.console.navigation"
UNFOLD = {
    "SITE_TITLE": "AgentMem",
    "SITE_HEADER": "AgentMem",
    "SITE_SUBHEADER": f"{_console}.subheader",
    "SITE_URL": None,
    "SITE_ICON": f"{_console}.mark",
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": f"{_console}.mark"}],
    "STYLES": [f"{_console}.stylesheet"],
    "SCRIPTS": [f"{_console}.script"],
    "SHOW_VIEW_ON_SITE": False,
    "SIDEBAR": {"navigation": f"{_console}.sidebar"},
    "COLORS": {
        "primary": {
            "50": "oklch(96.2% .018 272.3)",
            "100": "oklch(93% .034 272.8)",
            "200": "oklch(87% .065 274)",
            "300": "oklch(78.5% .115 274.7)",
            "400": "oklch(67.3% .182 276.9)",
            "500": "oklch(58.5% .233 277.1)",
            "600": "oklch(51.1% .262 276.9)",
            "700": "oklch(45.7% .24 277)",
            "800": "oklch(39.8% .195 277.4)",
            "900": "oklch(35.9% .144 278.7)",
            "950": "oklch(25.7% .09 281.3)",
        }
    },
}

# --- REST ------------------------------------------------------------------------------------
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["accounts.api.authentication.ApiKeyAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["accounts.api.permissions.HasScope"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["accounts.api.parsers.StrictJSONParser"],
    "DEFAULT_METADATA_CLASS": None,  # no OPTIONS: the schema describes the API
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "UNAUTHENTICATED_USER": None,
    "URL_FORMAT_OVERRIDE": None,  # `format` is an unknown parameter like any other
    "EXCEPTION_HANDLER": "agentmem_site.api.problems.problem_response",
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "AgentMem API",
    "DESCRIPTION": "Memory for AI agents: agents, conversations and long-term memories.",
    "VERSION": "1.0.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
    "SERVE_AUTHENTICATION": [],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    # Without this the page sends the schema's URL to validator.swagger.io.
    "SWAGGER_UI_SETTINGS": {"deepLinking": True, "validatorUrl": None},
    "COMPONENT_SPLIT_REQUEST": True,
    "ENUM_GENERATE_CHOICE_DESCRIPTION": False,
    "SCHEMA_PATH_PREFIX": "/api/v1",
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "agentmem_site.api.schema.describe_problems",
    ],
    "ENUM_NAME_OVERRIDES": {
        "UserStatus": "accounts.models.User.Status",
        "AuditStatus": "accounts.models.AuditEvent.Status",
        "RunStatus": "sessions.models.Run.Status",
        "MemberRole": "accounts.roles.Role",
        "MessageRole": "sessions.models.Message.Role",
        "MemoryType": "memories.models.Memory.Type",
        "MemoryScope": "memories.models.Memory.Scope",
        "MemoryLevel": "memories.models.Memory.Level",
        "KeyScope": "accounts.roles.ALL_PERMISSIONS",
    },
    "TAGS": [
        {"name": "Memories", "description": "What agents learnt, and who said it."},
        {"name": "Sessions", "description": "Conversations with their runs and messages."},
        {"name": "Messages", "description": "Single messages, in a session or outside one."},
        {"name": "Agents", "description": "Agents and what is attached to them."},
        {"name": "Blocks", "description": "Labelled pieces of text in agents' prompts."},
        {"name": "Tools", "description": "What agents can call. Stored, never run."},
        {"name": "Users", "description": "The end users of agents."},
        {"name": "Organizations", "description": "The organization of the key."},
        {"name": "Members", "description": "People who sign in to the console."},
        {"name": "API keys", "description": "Keys that agents and services sign in with."},
        {"name": "Audit", "description": "Who changed what, when and from where."},
        {"name": "Me", "description": "The organization and scopes of this key."},
    ],
}

# --- embeddings ------------------------------------------------------------------------------
ENCODER = env.text("AGENTMEM_ENCODER", "minilm-int8")  # memories/embeddings lists them
ENCODER_THREADS = env.integer("AGENTMEM_ENCODER_THREADS", 0, documented="0: one per core")
MODELS_DIR = Path(
    env.text(
        "AGENTMEM_MODELS_DIR",
        str(BASE_DIR / "memories" / "embeddings" / "artefacts"),
        documented="`memories/embeddings/artefacts`",
    )
).resolve()
OPENAI_ENCODER = {
    "URL": env.url("AGENTMEM_OPENAI_URL", "https://api.openai.com/v1"),
    "KEY": env.text("AGENTMEM_OPENAI_KEY"),
    "MODEL": env.text("AGENTMEM_OPENAI_MODEL", "text-embedding-3-small"),
    # Sent only if set: not every server can shorten its vectors.
    "DIMENSIONS": env.integer("AGENTMEM_OPENAI_DIMENSIONS", 0, documented="0: the model's own"),
    "NAME": env.text(
        "AGENTMEM_OPENAI_NAME", documented="`openai:MODEL`, `openai:MODEL@DIMENSIONS`"
    ),
    "BATCH_SIZE": env.integer("AGENTMEM_OPENAI_BATCH_SIZE", 64, minimum=1),
    "TIMEOUT_S": env.number("AGENTMEM_OPENAI_TIMEOUT_S", 30),
    "RETRIES": env.integer("AGENTMEM_OPENAI_RETRIES", 3),
}
SENTENCE_TRANSFORMERS_MODEL = env.text("AGENTMEM_SENTENCE_TRANSFORMERS_MODEL", "all-MiniLM-L6-v2")

# --- search ----------------------------------------------------------------------------------
# Seconds between writes of access_count and last_accessed, which count search hits; 0: never.
FOUND_EVERY_S = env.number("AGENTMEM_FOUND_EVERY_S", 1.0)

# --- logs ------------------------------------------------------------------------------------
# `serve` sets INFO. Libraries log warnings and errors only: Django's DEBUG lines contain statements
# with their values.
LOG_LEVEL = env.one_of(
    "AGENTMEM_LOG_LEVEL",
    "WARNING",
    ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
    documented="WARNING; INFO under `serve`",
)
ACCESS_LOG = env.flag("AGENTMEM_ACCESS_LOG", True)
_OWN_LOGGERS = ("agentmem", "agentmem_site", "accounts", "memories", "sessions")
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "agentmem_site.logs.JsonFormatter"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
    "loggers": {
        **{name: {"level": LOG_LEVEL} for name in _OWN_LOGGERS},
        "agentmem.access": {"level": "INFO"},
        # A refused request has its line in the access log and is no failure.
        "django.request": {"level": "ERROR"},
    },
}
