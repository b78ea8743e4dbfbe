-- name: dirty
-- Streams after a place, in key order, of which enough is not compacted yet, with what their segments amount to.
-- Without a place, from the beginning. The membership log is no stream of records, and is left out.
-- octet_length of a body stored EXTERNAL does not read it.
SELECT s.vault_id, s.stream, s.head, s.compacted, s.term, s.term_id, g.size, g.tail_size, g.segments
FROM (
    SELECT vault_id, stream, head, compacted, term, term_id FROM sealwire.stream
    WHERE vault_id >= coalesce($1::uuid, '00000000-0000-0000-0000-000000000000')
        AND ($1::uuid IS NULL OR (vault_id, stream) > ($1::uuid, $2::bigint))
        AND stream <> 0 AND head - compacted >= $3::bigint
    ORDER BY vault_id, stream LIMIT $4::bigint
) s
CROSS JOIN LATERAL (
    SELECT coalesce(sum(octet_length(body)), 0) AS size,
        coalesce(sum(octet_length(body)) FILTER (WHERE last > s.compacted), 0) AS tail_size,
        count(*) AS segments
    FROM sealwire.segment WHERE vault_id = s.vault_id AND stream = s.stream
) g
ORDER BY s.vault_id, s.stream

-- name: swap_out
-- Delete the segments that end in a part of the log; returns what they were, to be compared with what was read.
-- A swap is the next three statements, in their order and in one transaction that ends in a rollback unless each of
-- them does all that it was asked. They are not one statement, because its parts would run in no order, and a key may
-- be inserted again that was deleted. The part is named by its ends: a join with a list of rows may be planned, while
-- the table is small, as a look at every row of the stream for every one of the list.
-- Of two cleaners with the same rows the second waits here for the first, and then finds less than it read.
DELETE FROM sealwire.segment
WHERE vault_id = $1 AND stream = $2::bigint AND last > $3::bigint AND last <= $4::bigint
RETURNING prev, last, octet_length(body) AS size

-- name: swap_in
-- Put another segment in the place of those deleted.
INSERT INTO sealwire.segment (vault_id, stream, last, prev, body)
VALUES ($1, $2::bigint, $3::bigint, $4::bigint, $5::bytea)

-- name: raise_cleaned_to
-- Note how far records may have been left out, and by how many bytes ($6) the log is smaller now; a row comes back iff the log is still the one that was read.
-- It comes last, so that appends wait for the head's lock no longer than a commit takes. Under that lock the head and
-- its term tell that no history was lost since the rows were read: what is pushed in the place of lost records may
-- have their very size, but comes under another term.
UPDATE sealwire.stream
SET cleaned_to = greatest(cleaned_to, $3::bigint), bytes = greatest(bytes - $6::bigint, 0)
WHERE vault_id = $1 AND stream = $2::bigint AND head >= $3 AND term = $4::bigint AND term_id = $5::bigint
RETURNING 1

-- name: compacted
-- Note how far no loser is left, and what there are of tombstones; a row comes back iff the log is still the one that was
-- compacted. Who knows less than is noted changes nothing.
UPDATE sealwire.stream
SET compacted = greatest(compacted, $3::bigint),
    tombstones = CASE WHEN compacted <= $3 THEN $6::bigint ELSE tombstones END,
    oldest_tombstone = CASE WHEN compacted <= $3 THEN $7::bigint ELSE oldest_tombstone END
WHERE vault_id = $1 AND stream = $2::bigint AND head >= $3 AND term = $4::bigint AND term_id = $5::bigint
RETURNING 1
