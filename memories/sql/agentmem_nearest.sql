-- agentmem_nearest(uuid, agentmem_filter, text, halfvec, integer): the ids of the nearest memories by the HNSW index.
--
-- Every other plan is forbidden: misled by the filter, the planner would sort the whole slice.
-- The iterative scan goes on until enough rows pass the filter. Where it gives up
-- (hnsw.max_scan_tuples) fewer rows come, and the caller scans exactly.

-- (Loads the extension, so that its settings are known.)
SELECT '[1]'::halfvec;

CREATE OR REPLACE FUNCTION agentmem_nearest(
    organization uuid, f agentmem_filter, encoder text, vector halfvec, wanted integer)
RETURNS TABLE (id uuid) LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_custom_plan SET jit = off SET max_parallel_workers_per_gather = 0
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET hnsw.ef_search = 160 SET hnsw.iterative_scan = relaxed_order AS $$
BEGIN
    RETURN QUERY
    SELECT m.id FROM agentmem_slice(organization, f) m
    WHERE m.is_indexed AND NOT m.is_deleted AND m.embedding_model = encoder
    ORDER BY m.embedding <=> vector LIMIT wanted;
END
$$;

REVOKE ALL ON FUNCTION agentmem_nearest(uuid, agentmem_filter, text, halfvec, integer) FROM PUBLIC;
