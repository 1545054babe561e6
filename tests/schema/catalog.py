"""The rules of the schema, checked in PostgreSQL's catalog: docs/decisions, SCALE_OUT, RELIABILITY.

Each check takes a cursor and returns its violations, one sentence each that names the table and
the rule. What has to obey is derived from the models: a later model is checked without a word.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from django.apps import apps
from django.db import connection, models

from agentmem_site.db.fields import OrganizationKey, TenantForeignKey, tenant_key
from agentmem_site.db.roles import ADMIN, APPLICATION

OUR_APPS = ("accounts", "memories", "agent_sessions")
# Queried before an organization is known, or without one. All other models are data plane.
IDENTITY_PLANE = {"accounts.Organization", "accounts.Member", "accounts.AuditEvent"}
ORGANIZATIONS = "accounts_organization"

COMMON_COLUMNS = {  # name: (type, is NOT NULL)
    "id": ("uuid", True),
    "organization_id": ("uuid", True),
    "metadata": ("jsonb", True),
    "created_at": ("timestamp with time zone", True),
    "updated_at": ("timestamp with time zone", True),
    "created_by_id": ("uuid", False),
    "last_updated_by_id": ("uuid", False),
    "is_deleted": ("boolean", True),
    "deleted_at": ("timestamp with time zone", False),
}
OF_CONTEXT = (
    "(organization_id = (NULLIF(current_setting('app.organization_id'::text, true), "
    "''::text))::uuid)"
)


def our_models() -> list[type[models.Model]]:
    return [m for label in OUR_APPS for m in apps.get_app_config(label).get_models(True)]


def data_plane() -> dict[str, type[models.Model]]:
    """The data-plane models by table."""
    return {m._meta.db_table: m for m in apps.get_models() if tenant_key(m)}


def walled() -> dict[str, type[models.Model]]:
    """The models behind a wall by table: the data plane, and the audit log."""
    return {
        m._meta.db_table: m
        for m in apps.get_models()
        if any(isinstance(f, OrganizationKey) for f in m._meta.local_fields)
    }


def _fetch(cursor: Any, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    cursor.execute(statement, parameters or None)
    return list(cursor.fetchall())


def _by_table(rows: Iterable[tuple[Any, ...]]) -> dict[str, list[tuple[Any, ...]]]:
    grouped = defaultdict(list)
    for table, *rest in rows:
        grouped[table].append(tuple(rest))
    return grouped


# -- models -------------------------------------------------------------------------------------


def planes(cursor: Any, candidates: Iterable[type[models.Model]] | None = None) -> list[str]:
    """Each model of ours has a plane, and holds its organization in an OrganizationKey."""
    faults = []
    for model in our_models() if candidates is None else candidates:
        label = model._meta.label
        if tenant_key(model) is None and label not in IDENTITY_PLANE:
            faults.append(f"{label} has no OrganizationKey: a data-plane model must have one.")
        for field in model._meta.local_fields:
            is_reference = isinstance(field, models.ForeignKey)
            if not is_reference or label == "accounts.Member":
                continue
            target = field.related_model._meta
            if target.db_table == ORGANIZATIONS and not isinstance(field, OrganizationKey):
                faults.append(f"{label}.{field.name} must be an OrganizationKey.")
            if tenant_key(field.related_model) and not isinstance(field, TenantForeignKey):
                faults.append(f"{label}.{field.name} must be a TenantForeignKey.")
        faults += [
            f"{label}.{field.name} needs an explicit model between: it must carry organization."
            for field in model._meta.local_many_to_many
            if tenant_key(field.remote_field.through) is None
        ]
    return faults


# -- tables -------------------------------------------------------------------------------------


def columns(cursor: Any) -> list[str]:
    """id, organization_id, then plain ones, generated last; the common ones as SPEC says."""
    faults = []
    of_table = _by_table(
        _fetch(
            cursor,
            "SELECT c.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod),"
            " a.attnotnull, a.attgenerated <> ''"
            " FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid"
            " WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY(%s)"
            " AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
            list(data_plane()),
        )
    )
    for table in data_plane():
        present = {name: (kind, not_null) for _, name, kind, not_null, _ in of_table[table]}
        places = {name: number for number, name, *_ in of_table[table]}
        for name, wanted in COMMON_COLUMNS.items():
            if present.get(name) != wanted:
                faults.append(f"{table}.{name} must be {wanted}, not {present.get(name)}.")
        for name, place in (("id", 1), ("organization_id", 2)):
            if places.get(name) != place:
                faults.append(f"{table}.{name} must be column {place}, not {places.get(name)}.")
        generated = [is_generated for *_, is_generated in of_table[table]]
        if generated != sorted(generated):
            faults.append(
                f"{table}: generated columns must be the last: drop and add them in the migration."
            )
    return faults


def sequences(cursor: Any) -> list[str]:
    """Ids are UUIDs of version 7: the data plane has no sequences."""
    identity = _fetch(
        cursor,
        "SELECT c.relname, a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid"
        " WHERE c.relname = ANY(%s) AND (a.attidentity <> '' OR EXISTS ("
        "   SELECT FROM pg_attrdef d WHERE d.adrelid = c.oid AND d.adnum = a.attnum"
        "   AND pg_get_expr(d.adbin, d.adrelid) LIKE '%%nextval%%'))",
        list(data_plane()),
    )
    return [
        f"{table}.{column} must not take its values from a sequence." for table, column in identity
    ]


def triggers(cursor: Any) -> list[str]:
    """Only those of foreign keys: a distributed table cannot have others."""
    rows = _fetch(
        cursor,
        "SELECT tgrelid::regclass::text, tgname FROM pg_trigger"
        " WHERE NOT tgisinternal AND tgrelid::regclass::text = ANY(%s)",
        list(data_plane()),
    )
    rules = _fetch(
        cursor,
        "SELECT ev_class::regclass::text, rulename FROM pg_rewrite"
        " WHERE ev_class::regclass::text = ANY(%s)",
        list(data_plane()),
    )
    return [f"{table} must not have the trigger or rule {name}." for table, name in rows + rules]


# -- keys ---------------------------------------------------------------------------------------


def unique_keys(cursor: Any) -> list[str]:
    """PRIMARY KEY (id, organization_id); every other unique index has the organization first."""
    faults = []
    indexes = _by_table(
        _fetch(
            cursor,
            "SELECT t.relname, i.relname, x.indisprimary, ARRAY("
            "   SELECT a.attname::text FROM unnest(x.indkey) WITH ORDINALITY k (attnum, place)"
            "   LEFT JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = k.attnum"
            "   WHERE k.place <= x.indnkeyatts ORDER BY k.place)"
            " FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid"
            " JOIN pg_class t ON t.oid = x.indrelid"
            " WHERE t.relname = ANY(%s) AND (x.indisunique OR x.indisexclusion)",
            list(data_plane()),
        )
    )
    for table in data_plane():
        primary = [names for _, is_primary, names in indexes[table] if is_primary]
        if primary != [["id", "organization_id"]]:
            faults.append(f"{table}: its primary key must be (id, organization_id), not {primary}.")
        faults += [
            f"{table}: the unique index {index} must begin with organization_id, not {names[0]}."
            for index, is_primary, names in indexes[table]
            if not is_primary and names[0] != "organization_id"
        ]
    return faults


def references(cursor: Any) -> list[str]:
    """Composite among data-plane tables, immediate, never SET NULL; others to organization only."""
    faults = []
    made = _by_table(
        _fetch(
            cursor,
            "SELECT s.relname, k.conname, t.relname,"
            " ARRAY(SELECT attname::text FROM unnest(k.conkey) WITH ORDINALITY c (n, place)"
            "   JOIN pg_attribute ON attrelid = s.oid AND attnum = n ORDER BY place),"
            " ARRAY(SELECT attname::text FROM unnest(k.confkey) WITH ORDINALITY c (n, place)"
            "   JOIN pg_attribute ON attrelid = t.oid AND attnum = n ORDER BY place),"
            " k.condeferrable, k.condeferred, k.confdeltype::text, k.convalidated"
            " FROM pg_constraint k JOIN pg_class s ON s.oid = k.conrelid"
            " JOIN pg_class t ON t.oid = k.confrelid WHERE k.contype = 'f'",
        )
    )
    inside = data_plane()
    for table, keys in made.items():
        for name, target, ours, theirs, deferrable, deferred, on_delete, is_valid in keys:
            key = f"{table}: the foreign key {name}"
            if target in inside:
                if table not in inside:
                    faults.append(f"{key} must not lead into the data plane.")
                    continue
                if ours[1:] != ["organization_id"] or theirs != ["id", "organization_id"]:
                    faults.append(f"{key} must be (.., organization_id) -> (id, organization_id).")
                if not deferrable or deferred:
                    faults.append(f"{key} must be DEFERRABLE INITIALLY IMMEDIATE.")
                if on_delete not in "ac":
                    faults.append(f"{key} must be NO ACTION or CASCADE on delete.")
            elif table in walled() and (target, ours) != (ORGANIZATIONS, ["organization_id"]):
                faults.append(f"{key} must not lead to the identity plane ({target}).")
            if table in walled() and not is_valid:
                faults.append(f"{key} must be valid.")
    for table, model in walled().items():
        present = {(ours[0], target) for _, target, ours, *_ in made[table]}
        faults += [
            f"{table}.{field.column} must have its foreign key."
            for field in model._meta.local_fields
            if isinstance(field, OrganizationKey | TenantForeignKey)
            and (field.column, field.related_model._meta.db_table) not in present
        ]
    return faults


def index_names(cursor: Any) -> list[str]:
    """Each index is declared in the model."""
    faults = []
    present = _by_table(
        _fetch(
            cursor,
            "SELECT t.relname, i.relname FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid"
            " JOIN pg_class t ON t.oid = x.indrelid WHERE t.relname = ANY(%s)",
            list(walled()),
        )
    )
    for table, model in walled().items():
        unique = {c.name for c in model._meta.constraints if isinstance(c, models.UniqueConstraint)}
        named = {index.name for index in model._meta.indexes} | unique | {f"{table}_pkey"}
        names = {name for (name,) in present[table]}
        faults += [f"{table}: no model names the index {name}." for name in sorted(names - named)]
        faults += [f"{table}: the index {name} is missing." for name in sorted(named - names)]
    return faults


# -- walls --------------------------------------------------------------------------------------


def walls(cursor: Any) -> list[str]:
    """Row security is on, not forced, with exactly the policies wanted."""
    faults = []
    tables = {
        name: rest
        for name, *rest in _fetch(
            cursor,
            "SELECT relname, relrowsecurity, relforcerowsecurity FROM pg_class"
            " WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')",
        )
    }
    policies = _by_table(
        _fetch(
            cursor,
            "SELECT c.relname, p.polpermissive, p.polcmd::text, p.polroles::regrole[]::text[],"
            " pg_get_expr(p.polqual, c.oid), pg_get_expr(p.polwithcheck, c.oid)"
            " FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid",
        )
    )
    for table, model in walled().items():
        is_on, is_forced = tables.get(table, (False, False))
        if not is_on:
            faults.append(f"{table}: row-level security must be enabled.")
        if is_forced:
            faults.append(f"{table}: row-level security must not be forced upon the owner.")
        wanted = [
            (True, "*", [APPLICATION], OF_CONTEXT, None),
            (True, "*", [ADMIN], "true", None),
        ]
        if tenant_key(model) is None:  # rows without an organization may be inserted
            wanted.append((True, "a", [APPLICATION], None, "(organization_id IS NULL)"))
        faults += [
            f"{table}: the policy {policy} is missing."
            for policy in wanted
            if policy not in policies[table]
        ]
        faults += [
            f"{table}: the policy {policy} is too much."
            for policy in policies[table]
            if policy not in wanted
        ]
    return faults


def owners(cursor: Any) -> list[str]:
    """Tables belong to the owner, so that the walls bind the application."""
    owner = connection.settings_dict["OWNER"]["USER"]
    return [
        f"{name} must belong to {owner}, not to {holder}."
        for name, holder in _fetch(
            cursor,
            "SELECT relname, pg_get_userbyid(relowner) FROM pg_class"
            " WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm')"
            " ORDER BY 1",
        )
        if holder != owner
    ]


def views(cursor: Any) -> list[str]:
    """A view has its owner's privileges unless it is security_invoker."""
    return [
        f"The view {name} must be WITH (security_invoker = true)."
        for (name,) in _fetch(
            cursor,
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
            " AND (relkind = 'm' OR (relkind = 'v' AND NOT"
            "   coalesce(reloptions, '{}') @> ARRAY['security_invoker=true']))",
        )
    ]


