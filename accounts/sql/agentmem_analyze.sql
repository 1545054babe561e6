-- agentmem_analyze(regclass): refreshes the planner's statistics of a table.
--
-- SECURITY DEFINER: only the owner may ANALYZE; the loader needs it while it fills an empty table.

CREATE OR REPLACE FUNCTION agentmem_analyze(target regclass) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    -- Two columns are enough to sample the table and set reltuples, at a tenth of the cost.
    EXECUTE format('ANALYZE %s (id, organization_id)', target);
END
$$;

REVOKE ALL ON FUNCTION agentmem_analyze(regclass) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION agentmem_analyze(regclass) TO agentmem_app;
