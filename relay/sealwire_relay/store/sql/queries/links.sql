-- name: links
-- The segments of a vault's stream 0 behind a head ($2), in order, each with the newest term written in it, on one
-- snapshot; one row without a segment if there are none.
SELECT s.term, s.term_id, g.body
FROM sealwire.stream s
LEFT JOIN sealwire.segment g ON g.vault_id = s.vault_id AND g.stream = s.stream AND g.last > $2::bigint
WHERE s.vault_id = $1 AND s.stream = 0
ORDER BY g.last

-- name: append_link
-- Append a link to a vault's stream 0, with the member it adds and the one it replaces (role 0); a row comes back iff
-- all conditions held, among them that the newest term in the stream is the one ($10, $11) of the log that the link was
-- judged on, with the id of the term that it is written under: the stream's own, if that has the present number. Members are locked after the head, as by appends. A link that begins an epoch is appended after all heads
-- were locked, in one transaction with what it does to them.
-- The head is compared after its lock was got (FOR UPDATE looks again at a row that changed meanwhile).
WITH held AS MATERIALIZED (
    SELECT vault_id, stream, head + 1 AS seq, term <> $3 AS term_begins,
        CASE WHEN term = $3 THEN term_id ELSE $4 END AS term_id
    FROM sealwire.stream
    WHERE vault_id = $1::uuid AND stream = 0 AND head + 1 = $2::bigint AND term <= $3::bigint
        AND term = coalesce($10::bigint, term) AND term_id = coalesce($11::bigint, term_id)
        AND (SELECT r.term = $3 AND r.term_id = $4::bigint AND r.xmin = coalesce($12::xid, r.xmin)
            FROM sealwire.relay r)
    FOR UPDATE
), moved AS (
    UPDATE sealwire.stream s
    SET head = h.seq, bytes = s.bytes + octet_length($5::bytea), written = now(), term = $3, term_id = h.term_id,
        terms = CASE WHEN h.term_begins THEN s.terms || ARRAY[$3, h.term_id, h.seq - 1] ELSE s.terms END
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
SELECT term_id FROM held

-- name: hold_heads
-- Lock all heads of a vault in key order, as appends do; returns how many there are, and whether it had moved ($2). It
-- begins a transaction that writes
-- an epoch into all of them: whoever appends has either committed before it, or finds that epoch after it.
WITH held AS MATERIALIZED (
    SELECT stream, epoch FROM sealwire.stream WHERE vault_id = $1 ORDER BY stream FOR UPDATE
)
SELECT count(*) AS heads, coalesce(bool_or(stream = 0 AND epoch >= $2::integer), false) AS moved
FROM held

-- name: set_epoch
-- Write an epoch and its key into all heads of a vault, on a snapshot of its own after these were locked; a row comes back
-- iff they are as many as were ($4). A stream that was born while stream 0's lock was awaited has the former epoch, and may
-- have been appended to: it was not locked in its turn, so the transaction is to be undone, and begun again. None is
-- born after that, for lack of a lock on stream 0.
WITH found AS MATERIALIZED (
    SELECT count(*) = $4::bigint AS whole FROM sealwire.stream WHERE vault_id = $1
), moved AS (
    UPDATE sealwire.stream s
    SET epoch = $2::integer, key_id = $3::integer
    FROM found f WHERE s.vault_id = $1 AND f.whole AND (s.epoch <> $2 OR s.key_id <> $3)
)
SELECT 1 FROM found WHERE whole

-- name: end_vault
-- Of a transaction that has locked all heads of a vault and written epoch 0 into them: all streams but stream 0 are gone.
-- Appends wait for a head's lock, and find no row then; so do swaps, which come to nothing without theirs. What they had
-- is left for "clear".
WITH gone AS (
    DELETE FROM sealwire.stream WHERE vault_id = $1::uuid AND stream <> 0
)
INSERT INTO sealwire.ended (vault_id) VALUES ($1) ON CONFLICT DO NOTHING

-- name: clear
-- Delete at most so many rows ($1) of each kind of what is left of a vault that was deleted; returns how many it saw. The one
-- that sees nothing strikes the vault out, and others pass over a vault that somebody is at. Whatever came into being for the
-- vault was committed before its heads were locked, or finds that there are none any more: nothing is added to it.
-- What counts is what was seen, not what was deleted: the snapshot may be older than the lock, and another one have deleted
-- just these rows in between; there may be more.
WITH vault AS MATERIALIZED (
    SELECT vault_id FROM sealwire.ended ORDER BY vault_id LIMIT 1 FOR UPDATE SKIP LOCKED
), segments AS MATERIALIZED (
    SELECT g.ctid AS place FROM sealwire.segment g WHERE g.vault_id = (SELECT vault_id FROM vault) AND g.stream <> 0 LIMIT $1::bigint
), guards AS MATERIALIZED (
    SELECT g.ctid AS place FROM sealwire.guard g WHERE g.vault_id = (SELECT vault_id FROM vault) LIMIT $1::bigint
), outcomes AS MATERIALIZED (
    SELECT o.ctid AS place FROM sealwire.outcome o WHERE o.vault_id = (SELECT vault_id FROM vault) LIMIT $1::bigint
), acks AS MATERIALIZED (
    SELECT a.ctid AS place FROM sealwire.ack a WHERE a.vault_id = (SELECT vault_id FROM vault) LIMIT $1::bigint
), mailboxes AS MATERIALIZED (
    SELECT b.ctid AS place FROM sealwire.mailbox b WHERE b.vault_id = (SELECT vault_id FROM vault) LIMIT $1::bigint
), without_segments AS (
    DELETE FROM sealwire.segment WHERE ctid = ANY (ARRAY(SELECT place FROM segments))
), without_guards AS (
    DELETE FROM sealwire.guard WHERE ctid = ANY (ARRAY(SELECT place FROM guards))
), without_outcomes AS (
    DELETE FROM sealwire.outcome WHERE ctid = ANY (ARRAY(SELECT place FROM outcomes))
), without_acks AS (
    DELETE FROM sealwire.ack WHERE ctid = ANY (ARRAY(SELECT place FROM acks))
), without_mailboxes AS (
    DELETE FROM sealwire.mailbox WHERE ctid = ANY (ARRAY(SELECT place FROM mailboxes))
), counted AS (
    SELECT (SELECT count(*) FROM segments) + (SELECT count(*) FROM guards) + (SELECT count(*) FROM outcomes)
        + (SELECT count(*) FROM acks) + (SELECT count(*) FROM mailboxes) AS found
), done AS (
    DELETE FROM sealwire.ended WHERE vault_id = (SELECT vault_id FROM vault) AND (SELECT found FROM counted) = 0
)
SELECT found FROM counted JOIN vault ON true

-- name: begin_anew
-- Delete all that the streams of a vault hold, but its log. Each goes on from nothing, under the number of a term ($2) with
-- an id of its own ($3), so that positions of before mean nothing in it. What a batch's verdict was stays true, and its
-- number used; the next one may skip some, as under a new term. The heads are locked: nobody's append is under way.
WITH heads AS (
    UPDATE sealwire.stream
    SET head = 0, top = 0, floor = 0, floor_head = 0, purged = 0, cleaned_to = 0, compacted = 0, tombstones = 0,
        oldest_tombstone = 0, marks = '{}', bytes = 0, term = $2::bigint, term_id = $3::bigint, terms = ARRAY[$2, $3, 0]
    WHERE vault_id = $1::uuid AND stream <> 0
), segments AS (
    DELETE FROM sealwire.segment WHERE vault_id = $1 AND stream <> 0
), guards AS (
    DELETE FROM sealwire.guard WHERE vault_id = $1
), acks AS (
    DELETE FROM sealwire.ack WHERE vault_id = $1 AND stream <> 0
)
UPDATE sealwire.member SET last_term = 0 WHERE vault_id = $1

-- name: arrived
-- Note in the marks of stream 0, which has no others, that the vault was moved to this relay now, by the link $2.
UPDATE sealwire.stream SET marks = ARRAY[$2::bigint, extract(epoch FROM now())::bigint] WHERE vault_id = $1 AND stream = 0

-- name: remove_members
-- Delete these members, and all that was kept of them. The vault's heads are locked: nobody's append is under way.
WITH gone AS (
    DELETE FROM sealwire.member WHERE vault_id = $1::uuid AND author = ANY ($2::bigint[])
), unanswered AS (
    DELETE FROM sealwire.outcome WHERE vault_id = $1 AND author = ANY ($2)
)
DELETE FROM sealwire.ack WHERE vault_id = $1 AND author = ANY ($2)

-- name: members
-- The devices of the members of vaults.
SELECT vault_id, device FROM sealwire.member WHERE vault_id = ANY ($1::uuid[])

-- name: part_links
-- Of a transaction that puts links in the place of those behind a head of stream 0 ($6), so that all of them amount to so
-- many bytes ($10), after all heads were locked; a row comes back iff the stream is as it was read and the term is
-- current. From there on it has the present number under
-- another id ($7); terms that began later have no extent any more.
-- It locks all members in key order, as appends do after their heads; so the statements after it, each on a snapshot of
-- its own, find all that others have committed, and nobody's append is under way.
WITH held AS MATERIALIZED (
    SELECT vault_id, stream,
        ARRAY(
            SELECT CASE WHEN t.place % 3 = 0 THEN least(t.value, $6::bigint) ELSE t.value END
            FROM unnest(terms) WITH ORDINALITY AS t (value, place) ORDER BY t.place
        ) || ARRAY[$8::bigint, $7::bigint, $6] AS terms
    FROM sealwire.stream
    WHERE vault_id = $1::uuid AND stream = 0 AND head = $2::bigint AND term = $3::bigint AND term_id = $4::bigint
        AND term <= $8
        AND (SELECT r.term = $8 AND r.term_id = $9::bigint AND r.xmin = coalesce($11::xid, r.xmin)
            FROM sealwire.relay r)
    FOR UPDATE
), members AS MATERIALIZED (
    SELECT m.author FROM held h JOIN sealwire.member m ON m.vault_id = h.vault_id ORDER BY m.author FOR UPDATE OF m
), moved AS (
    UPDATE sealwire.stream s
    SET head = $5::bigint, bytes = $10::bigint, written = now(), term = $8, term_id = $7, terms = h.terms
    FROM held h WHERE s.vault_id = h.vault_id AND s.stream = h.stream
)
SELECT (SELECT count(*) FROM members) FROM held

-- name: drop_links
-- Delete the links behind a head.
DELETE FROM sealwire.segment WHERE vault_id = $1 AND stream = 0 AND last > $2::bigint

-- name: drop_members
-- Delete the members that are not among these (numbers and devices), and all that was kept of them.
WITH gone AS (
    DELETE FROM sealwire.member m
    WHERE m.vault_id = $1::uuid AND NOT EXISTS (
        SELECT FROM unnest($2::bigint[], $3::bit(256)[]) AS n (author, device)
        WHERE n.author = m.author AND n.device = m.device
    )
    RETURNING m.author
), unanswered AS (
    DELETE FROM sealwire.outcome o USING gone g WHERE o.vault_id = $1 AND o.author = g.author
)
DELETE FROM sealwire.ack a USING gone g WHERE a.vault_id = $1 AND a.author = g.author

-- name: put_links
-- Store links, and the members that the log has then: those who are there already have these roles from now on.
WITH stored AS (
    INSERT INTO sealwire.segment (vault_id, stream, last, prev, body)
    SELECT $1::uuid, 0, l.last, l.prev, l.body
    FROM unnest($2::bigint[], $3::bigint[], $4::bytea[]) AS l (prev, last, body)
)
INSERT INTO sealwire.member AS m (vault_id, author, last_batch, last_term, device, role)
SELECT $1, n.author, 0, 0, n.device, n.role
FROM unnest($5::bigint[], $6::bit(256)[], $7::smallint[]) AS n (author, device, role)
ON CONFLICT (vault_id, author) DO UPDATE SET role = excluded.role WHERE m.role <> excluded.role