def roles(cursor: Any, application: str = APPLICATION, admin: str = ADMIN) -> list[str]:
    """The application is an ordinary role that owns nothing and does not inherit the admin role."""
    ((is_superuser, bypasses, creates, inherits, may_set, admin_bypasses),) = _fetch(
        cursor,
        "SELECT a.rolsuper, a.rolbypassrls, a.rolcreaterole OR a.rolcreatedb OR a.rolreplication,"
        " pg_has_role(a.oid, b.oid, 'USAGE'), pg_has_role(a.oid, b.oid, 'SET'),"
        " b.rolsuper OR b.rolbypassrls OR b.rolcanlogin"
        " FROM pg_roles a, pg_roles b WHERE a.rolname = %s AND b.rolname = %s",
        application,
        admin,
    )
    owns = _fetch(
        cursor,
        "SELECT relname::text FROM pg_class WHERE pg_get_userbyid(relowner) = %s"
        " AND relpersistence <> 't'"
        " UNION ALL SELECT proname::text FROM pg_proc WHERE pg_get_userbyid(proowner) = %s"
        " UNION ALL SELECT nspname::text FROM pg_namespace WHERE pg_get_userbyid(nspowner) = %s"
        "   AND nspname !~ '^pg_(toast_)?temp'"
        " UNION ALL SELECT datname::text FROM pg_database WHERE pg_get_userbyid(datdba) = %s",
        *[application] * 4,
    )
    faults = {
        f"{application} must not be a superuser.": is_superuser,
        f"{application} must not bypass row-level security.": bypasses,
        f"{application} must not make roles or databases, or replicate.": creates,
        f"{application} must not inherit {admin}.": inherits,
        f"{application} must be able to SET ROLE {admin}.": not may_set,
        f"{admin} must be an ordinary role that nobody signs in as.": admin_bypasses,
        f"{application} must own nothing.": bool(owns),
    }
    return [fault for fault, is_so in faults.items() if is_so]


