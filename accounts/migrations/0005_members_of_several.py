"""A person may be a member of several organizations; a member's key tells the role."""

from importlib import import_module

from django.db import migrations, models

# SECURITY DEFINER: runs as the owner, whom the wall does not bind; it answers for one key alone.
FIND_API_KEY = """
DROP FUNCTION agentmem_find_api_key(bytea);
CREATE FUNCTION agentmem_find_api_key(key_hash bytea)
RETURNS TABLE (
    id uuid, organization_id uuid, name text, scopes text[], last_used_at timestamptz, role text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT k.id, k.organization_id, k.name::text, k.scopes::text[], k.last_used_at, m.role::text
    FROM accounts_apikey k JOIN accounts_organization o ON o.id = k.organization_id
    LEFT JOIN accounts_member m ON m.id = k.member_id AND m.organization_id = k.organization_id
    WHERE k.hash = key_hash AND NOT k.is_deleted AND k.revoked_at IS NULL
      AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp()) AND NOT o.is_deleted
      AND (k.member_id IS NULL OR (m.is_active AND NOT m.is_deleted))
$$;
REVOKE ALL ON FUNCTION agentmem_find_api_key(bytea) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION agentmem_find_api_key(bytea) TO agentmem_app
"""
BEFORE = (
    "DROP FUNCTION agentmem_find_api_key(bytea);"
    + import_module("accounts.migrations.0002_functions").FIND_API_KEY
)


class Migration(migrations.Migration):
    dependencies = [("accounts", "0004_loads")]

    operations = [
        migrations.AlterField("member", "email", models.EmailField(max_length=254)),
        migrations.AddIndex("member", models.Index(fields=["email"], name="accounts_member_email")),
        migrations.AddConstraint(
            "member",
            models.UniqueConstraint(
                fields=("organization", "email"), name="accounts_member_email_unique"
            ),
        ),
        migrations.AddConstraint(
            "member",
            models.UniqueConstraint(
                condition=models.Q(("organization__isnull", True)),
                fields=("email",),
                name="accounts_member_platform_email_unique",
                violation_error_message=("There is a platform superuser with this email already."),
            ),
        ),
        migrations.RunSQL(FIND_API_KEY, BEFORE),
    ]
