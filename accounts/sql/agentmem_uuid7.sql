-- agentmem_uuid7(): a new id, UUID version 7.
--
-- No SET clause, so that PostgreSQL can inline it: half the cost of a call.

CREATE OR REPLACE FUNCTION agentmem_uuid7() RETURNS uuid LANGUAGE sql VOLATILE PARALLEL SAFE AS $$
    -- The time replaces the first 48 bits of a random id; two bits turn version 4 into 7.
    SELECT pg_catalog.encode(
        pg_catalog.set_bit(pg_catalog.set_bit(
            pg_catalog.overlay(
                pg_catalog.uuid_send(pg_catalog.gen_random_uuid()),
                pg_catalog.substring(pg_catalog.int8send(
                    (extract(epoch FROM pg_catalog.clock_timestamp()) * 1000)::bigint), 3),
                1, 6),
            52, 1), 53, 1),
        'hex')::uuid
$$;
