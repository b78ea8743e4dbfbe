-- name: subscription
-- A member's view of a vault and of some of its streams, in the order asked for, on one snapshot.
-- One row for each stream; one row without a stream if none was asked for; no row for a stranger.
SELECT (SELECT r.term FROM sealwire.relay r) AS term, (SELECT r.term_id FROM sealwire.relay r) AS term_id,
    (SELECT r.receipt_key FROM sealwire.relay r) AS receipt_key, v.epoch, v.key_id, m.author, m.role, m.last_batch,
    s.kind, s.head, s.top, s.floor, s.floor_head, s.purged, s.cleaned_to, s.terms
FROM sealwire.stream v
JOIN sealwire.member m ON m.vault_id = $1 AND m.device = $2
LEFT JOIN unnest($3::bigint[]) WITH ORDINALITY AS w (stream, place) ON true
LEFT JOIN sealwire.stream s ON s.vault_id = $1 AND s.stream = w.stream
WHERE v.vault_id = $1 AND v.stream = 0
ORDER BY w.place

-- name: read
-- The segments after a cursor up to a number of bytes and of rows, and at least one, with the stream's state, on
-- one snapshot. One row without a segment if there is none; no row if there is no such stream.
-- octet_length of a body stored EXTERNAL does not read it; only bodies that are returned are read.
SELECT s.term, s.term_id, s.head, s.floor, s.floor_head, s.purged, s.cleaned_to, g.prev, g.last, g.body
FROM sealwire.stream s
LEFT JOIN (
    SELECT prev, last, body, sum(octet_length(body)) OVER (ORDER BY last) AS running,
        row_number() OVER (ORDER BY last) AS place
    FROM (
        SELECT prev, last, body FROM sealwire.segment
        WHERE vault_id = $1 AND stream = $2 AND last > $3
        ORDER BY last LIMIT $5
    ) ahead
) g ON g.running <= $4::bigint OR g.place = 1
WHERE s.vault_id = $1 AND s.stream = $2
ORDER BY g.last

-- name: heads
-- The heads of streams of any vaults, each with the newest term written in it and its place in the question.
SELECT w.place, s.head, s.term, s.term_id
FROM unnest($1::uuid[], $2::bigint[]) WITH ORDINALITY AS w (vault_id, stream, place)
JOIN sealwire.stream s ON s.vault_id = w.vault_id AND s.stream = w.stream

-- name: pusher
-- A member's standing with its batches and the verdicts kept, oldest first, on one snapshot.
SELECT m.author, m.role, m.last_batch, m.last_term, o.batch, o.digest, o.answer
FROM sealwire.member m
LEFT JOIN sealwire.outcome o ON o.vault_id = m.vault_id AND o.author = m.author
WHERE m.vault_id = $1 AND m.device = $2
ORDER BY o.batch

-- name: guards
-- What guarded streams of any vaults hold of tags, each with its place in the question, on one snapshot.
-- LIMIT 1, of rows found by their whole key, says: look each one up. A join would rather read the whole table.
SELECT w.place, g.version, g.salt, g.tombstone, g.seq, g.line, g.epoch
FROM unnest($1::uuid[], $2::bigint[], $3::uuid[]) WITH ORDINALITY AS w (vault_id, stream, tag, place)
CROSS JOIN LATERAL (
    SELECT version, salt, tombstone, seq, line, epoch FROM sealwire.guard
    WHERE vault_id = w.vault_id AND stream = w.stream AND tag = w.tag
    LIMIT 1
) g
