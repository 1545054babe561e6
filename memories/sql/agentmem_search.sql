-- agentmem_search(uuid, text, text, agentmem_filter, text, halfvec, text, halfvec, real[], real, integer, integer): ranks an organization's memories for a query.
--
-- Row-level security keeps full-text search from using its index (@@ is not leakproof), so this
-- runs as the owner (SECURITY DEFINER) and refuses an organization that is not the context's.
-- Up to `exact_rows` rows are ranked exactly, more of them (is_large) through the indexes.
-- Why it is built this way: docs/decisions/0006.

CREATE OR REPLACE FUNCTION agentmem_search(
    organization uuid, query text, language text, f agentmem_filter,
    encoder text, vector halfvec, other_encoder text, other_vector halfvec,
    weights real[], half_life_days real, wanted integer, exact_rows integer)
RETURNS TABLE (
    id uuid, score float8, dense float8, lexical float8, recency float8, importance float8,
    similarity float8, matched text[], encoders_elsewhere text[])
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
SET plan_cache_mode = force_custom_plan SET jit = off SET max_parallel_workers_per_gather = 0
SET work_mem = '64MB' AS $$
#variable_conflict use_column
DECLARE
    nearest CONSTANT integer := greatest(100, 2 * wanted);
    -- If large: how common a term is, is estimated from the organization's newest rows, and rows
    -- with a rare term are candidates.
    sampled CONSTANT integer := 500;
    rare CONSTANT float8 := 0.01;
    rows_with_terms CONSTANT integer := 4000;
    -- BM25 (k1 0.9, b 0.4) needs the term frequency. ts_rank of a single term, with equal weights,
    -- is (1 + 1/4 + .. + 1/tf^2) / 1.6449: these are the thresholds for tf = 2, 3, .. 12.
    tf_steps CONSTANT float8[] := '{0.72951, 0.81395, 0.85785, 0.88491, 0.90328, 0.91658, 0.92666, 0.93457, 0.94093, 0.94617, 0.95055}';
    equal CONSTANT real[] := '{1, 1, 1, 1}';
    most_terms CONSTANT integer := 64;
    most_encoders CONSTANT integer := 32;
    words text[];        -- of the query, one for each of its lexemes
    queries tsquery[];
    any_term tsquery;
    elsewhere text[];    -- other encoders whose vectors the organization has
    is_large boolean;
    is_indexed boolean;
    ids uuid[];          -- if large: the nearest rows
    rare_terms tsquery;  -- if large: the terms by which candidates are found
    idfs float8[];
    usual_len float8;
