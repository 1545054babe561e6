-- agentmem_passes(agentmem_filter, boolean, timestamptz, timestamptz, timestamptz, uuid, uuid, text, text, text, text, real, jsonb): whether a memory with these columns passes a filter.
--
-- LANGUAGE sql and no SET clause: PostgreSQL inlines it, so the planner sees plain conditions on
-- the caller's table and folds away those that the filter leaves out. It takes columns, not a row:
-- on a cluster a shard's row type is another one.

CREATE OR REPLACE FUNCTION agentmem_passes(
    f agentmem_filter, is_deleted boolean, deleted_at timestamptz, created_at timestamptz,
    expires_at timestamptz, agent_id uuid, user_id uuid, session_id text, memory_type text,
    scope text, level text, importance real, metadata jsonb)
RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT ((f).as_of IS NULL AND NOT is_deleted
            OR created_at <= (f).as_of AND (NOT is_deleted OR deleted_at > (f).as_of))
        AND (expires_at IS NULL OR expires_at > coalesce((f).as_of, now()))
        AND ((f).agent_id IS NULL OR agent_id = (f).agent_id
             OR (f).with_common AND agent_id IS NULL)
        AND ((f).user_id IS NULL OR user_id = (f).user_id
             OR (f).with_common AND user_id IS NULL)
        AND ((f).session_id IS NULL OR session_id = (f).session_id)
        AND ((f).memory_types IS NULL OR memory_type = ANY ((f).memory_types))
        AND ((f).scopes IS NULL OR scope = ANY ((f).scopes))
        AND ((f).levels IS NULL OR level = ANY ((f).levels))
        AND ((f).since IS NULL OR created_at >= (f).since)
        AND ((f).until IS NULL OR created_at < (f).until)
        AND ((f).importance_min IS NULL OR importance >= (f).importance_min)
        AND ((f).importance_max IS NULL OR importance <= (f).importance_max)
        AND ((f).metadata IS NULL OR metadata @@ (f).metadata)
$$;

REVOKE ALL ON FUNCTION agentmem_passes(
    agentmem_filter, boolean, timestamptz, timestamptz, timestamptz, uuid, uuid, text, text, text,
    text, real, jsonb)
FROM PUBLIC;