def append_only(cursor: Any) -> list[str]:
    """Only the owner may update or delete rows of an append-only table."""
    tables = [m._meta.db_table for m in our_models() if getattr(m, "is_append_only", False)]
    return [
        f"{table}: {role} must not have {right}."
        for table, role, right in _fetch(
            cursor,
            "SELECT t, r, p FROM unnest(%s::text[]) t, unnest(%s::text[]) r,"
            " unnest(ARRAY['UPDATE', 'DELETE']) p"
            " WHERE has_table_privilege(r, t, p) OR has_any_column_privilege("
            "   r, t, CASE p WHEN 'DELETE' THEN 'UPDATE' ELSE p END)",
            tables,
            [APPLICATION, ADMIN],
        )
    ]


def functions(cursor: Any) -> list[str]:
    """Functions that run as the owner set search_path, and only the application may call them."""
    owner = connection.settings_dict["OWNER"]["USER"]
    faults = []
    for name, holder, config, is_public, is_granted in _fetch(
        cursor,
        "SELECT p.proname, pg_get_userbyid(p.proowner), coalesce(p.proconfig, '{}'),"
        " EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a"
        "   WHERE a.grantee = 0 AND a.privilege_type = 'EXECUTE'),"
        " has_function_privilege(%s, p.oid, 'EXECUTE')"
        " FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace AND p.prosecdef",
        APPLICATION,
    ):
        if holder != owner:
            faults.append(f"{name}() must belong to {owner}, not to {holder}.")
        if "search_path=pg_catalog, public, pg_temp" not in config:
            faults.append(f"{name}() must pin its search_path, pg_temp last.")
        if is_public:
            faults.append(f"{name}() must not be for PUBLIC.")
        if not is_granted:
            faults.append(f"{name}() must be granted to {APPLICATION}.")
    return faults


CHECKS: list[Callable[[Any], list[str]]] = [
    planes,
    columns,
    sequences,
    triggers,
    unique_keys,
    references,
    index_names,
    walls,
    owners,
    views,
    roles,
    append_only,
    functions,
]


def violations(cursor: Any) -> list[str]:
    """Everything that is wrong with this database."""
    return [violation for check in CHECKS for violation in check(cursor)]
