-- agentmem_nearest(uuid, agentmem_filter, text, halfvec, integer): the ids of the nearest memories by the HNSW index.
--
-- Every other plan is disabled: the planner, misled by the filter, would sort all matching rows.
-- The iterative scan continues until enough rows pass the filter. If it gives up
-- (hnsw.max_scan_tuples) it returns fewer rows, and the caller scans exactly.

-- (Loads the extension, which defines its settings.)
SELECT '[1]'::halfvec;

CREATE OR REPLACE FUNCTION agentmem_nearest(
    organization uuid, f agentmem_filter, encoder text, vector halfvec, wanted integer)
RETURNS TABLE (id uuid) LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_custom_plan SET jit = off SET max_parallel_workers_per_gather = 0
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET hnsw.ef_search = 160 SET hnsw.iterative_scan = relaxed_order AS $$
BEGIN
    RETURN QUERY
    SELECT m.id FROM memories_memory m
    WHERE m.organization_id = organization AND agentmem_passes(
            f, m.is_deleted, m.deleted_at, m.created_at, m.expires_at, m.agent_id, m.user_id,
            m.session_id, m.memory_type, m.scope, m.level, m.importance, m.metadata)
        AND m.is_indexed AND NOT m.is_deleted AND m.embedding_model = encoder
    ORDER BY m.embedding <=> vector LIMIT wanted;
END
$$;

REVOKE ALL ON FUNCTION agentmem_nearest(uuid, agentmem_filter, text, halfvec, integer) FROM PUBLIC;
