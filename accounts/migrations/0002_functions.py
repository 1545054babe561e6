"""Functions: ids made in SQL, the look-up of an API key, statistics for a table that grows."""

from django.db import migrations

UUID7 = """
CREATE FUNCTION agentmem_uuid7() RETURNS uuid LANGUAGE sql VOLATILE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
    -- The time replaces the first 48 bits of a random id; two bits turn version 4 into 7.
    SELECT encode(
        set_bit(set_bit(
            overlay(uuid_send(gen_random_uuid())
                PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
                FROM 1 FOR 6),
            52, 1), 53, 1),
        'hex')::uuid
$$
"""

# SECURITY DEFINER: runs as the owner, whom the wall does not bind; it answers for one key alone.
FIND_API_KEY = """
CREATE FUNCTION agentmem_find_api_key(key_hash bytea)
RETURNS TABLE (id uuid, organization_id uuid, name text, scopes text[], last_used_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT k.id, k.organization_id, k.name::text, k.scopes::text[], k.last_used_at
    FROM accounts_apikey k JOIN accounts_organization o ON o.id = k.organization_id
    LEFT JOIN accounts_member m ON m.id = k.member_id
    WHERE k.hash = key_hash AND NOT k.is_deleted AND k.revoked_at IS NULL
      AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp()) AND NOT o.is_deleted
      AND (k.member_id IS NULL OR (m.is_active AND NOT m.is_deleted))
$$;
REVOKE ALL ON FUNCTION agentmem_find_api_key(bytea) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION agentmem_find_api_key(bytea) TO agentmem_app
"""

# Only an owner may ANALYZE; the application needs it while it fills a table that was empty.
ANALYZE_TABLE = """
CREATE FUNCTION agentmem_analyze(target regclass) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    -- Two columns: the sample is taken, and the number of rows told, at a tenth of the cost.
    EXECUTE format('ANALYZE %s (id, organization_id)', target);
END
$$;
REVOKE ALL ON FUNCTION agentmem_analyze(regclass) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION agentmem_analyze(regclass) TO agentmem_app
"""


class Migration(migrations.Migration):
    dependencies = [("accounts", "0001_initial")]

    operations = [
        migrations.RunSQL(UUID7, "DROP FUNCTION agentmem_uuid7()"),
        migrations.RunSQL(FIND_API_KEY, "DROP FUNCTION agentmem_find_api_key(bytea)"),
        migrations.RunSQL(ANALYZE_TABLE, "DROP FUNCTION agentmem_analyze(regclass)"),
    ]
