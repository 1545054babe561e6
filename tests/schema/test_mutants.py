"""The checks of the catalog can fail: each reports the wall that a mutant breaks.

As the owner, in a transaction that is rolled back.
"""

import pytest
from django.db import connection, models
from django.test.utils import isolate_apps

from accounts.models import Organization
from agentmem_site.checks import database_faults
from agentmem_site.db.roles import APPLICATION
from tests.schema import catalog

BLOCK = "memories_block"
WALL = f"(True, '*', ['{APPLICATION}'], \"{catalog.OF_CONTEXT}\", None)"
OPEN_WALL = WALL.replace("None", "'true'")
ORPHANS = f"(True, 'a', ['{APPLICATION}'], None, '(organization_id IS NULL)')"
MUTANTS = {
    "policy dropped": (
        f"DROP POLICY {BLOCK}_wall ON {BLOCK}",
        [f"{BLOCK}: the policy {WALL} is missing."],
    ),
    "row security off": (
        f"ALTER TABLE {BLOCK} DISABLE ROW LEVEL SECURITY",
        [f"{BLOCK}: row-level security must be enabled."],
    ),
    "row security forced": (
        f"ALTER TABLE {BLOCK} FORCE ROW LEVEL SECURITY",
        [f"{BLOCK}: row-level security must not be forced upon the owner."],
    ),
    "a second, open policy": (
        f"CREATE POLICY open ON {BLOCK} FOR SELECT USING (true)",
        [f"{BLOCK}: the policy (True, 'r', ['-'], 'true', None) is too much."],
    ),
    "a policy that lets in where no context is": (
        f"ALTER POLICY {BLOCK}_wall ON {BLOCK} WITH CHECK (true)",
        [
            f"{BLOCK}: the policy {WALL} is missing.",
            f"{BLOCK}: the policy {OPEN_WALL} is too much.",
        ],
    ),
    "orphans admitted": (
        f"CREATE POLICY o ON {BLOCK} FOR INSERT TO {APPLICATION}"
        " WITH CHECK (organization_id IS NULL)",
        [f"{BLOCK}: the policy {ORPHANS} is too much."],
    ),
    "unique without organization": (
        f"CREATE UNIQUE INDEX twin ON {BLOCK} (external_id)",
        [
            f"{BLOCK}: the unique index twin must begin with organization_id, not external_id.",
            f"{BLOCK}: no model names the index twin.",
        ],
    ),
    "unique with organization last": (
        f"CREATE UNIQUE INDEX twin ON {BLOCK} (external_id, organization_id)",
        [
            f"{BLOCK}: the unique index twin must begin with organization_id, not external_id.",
            f"{BLOCK}: no model names the index twin.",
        ],
    ),
    "index gone": (
        "DROP INDEX memories_block_user",
        [f"{BLOCK}: the index memories_block_user is missing."],
    ),
    "primary key by id alone": (
        f"ALTER TABLE {BLOCK} DROP CONSTRAINT {BLOCK}_pkey CASCADE;"
        f"ALTER TABLE {BLOCK} ADD CONSTRAINT {BLOCK}_pkey PRIMARY KEY (id)",
        [
            f"{BLOCK}: its primary key must be (id, organization_id), not [['id']].",
            "memories_agentblock.block_id must have its foreign key.",
        ],
    ),
    "plain foreign key": (
        "ALTER TABLE accounts_user ADD UNIQUE (organization_id, id); CREATE UNIQUE INDEX u ON"
        f" accounts_user (id); ALTER TABLE {BLOCK} ADD CONSTRAINT plain FOREIGN KEY (user_id)"
        " REFERENCES accounts_user (id)",
        [
            "accounts_user: the unique index u must begin with organization_id, not id.",
            f"{BLOCK}: the foreign key plain must be (.., organization_id)"
            " -> (id, organization_id).",
            f"{BLOCK}: the foreign key plain must be DEFERRABLE INITIALLY IMMEDIATE.",
            "accounts_user: no model names the index accounts_user_organization_id_id_key.",
            "accounts_user: no model names the index u.",
        ],
    ),
    "SET NULL in the database": (
        f"ALTER TABLE {BLOCK} ADD CONSTRAINT nulls FOREIGN KEY (user_id, organization_id)"
        " REFERENCES accounts_user (id, organization_id) ON DELETE SET NULL (user_id) DEFERRABLE",
        [f"{BLOCK}: the foreign key nulls must be NO ACTION or CASCADE on delete."],
    ),
    "deferred foreign key": (
        f"ALTER TABLE {BLOCK} ADD CONSTRAINT late FOREIGN KEY (user_id, organization_id)"
        " REFERENCES accounts_user (id, organization_id) DEFERRABLE INITIALLY DEFERRED",
        [f"{BLOCK}: the foreign key late must be DEFERRABLE INITIALLY IMMEDIATE."],
    ),
    "foreign key to the identity plane": (
        f"ALTER TABLE {BLOCK} ADD CONSTRAINT who FOREIGN KEY (created_by_id)"
        " REFERENCES accounts_member (id)",
        [f"{BLOCK}: the foreign key who must not lead to the identity plane (accounts_member)."],
    ),
    "organization without its foreign key": (
        "DO $$ BEGIN EXECUTE (SELECT 'ALTER TABLE memories_block DROP CONSTRAINT ' || conname"
        " FROM pg_constraint WHERE conrelid = 'memories_block'::regclass AND contype = 'f'"
        " AND confrelid = 'accounts_organization'::regclass); END $$",
        [f"{BLOCK}.organization_id must have its foreign key."],
    ),
    "nullable organization": (
        f"ALTER TABLE {BLOCK} DROP CONSTRAINT {BLOCK}_pkey CASCADE;"
        f"ALTER TABLE {BLOCK} ALTER organization_id DROP NOT NULL",
        [
            f"{BLOCK}.organization_id must be ('uuid', True), not ('uuid', False).",
            f"{BLOCK}: its primary key must be (id, organization_id), not [].",
            "memories_agentblock.block_id must have its foreign key.",
            f"{BLOCK}: the index {BLOCK}_pkey is missing.",
        ],
    ),
    "a column behind the generated one": (
        "ALTER TABLE memories_memory ADD late text",
        [
            "memories_memory: generated columns must be the last:"
            " drop and add them in the migration."
        ],
    ),
    "a common column of another type": (
        f"ALTER TABLE {BLOCK} ALTER created_at TYPE date",
        [f"{BLOCK}.created_at must be ('timestamp with time zone', True), not ('date', True)."],
    ),
    "identity column": (
        f"ALTER TABLE {BLOCK} ADD n bigint GENERATED ALWAYS AS IDENTITY",
        [f"{BLOCK}.n must not take its values from a sequence."],
    ),
    "sequence": (
        f"ALTER TABLE {BLOCK} ADD n bigserial",
        [f"{BLOCK}.n must not take its values from a sequence."],
    ),
    "trigger": (
        f"CREATE TRIGGER t BEFORE UPDATE ON {BLOCK} FOR EACH ROW"
        " EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        [f"{BLOCK} must not have the trigger or rule t."],
    ),
    "leaking view": (
        f"CREATE VIEW leak AS SELECT * FROM {BLOCK}",
        ["The view leak must be WITH (security_invoker = true)."],
    ),
    "audit log granted": (
        f"GRANT UPDATE (action) ON accounts_auditevent TO {APPLICATION}",
        [
            f"accounts_auditevent: {APPLICATION} must not have UPDATE.",
            f"accounts_auditevent: {APPLICATION} must not have DELETE.",
        ],
    ),
    "function for everybody": (
        "GRANT EXECUTE ON FUNCTION agentmem_find_api_key TO PUBLIC",
        ["agentmem_find_api_key() must not be for PUBLIC."],
    ),
    "function without search_path": (
        "ALTER FUNCTION agentmem_find_api_key RESET search_path",
        ["agentmem_find_api_key() must pin its search_path, pg_temp last."],
    ),
    "function not granted": (
        f"REVOKE EXECUTE ON FUNCTION agentmem_find_api_key FROM {APPLICATION}",
        [f"agentmem_find_api_key() must be granted to {APPLICATION}."],
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_catalog_reports(owner, mutant):
    statement, reported = MUTANTS[mutant]
    owner.execute(statement)
    assert catalog.violations(owner) == reported


def test_nothing_is_reported_without_a_mutant(owner):
    assert catalog.violations(owner) == []


# -- roles: they belong to the whole server, so other roles take the place of the application ------


def test_a_superuser_is_reported(owner):
    owner.execute("SELECT rolname FROM pg_roles WHERE rolsuper LIMIT 1")
    (superuser,) = owner.fetchone()
    assert catalog.roles(owner, application=superuser)[:2] == [
        f"{superuser} must not be a superuser.",
        f"{superuser} must not bypass row-level security.",
    ]


def test_an_owner_is_reported(owner):
    name = connection.settings_dict["OWNER"]["USER"]
    assert f"{name} must own nothing." in catalog.roles(owner, application=name)


def test_an_inherited_role_is_reported(owner):
    """pg_monitor inherits pg_read_all_settings on every server."""
    found = catalog.roles(owner, application="pg_monitor", admin="pg_read_all_settings")
    assert found == ["pg_monitor must not inherit pg_read_all_settings."]


# -- models -------------------------------------------------------------------------------------


@isolate_apps("memories")
def test_a_model_without_its_organization_is_reported(owner):
    class Loose(models.Model):
        class Meta:
            app_label = "memories"

    class Plain(models.Model):
        organization = models.ForeignKey(Organization, models.PROTECT, related_name="+")

        class Meta:
            app_label = "memories"

    assert catalog.planes(owner, [Loose, Plain]) == [
        "memories.Loose has no OrganizationKey: a data-plane model must have one.",
        "memories.Plain has no OrganizationKey: a data-plane model must have one.",
        "memories.Plain.organization must be an OrganizationKey.",
    ]


# -- what the server itself refuses to serve from -------------------------------------------------


def open_wall(table: str) -> str:
    return (
        f"The wall of {table} is open: row-level security is off, or the policies are not those "
        "of the migrations."
    )


def test_the_owner_is_refused(owner):
    (fault,) = database_faults()
    tables = "accounts_apikey, accounts_auditevent, accounts_loadpart and"
    assert fault.startswith(f"The role of DATABASE_URL owns {tables}")


@pytest.mark.parametrize(
    "mutant",
    [
        "policy dropped",
        "row security off",
        "a second, open policy",
        "a policy that lets in where no context is",
        "orphans admitted",
    ],
)
def test_an_open_wall_is_refused(owner, mutant):
    owner.execute(MUTANTS[mutant][0])
    assert open_wall(BLOCK) in database_faults()


def test_a_missing_table_is_refused(owner):
    owner.execute(f"ALTER TABLE {BLOCK} RENAME TO elsewhere")
    assert f"There is no {BLOCK}: run `manage.py migrate`." in database_faults()


def test_an_open_audit_log_is_refused(owner):
    owner.execute("DROP POLICY accounts_auditevent_wall_orphans ON accounts_auditevent")
    assert open_wall("accounts_auditevent") in database_faults()