BEGIN
    IF organization IS DISTINCT FROM nullif(current_setting('app.organization_id', true), '')::uuid
    THEN
        RAISE insufficient_privilege USING MESSAGE = 'The organization is not the one at hand.';
    END IF;
    IF query <> '' THEN
        -- (The parser returns a compound, state-of-the-art, and its parts: a lexeme's word is the
        -- shortest token that contains it. Of a long query only the first lexemes count.)
        SELECT array_agg(t.word ORDER BY t.place, t.lexeme),
            array_agg(t.quoted::tsquery ORDER BY t.place, t.lexeme)
        INTO words, queries
        FROM (
            SELECT DISTINCT ON (l.lexeme) l.lexeme, p.token AS word, p.place,
                '''' || replace(replace(l.lexeme, '\', '\\'), '''', '''''') || '''' AS quoted
            FROM ts_parse('default', query) WITH ORDINALITY p (kind, token, place),
                unnest(tsvector_to_array(to_tsvector(language::regconfig, p.token))) l (lexeme)
            ORDER BY l.lexeme, length(p.token), p.place
        ) t;
        words := words[:most_terms];
        queries := queries[:most_terms];
        SELECT string_agg(q::text, ' | ')::tsquery INTO any_term FROM unnest(queries) q;
    END IF;
    IF vector IS NOT NULL THEN
        -- (A loose index scan: there are few names, and many rows of each.)
        WITH RECURSIVE known (name) AS (
            (SELECT m.embedding_model FROM memories_memory m
             WHERE m.organization_id = organization AND m.embedding_state = 'ready'
               AND NOT m.is_deleted
             ORDER BY m.embedding_model LIMIT 1)
            UNION ALL
            SELECT (SELECT m.embedding_model FROM memories_memory m
                    WHERE m.organization_id = organization AND m.embedding_state = 'ready'
                      AND NOT m.is_deleted AND m.embedding_model > known.name
                    ORDER BY m.embedding_model LIMIT 1)
            FROM known WHERE known.name IS NOT NULL)
        SELECT array_agg(k.name) INTO elsewhere
        FROM (SELECT known.name FROM known LIMIT most_encoders) k
        WHERE k.name NOT IN (encoder, '');
    END IF;

    SELECT EXISTS (
        SELECT FROM memories_memory m WHERE m.organization_id = organization
          AND m.embedding_state = 'ready' AND NOT m.is_deleted AND m.embedding_model = encoder
          AND m.is_indexed)
    INTO is_indexed;
    -- (An index-only count: all rows of the organization, deleted ones too.)
    SELECT count(*) > exact_rows INTO is_large
    FROM (SELECT FROM memories_memory m WHERE m.organization_id = organization
          LIMIT exact_rows + 1) o;
    IF is_large AND (NOT is_indexed OR (f).user_id IS NOT NULL OR (f).agent_id IS NOT NULL
                     OR (f).session_id IS NOT NULL) THEN
        -- Other conditions are not worth a count: if few rows match, the HNSW index gives up below,
        -- which takes less time.
        SELECT count(*) > exact_rows INTO is_large
        FROM (SELECT FROM memories_memory m
              WHERE m.organization_id = organization AND agentmem_passes(
                  f, m.is_deleted, m.deleted_at, m.created_at, m.expires_at, m.agent_id, m.user_id,
                  m.session_id, m.memory_type, m.scope, m.level, m.importance, m.metadata)
              LIMIT exact_rows + 1) s;
    END IF;

    IF is_large AND vector IS NOT NULL THEN
        IF is_indexed THEN
            ids := ARRAY(SELECT n.id FROM agentmem_nearest(
                organization, f, encoder, vector, nearest) n);
        END IF;
        IF other_vector IS NOT NULL THEN
            ids := ids || ARRAY(SELECT n.id FROM agentmem_nearest(
                organization, f, other_encoder, other_vector, nearest) n);
        END IF;
        -- Rows that the index does not hold (yet).
        ids := ids || ARRAY(
            SELECT m.id FROM memories_memory m
            WHERE m.organization_id = organization AND agentmem_passes(
                    f, m.is_deleted, m.deleted_at, m.created_at, m.expires_at, m.agent_id,
                    m.user_id, m.session_id, m.memory_type, m.scope, m.level, m.importance,
                    m.metadata)
              AND m.embedding_state = 'ready' AND m.embedding_model IN (encoder, other_encoder)
              AND (NOT m.is_indexed OR (f).as_of IS NOT NULL AND m.is_deleted)
            ORDER BY CASE m.embedding_model WHEN encoder THEN m.embedding <=> vector
                     ELSE m.embedding <=> other_vector END
            LIMIT nearest);
        IF cardinality(ids) < nearest THEN
            -- The index gave up: few of its rows pass the filter. All matching rows are compared;
            -- rows without a vector come last.
            ids := ARRAY(
                SELECT m.id FROM memories_memory m
                WHERE m.organization_id = organization AND agentmem_passes(
                    f, m.is_deleted, m.deleted_at, m.created_at, m.expires_at, m.agent_id,
                    m.user_id, m.session_id, m.memory_type, m.scope, m.level, m.importance,
                    m.metadata)
                ORDER BY CASE m.embedding_model WHEN encoder THEN m.embedding <=> vector
                         WHEN other_encoder THEN m.embedding <=> other_vector END
                LIMIT nearest);
        END IF;
    END IF;
    IF is_large AND any_term IS NOT NULL THEN
        WITH sample AS MATERIALIZED (
            SELECT m.document, length(m.document) AS len FROM memories_memory m
            WHERE m.organization_id = organization ORDER BY m.created_at DESC LIMIT sampled),
        known AS MATERIALIZED (
            SELECT t.place, t.q, (SELECT count(*) FROM sample s WHERE s.document @@ t.q) AS df
            FROM unnest(queries) WITH ORDINALITY t (q, place))
        SELECT array_agg(ln(1 + (n.rows - k.df + 0.5) / (k.df + 0.5)) ORDER BY k.place), min(n.len),
            string_agg(k.q::text, ' | ') FILTER (
                WHERE k.df <= greatest(rare * n.rows, (SELECT min(l.df) FROM known l)))::tsquery
        INTO idfs, usual_len, rare_terms
        FROM known k, (SELECT count(*)::float8 AS rows, avg(s.len) AS len FROM sample s) n;
    END IF;

    RETURN QUERY
    WITH candidate_row AS NOT MATERIALIZED (
        SELECT m.id, m.created_at, m.importance::float8, length(m.document) AS len,
            CASE WHEN m.document @@ any_term THEN m.document END AS document,
            CASE m.embedding_model WHEN encoder THEN 1 - (m.embedding <=> vector)
                WHEN other_encoder THEN 1 - (m.embedding <=> other_vector) END AS similarity,
            m.document AS searched
        FROM memories_memory m
        WHERE m.organization_id = organization AND agentmem_passes(
            f, m.is_deleted, m.deleted_at, m.created_at, m.expires_at, m.agent_id, m.user_id,
            m.session_id, m.memory_type, m.scope, m.level, m.importance, m.metadata)),
    candidate AS MATERIALIZED (
        SELECT c.* FROM candidate_row c WHERE NOT is_large OR c.id = ANY (ids)
        UNION ALL
        (SELECT c.* FROM candidate_row c
         WHERE is_large AND c.searched @@ rare_terms AND (c.id = ANY (ids)) IS NOT TRUE
         LIMIT rows_with_terms)
        UNION ALL  -- keyword searches: the other terms, if few rows have a rare one
        (SELECT c.* FROM candidate_row c
         WHERE is_large AND vector IS NULL AND c.searched @@ any_term
           AND NOT c.searched @@ rare_terms
         LIMIT rows_with_terms)),
    hit AS MATERIALIZED (
        SELECT c.id, c.len, t.place,
            1 + width_bucket(ts_rank(equal, c.document, t.q)::float8, tf_steps) AS tf
        FROM candidate c, unnest(queries) WITH ORDINALITY t (q, place)
        WHERE c.document IS NOT NULL AND c.document @@ t.q),
    corpus AS MATERIALIZED (
        SELECT coalesce(nullif(usual_len, 0), n.len) AS len,  -- (0: only emoji and stop words)
            coalesce(idfs, ARRAY(
                SELECT ln(1 + (n.rows - d.df + 0.5) / (d.df + 0.5))
                FROM (SELECT p.place, count(h.place) AS df
                      FROM generate_series(1, cardinality(queries)) p (place)
                      LEFT JOIN hit h ON h.place = p.place GROUP BY p.place) d
                ORDER BY d.place)) AS idfs
        FROM (SELECT count(*)::float8 AS rows, avg(c.len)::float8 AS len FROM candidate c) n),
    -- Candidates and hits are combined by GROUP BY: the planner cannot know their sizes, and would
    -- choose a nested loop for a join.
    fused AS MATERIALIZED (
        SELECT r.id, max(r.created_at) AS created_at, max(r.importance) AS importance,
            max(r.similarity) AS similarity, sum(r.bm25) AS bm25
        FROM (
            SELECT c.id, c.created_at, c.importance, c.similarity, NULL::float8 AS bm25
            FROM candidate c
            UNION ALL
            SELECT h.id, NULL, NULL, NULL, corpus.idfs[h.place] * h.tf * 1.9
                / (h.tf + 0.9 * (0.6 + 0.4 * h.len / corpus.len))
            FROM hit h, corpus) r
        GROUP BY r.id),
    best AS MATERIALIZED (
        SELECT greatest(max(b.similarity), 1e-9) AS similarity, greatest(max(b.bm25), 1e-9) AS bm25
        FROM fused b),
    part AS (
        SELECT b.id, b.created_at, b.similarity,
            weights[1] * greatest(coalesce(b.similarity, 0), 0) / best.similarity AS dense,
            weights[2] * coalesce(b.bm25, 0) / best.bm25 AS lexical,
            -- (power() raises an error on underflow: after a thousand half-lives it is 0 anyway.)
            CASE WHEN weights[3] = 0 THEN 0 ELSE weights[3] * power(0.5::float8, least(1000,
                extract(epoch FROM greatest(coalesce((f).as_of, now()) - b.created_at,
                                            interval '0'))::float8 / 86400 / half_life_days))
            END AS recency,
            weights[4] * b.importance AS importance
        FROM fused b, best
        WHERE vector IS NOT NULL OR b.bm25 IS NOT NULL),
    top AS (
        SELECT p.*, p.dense + p.lexical + p.recency + p.importance AS score
        FROM part p ORDER BY score DESC, p.created_at DESC, p.id LIMIT wanted)
    SELECT t.id, t.score, t.dense, t.lexical, t.recency, t.importance, t.similarity,
        ARRAY(SELECT words[q.place] FROM unnest(queries) WITH ORDINALITY q (q, place)
              WHERE m.document @@ q.q GROUP BY words[q.place] ORDER BY min(q.place)),
        elsewhere
    FROM top t JOIN memories_memory m ON m.id = t.id AND m.organization_id = organization
    ORDER BY t.score DESC, t.created_at DESC, t.id;
END
$$;

REVOKE ALL ON FUNCTION agentmem_search(
    uuid, text, text, agentmem_filter, text, halfvec, text, halfvec, real[], real, integer, integer)
FROM PUBLIC;
GRANT EXECUTE ON FUNCTION agentmem_search(
    uuid, text, text, agentmem_filter, text, halfvec, text, halfvec, real[], real, integer, integer)
TO agentmem_app;
