-- agentmem_slice(uuid, agentmem_filter): the organization's memories that pass a filter.
--
-- LANGUAGE sql and no SET clause: PostgreSQL inlines it, so the planner sees the plain table and
-- folds away the conditions that are not asked for.

CREATE OR REPLACE FUNCTION agentmem_slice(organization uuid, f agentmem_filter)
RETURNS SETOF memories_memory LANGUAGE sql STABLE AS $$
    SELECT m.* FROM memories_memory m
    WHERE m.organization_id = organization
      AND ((f).as_of IS NULL AND NOT m.is_deleted
           OR m.created_at <= (f).as_of AND (NOT m.is_deleted OR m.deleted_at > (f).as_of))
      AND (m.expires_at IS NULL OR m.expires_at > coalesce((f).as_of, now()))
      AND ((f).agent_id IS NULL OR m.agent_id = (f).agent_id
           OR (f).with_common AND m.agent_id IS NULL)
      AND ((f).user_id IS NULL OR m.user_id = (f).user_id
           OR (f).with_common AND m.user_id IS NULL)
      AND ((f).session_id IS NULL OR m.session_id = (f).session_id)
      AND ((f).memory_types IS NULL OR m.memory_type = ANY ((f).memory_types))
      AND ((f).scopes IS NULL OR m.scope = ANY ((f).scopes))
      AND ((f).levels IS NULL OR m.level = ANY ((f).levels))
      AND ((f).since IS NULL OR m.created_at >= (f).since)
      AND ((f).until IS NULL OR m.created_at < (f).until)
      AND ((f).importance_min IS NULL OR m.importance >= (f).importance_min)
      AND ((f).importance_max IS NULL OR m.importance <= (f).importance_max)
      AND ((f).metadata IS NULL OR m.metadata @@ (f).metadata)
$$;

REVOKE ALL ON FUNCTION agentmem_slice(uuid, agentmem_filter) FROM PUBLIC;
