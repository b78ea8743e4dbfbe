-- name: create_vault
-- Register a vault with its genesis link; a row comes back iff it was new and the term is current.
WITH made AS (
    INSERT INTO sealwire.stream (vault_id, stream, head, top, floor, floor_head, purged, cleaned_to,
        term, term_id, key_id, epoch, kind, terms)
    SELECT $1::uuid, 0, $2::bigint, 0, 0, 0, 0, 0, $6::bigint, $7::bigint, $3::integer, $4::integer, $5::smallint,
        ARRAY[$6, $7, 0]
    WHERE (SELECT r.term = $6 AND r.term_id = $7 AND r.xmin = coalesce($12::xid, r.xmin) FROM sealwire.relay r)
    ON CONFLICT (vault_id, stream) DO NOTHING
    RETURNING vault_id, stream, head
), stored AS (
    INSERT INTO sealwire.segment (vault_id, stream, last, prev, body)
    SELECT vault_id, stream, head, head - 1, $8::bytea FROM made
), joined AS (
    INSERT INTO sealwire.member (vault_id, author, last_batch, last_term, device, role)
    SELECT vault_id, $9::bigint, 0, 0, $10::bit(256), $11::smallint FROM made WHERE $9 IS NOT NULL
)
SELECT 1 FROM made

-- name: append_link
-- Append a link to a vault's stream 0, with the member it adds and the one it replaces (role 0); a row comes back iff
-- all conditions held. Members are locked after the head, as by appends.
-- The head is compared after its lock was got (FOR UPDATE looks again at a row that changed meanwhile).
WITH held AS MATERIALIZED (
    SELECT vault_id, stream, head + 1 AS seq, term <> $3 AS term_begins
    FROM sealwire.stream
    WHERE vault_id = $1::uuid AND stream = 0 AND head + 1 = $2::bigint
        AND (term < $3::bigint OR term = $3 AND term_id = $4::bigint)
        AND (SELECT r.term = $3 AND r.term_id = $4 AND r.xmin = coalesce($10::xid, r.xmin) FROM sealwire.relay r)
    FOR UPDATE
), moved AS (
    UPDATE sealwire.stream s
    SET head = h.seq, term = $3, term_id = $4,
        terms = CASE WHEN h.term_begins THEN s.terms || ARRAY[$3, $4, h.seq - 1] ELSE s.terms END
    FROM held h WHERE s.vault_id = h.vault_id AND s.stream = h.stream
), stored AS (
    INSERT INTO sealwire.segment (vault_id, stream, last, prev, body)
    SELECT vault_id, stream, seq, seq - 1, $5::bytea FROM held
), joined AS (
    INSERT INTO sealwire.member (vault_id, author, last_batch, last_term, device, role)
    SELECT vault_id, $6::bigint, 0, 0, $7::bit(256), $8::smallint FROM held WHERE $6 IS NOT NULL
), replaced AS (
    UPDATE sealwire.member m SET role = 0 FROM held h WHERE m.vault_id = h.vault_id AND m.author = $9::bigint
)
SELECT 1 FROM held

-- name: links
-- The segments of a vault's stream 0, in order.
SELECT body FROM sealwire.segment WHERE vault_id = $1 AND stream = 0 ORDER BY last

-- name: stream_kind
-- The kind of a stream that exists.
SELECT kind FROM sealwire.stream WHERE vault_id = $1 AND stream = $2

-- name: create_stream
-- Create an empty stream in a vault that exists, or leave the one that is there; returns its kind.
-- Stream 0 stays locked meanwhile: whoever changes the epoch locks it first, so no stream is born with an old one.
WITH vault AS MATERIALIZED (
    SELECT vault_id, epoch, key_id FROM sealwire.stream WHERE vault_id = $1 AND stream = 0 FOR SHARE
)
INSERT INTO sealwire.stream AS s (vault_id, stream, head, top, floor, floor_head, purged, cleaned_to,
    term, term_id, key_id, epoch, kind, terms)
SELECT vault_id, $2::bigint, 0, 0, 0, 0, 0, 0, 0, 0, key_id, epoch, $3::smallint, '{}' FROM vault
ON CONFLICT (vault_id, stream) DO UPDATE SET kind = s.kind
RETURNING kind
