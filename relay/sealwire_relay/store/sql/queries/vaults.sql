-- name: create_vault
-- Register a vault with its genesis link and its own quota (0: none); a row comes back iff it was new and the term is
-- current.
WITH made AS (
    INSERT INTO sealwire.stream (vault_id, stream, head, top, floor, floor_head, purged, cleaned_to,
        term, term_id, key_id, epoch, kind, terms, bytes, quota, written)
    SELECT $1::uuid, 0, $2::bigint, 0, 0, 0, 0, 0, $6::bigint, $7::bigint, $3::integer, $4::integer, $5::smallint,
        ARRAY[$6, $7, 0], octet_length($8::bytea), $12::bigint, now()
    WHERE (SELECT r.term = $6 AND r.term_id = $7 AND r.xmin = coalesce($13::xid, r.xmin) FROM sealwire.relay r)
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

-- name: count_vault
-- Count a vault for the registration token that it is made with ($1, which allows $2 in all), within the transaction that
-- makes it and after it; a row comes back iff it was allowed.
-- Who waits for another's count looks again at the row as that has left it.
INSERT INTO sealwire.token AS t (serial, vaults) VALUES ($1::uuid, 1)
ON CONFLICT (serial) DO UPDATE SET vaults = t.vaults + 1 WHERE t.vaults < $2::integer
RETURNING t.vaults

-- name: raise_quota
-- Let a vault store more than its own quota says, or give it one; a row comes back iff it is more.
UPDATE sealwire.stream SET quota = $2::bigint WHERE vault_id = $1 AND stream = 0 AND quota < $2 RETURNING 1

-- name: usage
-- What a vault stores in all its streams, and its own quota; no row if there is no such vault.
SELECT sum(bytes)::bigint AS bytes, max(quota) AS quota FROM sealwire.stream WHERE vault_id = $1 HAVING count(*) > 0

-- name: vaults
-- The next vaults in the order of their ids, with what they store, their own quota, the streams beside the membership log,
-- and when something was stored last (null: before that was noted). Without a place, from the beginning.
SELECT v.vault_id, v.quota, u.bytes, u.streams, nullif(u.written, 'epoch') AS written
FROM (
    SELECT vault_id, quota FROM sealwire.stream
    WHERE vault_id >= coalesce($1::uuid, '00000000-0000-0000-0000-000000000000')
        AND ($1::uuid IS NULL OR vault_id > $1::uuid) AND stream = 0
    ORDER BY vault_id LIMIT $2::bigint
) v
CROSS JOIN LATERAL (
    SELECT sum(bytes)::bigint AS bytes, count(*) - 1 AS streams, max(written) AS written
    FROM sealwire.stream WHERE vault_id = v.vault_id
) u
ORDER BY v.vault_id

-- name: receipt_key
-- The secret by which the relay knows the vaults again that it has lost.
SELECT receipt_key FROM sealwire.relay

-- name: stream_kind
-- The kind of a stream that exists.
SELECT kind FROM sealwire.stream WHERE vault_id = $1 AND stream = $2

-- name: create_stream
-- Create an empty stream in a vault that exists, was not deleted and has less than so many ($4), or leave the one that is
-- there.
-- Stream 0 stays locked meanwhile, so that whoever changes the epoch finds the stream, or it finds the new epoch. No other
-- lock is taken: whoever locks all heads may have the one that is there, and wait for stream 0.
WITH vault AS MATERIALIZED (
    SELECT vault_id, epoch, key_id FROM sealwire.stream WHERE vault_id = $1 AND stream = 0 AND epoch > 0 FOR SHARE
), there AS (
    SELECT count(*) AS streams FROM sealwire.stream WHERE vault_id = $1
)
INSERT INTO sealwire.stream (vault_id, stream, head, top, floor, floor_head, purged, cleaned_to,
    term, term_id, key_id, epoch, kind, terms)
SELECT vault_id, $2::bigint, 0, 0, 0, 0, 0, 0, 0, 0, key_id, epoch, $3::smallint, '{}' FROM vault, there
WHERE there.streams <= $4::bigint
ON CONFLICT (vault_id, stream) DO NOTHING
