-- agentmem_find_api_key(bytea): the API key with this SHA-256, if it can be used now.
--
-- SECURITY DEFINER: runs as the owner, who is not subject to row-level security. This look-up
-- comes before the organization is known, and returns one key at most.

CREATE OR REPLACE FUNCTION agentmem_find_api_key(key_hash bytea)
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
GRANT EXECUTE ON FUNCTION agentmem_find_api_key(bytea) TO agentmem_app;
