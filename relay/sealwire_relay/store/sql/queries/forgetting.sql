-- name: acked
-- Note what devices have said of their positions in streams; the last word counts. Of strangers, and of streams that
-- are not there, nothing is noted. In the order of their keys, so that two relays never wait for each other.
INSERT INTO sealwire.ack AS a (vault_id, stream, author, term, term_id, seq, seen)
SELECT w.vault_id, w.stream, m.author, w.term, w.term_id, w.seq, now()
FROM unnest($1::uuid[], $2::bigint[], $3::bit(256)[], $4::bigint[], $5::bigint[], $6::bigint[])
    AS w (vault_id, stream, device, term, term_id, seq)
JOIN sealwire.member m ON m.vault_id = w.vault_id AND m.device = w.device
JOIN sealwire.stream s ON s.vault_id = w.vault_id AND s.stream = w.stream
ORDER BY w.vault_id, w.stream, m.author
ON CONFLICT (vault_id, stream, author) DO UPDATE
SET term = excluded.term, term_id = excluded.term_id, seq = excluded.seq, seen = excluded.seen

-- name: tombstones
-- Streams after a place, in key order, that have tombstones, with all that says how long they must stay, on one
-- snapshot. Without a place, from the beginning. A stream without subscribers has empty arrays of them. The marks of
-- stream 0 say when the vault was moved to this relay.
SELECT s.*, v.marks AS arrived, extract(epoch FROM now())::float8 AS now, a.authors, a.devices, a.roles, a.numbers,
    a.ids, a.seqs, a.seen
FROM (
    SELECT vault_id, stream, kind, term, term_id, head, compacted, floor, tombstones, oldest_tombstone, marks, terms
    FROM sealwire.stream
    WHERE vault_id >= coalesce($1::uuid, '00000000-0000-0000-0000-000000000000')
        AND ($1::uuid IS NULL OR (vault_id, stream) > ($1::uuid, $2::bigint))
        AND tombstones > 0
    ORDER BY vault_id, stream LIMIT $3::bigint
) s
JOIN sealwire.stream v ON v.vault_id = s.vault_id AND v.stream = 0
CROSS JOIN LATERAL (
    SELECT coalesce(array_agg(k.author ORDER BY k.author), '{}') AS authors,
        coalesce(array_agg(m.device ORDER BY k.author), '{}') AS devices,
        coalesce(array_agg(m.role ORDER BY k.author), '{}') AS roles,
        coalesce(array_agg(k.term ORDER BY k.author), '{}') AS numbers,
        coalesce(array_agg(k.term_id ORDER BY k.author), '{}') AS ids,
        coalesce(array_agg(k.seq ORDER BY k.author), '{}') AS seqs,
        coalesce(array_agg(extract(epoch FROM k.seen)::float8 ORDER BY k.author), '{}') AS seen
    FROM sealwire.ack k
    JOIN sealwire.member m ON m.vault_id = k.vault_id AND m.author = k.author
    WHERE k.vault_id = s.vault_id AND k.stream = s.stream
) a
ORDER BY s.vault_id, s.stream

-- name: aged
-- Note how old a stream's records are, and that no tombstone lies before a place; a row comes back iff the log is still
-- the one that this was found in. Their number is that of the compacted part: none are left if that place is beyond it,
-- whatever was counted while somebody else took them out.
UPDATE sealwire.stream
SET marks = $3::bigint[], oldest_tombstone = greatest(oldest_tombstone, $4::bigint),
    tombstones = CASE WHEN greatest(oldest_tombstone, $4::bigint) > compacted THEN 0 ELSE tombstones END
WHERE vault_id = $1 AND stream = $2::bigint AND term = $5::bigint AND term_id = $6::bigint
RETURNING 1

-- name: purge
-- In the place of raise_cleaned_to, where a swap leaves out tombstones; a row comes back iff the log is still the one
-- that was read, and its head where it was: so no loser of theirs was appended meanwhile. Appends that were decided on
-- another floor are refused from then on.
UPDATE sealwire.stream
SET cleaned_to = greatest(cleaned_to, $3::bigint), bytes = greatest(bytes - $6::bigint, 0),
    floor = greatest(floor, $8::bigint), floor_head = $7::bigint, purged = greatest(purged, $9::bigint), tombstones = greatest(tombstones - $10::bigint, 0),
    oldest_tombstone = greatest(oldest_tombstone, $8 + 1)
WHERE vault_id = $1 AND stream = $2::bigint AND head = $7 AND term = $4::bigint AND term_id = $5::bigint
RETURNING 1

-- name: forget
-- Delete what a guarded stream held of a tombstone's tag; what is held of another record stays. After "purge", in its
-- transaction: under the head's lock, as guards are written. One by one, since a list of them may be planned, while
-- little is known of the table, as a look at every row of the stream for every one of the list.
DELETE FROM sealwire.guard
WHERE vault_id = $1 AND stream = $2::bigint AND tag = $3 AND seq = $4::bigint AND tombstone
