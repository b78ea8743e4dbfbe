-- name: append_many
-- Append to many vaults at once; returns the vaults of which a condition failed, and in which nothing was written.
--
-- Why one statement is right while other processes append to the same streams. The statement's snapshot is older
-- than the locks it waits for, so nothing may be decided on the snapshot alone:
--   * "held" and "pushers" lock head and member rows. A row that changed while its lock was awaited comes out of
--     FOR UPDATE as it is now, with "holds" computed on that. Heads are locked in key order, then members in key
--     order (the count makes the second wait for the first), so two appends never wait for each other.
--   * A row that came into being after the snapshot is not found at all: one condition too few holds.
--   * Epoch and key stand in the head row itself, and are as fresh as the head. An epoch of the same number may have
--     another key, where another end of the membership log stands meanwhile. A vault without segments to write
--     sends its stream 0 with expected and new_head null, to be locked for its epoch's sake.
--   * A purge raises a stream's floor without moving its head. What was decided on another floor is refused.
--   * The current term is read on the snapshot. If a newer one was opened since, and something was written under
--     it in this stream, then the head has moved, and the row's own term tells as well. If nothing was, this
--     append comes before that term's first one in this stream, which is all that terms promise.
--   * A stream may have another id of the present term's number: those of a vault that came back (see "begin_anew"), which
--     come with it, and stream 0, which is never written here (see "part_links").
--   * A member is the one that was judged if number, device and role are the same: where other links stand meanwhile,
--     a number may be another device's.
--   * The term's row must be the one that was read (its xmin), should the same term have been restored in place.
--   * What guarded streams hold is written only together with a move of their head, so never by two at once, and a
--     decision made on it holds as long as the head does. A stream that was only decided on comes with its expected
--     head and new_head null: it must hold, and is not written.
--   * What is written is joined by key alone to "accepted" rows. An UPDATE that meets a row newer than the snapshot
--     checks its conditions again on the new one; the key holds on any, and all else was decided under the lock.
-- "whole" divides by zero, and so undoes everything, should a head or a member ever not follow its segments.
WITH wanted AS (
    SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[])
        AS w (vault_id, term, term_id, conditions)
), held AS MATERIALIZED (
    SELECT h.vault_id, h.stream, h.new_head, h.new_top, h.added, h.term, h.term_id, s.head AS start,
        s.head = coalesce(h.expected, s.head) AND s.floor = coalesce(h.floor, s.floor)
            AND s.epoch = h.epoch AND s.key_id = h.key_id
            AND (s.term < h.term OR s.term = h.term AND (s.term_id = h.term_id OR s.stream = 0)) AS holds,
        s.term <> h.term AS term_begins
    FROM unnest($5::uuid[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[],
                $10::bigint[], $11::bigint[], $12::integer[], $13::integer[], $14::bigint[], $15::bigint[])
        AS h (vault_id, stream, expected, new_head, new_top, floor, added, epoch, key_id, term, term_id)
    JOIN sealwire.stream s ON s.vault_id = h.vault_id AND s.stream = h.stream
    ORDER BY s.vault_id, s.stream
    FOR UPDATE OF s
), pushers AS MATERIALIZED (
    SELECT p.vault_id, p.author, p.new_last, p.term,
        m.last_batch = p.expected AND m.device = p.device AND m.role = p.role AS holds
    FROM unnest($16::uuid[], $17::bigint[], $18::bigint[], $19::bigint[], $20::bit(256)[], $21::smallint[],
                $22::bigint[])
        AS p (vault_id, author, expected, new_last, device, role, term)
    JOIN sealwire.member m ON m.vault_id = p.vault_id AND m.author = p.author
    WHERE (SELECT count(*) FROM held) >= 0
    ORDER BY m.vault_id, m.author
    FOR UPDATE OF m
), counted AS (
    SELECT vault_id, CASE WHEN (
            SELECT (r.term, r.term_id) FROM sealwire.relay r WHERE r.xmin = coalesce($43::xid, r.xmin)
        ) = (term, term_id)
        THEN - conditions ELSE - conditions - 1 END AS holding
    FROM wanted
    UNION ALL SELECT vault_id, 1 FROM held WHERE holds
    UNION ALL SELECT vault_id, 1 FROM pushers WHERE holds
), refused AS MATERIALIZED (
    SELECT vault_id FROM counted GROUP BY vault_id HAVING sum(holding) <> 0
), accepted AS MATERIALIZED (
    SELECT * FROM held WHERE new_head IS NOT NULL AND vault_id NOT IN (SELECT vault_id FROM refused)
), accepted_pushers AS MATERIALIZED (
    SELECT * FROM pushers WHERE vault_id NOT IN (SELECT vault_id FROM refused)
), moved AS (
    UPDATE sealwire.stream s
    SET head = a.new_head, top = greatest(s.top, a.new_top), bytes = s.bytes + a.added, written = now(),
        term = a.term, term_id = a.term_id,
        terms = CASE WHEN a.term_begins THEN s.terms || ARRAY[a.term, a.term_id, a.start] ELSE s.terms END
    FROM accepted a WHERE s.vault_id = a.vault_id AND s.stream = a.stream
    RETURNING 1
), counted_on AS (
    UPDATE sealwire.member m
    SET last_batch = a.new_last, last_term = a.term
    FROM accepted_pushers a WHERE m.vault_id = a.vault_id AND m.author = a.author
    RETURNING 1
), stored AS (
    INSERT INTO sealwire.segment (vault_id, stream, last, prev, body)
    SELECT * FROM unnest($23::uuid[], $24::bigint[], $25::bigint[], $26::bigint[], $27::bytea[])
        AS g (vault_id, stream, last, prev, body)
    WHERE vault_id NOT IN (SELECT vault_id FROM refused)
), guarded AS (
    INSERT INTO sealwire.guard AS g (vault_id, stream, tag, version, salt, seq, tombstone, line, epoch)
    SELECT * FROM unnest($28::uuid[], $29::bigint[], $30::uuid[], $31::bigint[], $32::bigint[], $33::bigint[],
                         $34::boolean[], $35::bytea[], $36::integer[])
        AS n (vault_id, stream, tag, version, salt, seq, tombstone, line, epoch)
    WHERE vault_id NOT IN (SELECT vault_id FROM refused)
    ON CONFLICT (vault_id, stream, tag) DO UPDATE
    SET version = excluded.version, salt = excluded.salt, seq = excluded.seq, tombstone = excluded.tombstone,
        line = excluded.line, epoch = excluded.epoch
), answered AS (
    INSERT INTO sealwire.outcome AS o (vault_id, author, slot, batch, digest, answer)
    SELECT * FROM unnest($37::uuid[], $38::bigint[], $39::smallint[], $40::bigint[], $41::bytea[], $42::bytea[])
        AS b (vault_id, author, slot, batch, digest, answer)
    WHERE vault_id NOT IN (SELECT vault_id FROM refused)
    ON CONFLICT (vault_id, author, slot)
    DO UPDATE SET batch = excluded.batch, digest = excluded.digest, answer = excluded.answer
)
SELECT
    ARRAY(SELECT vault_id FROM refused) AS refused,
    1 / ((SELECT count(*) FROM moved) = (SELECT count(*) FROM accepted)
        AND (SELECT count(*) FROM counted_on) = (SELECT count(*) FROM accepted_pushers))::integer AS whole

-- name: append_one
-- Append to one vault; returns whether all conditions held. append_many for one vault, so that a database
-- distributed by vault_id can send the whole statement to where that vault lies.
WITH held AS MATERIALIZED (
    SELECT h.stream, h.new_head, h.new_top, h.added, h.term_id, s.head AS start, s.term <> $2 AS term_begins,
        s.head = coalesce(h.expected, s.head) AND s.floor = coalesce(h.floor, s.floor)
            AND s.epoch = $4 AND s.key_id = $5
            AND (s.term < $2 OR s.term = $2 AND (s.term_id = h.term_id OR s.stream = 0)) AS holds
    FROM unnest($7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[])
        AS h (stream, expected, new_head, new_top, floor, added, term_id)
    JOIN sealwire.stream s ON s.vault_id = $1 AND s.stream = h.stream
    ORDER BY s.stream
    FOR UPDATE OF s
), pushers AS MATERIALIZED (
    SELECT p.author, p.new_last, m.last_batch = p.expected AND m.device = p.device AND m.role = p.role AS holds
    FROM unnest($14::bigint[], $15::bigint[], $16::bigint[], $17::bit(256)[], $18::smallint[])
        AS p (author, expected, new_last, device, role)
    JOIN sealwire.member m ON m.vault_id = $1 AND m.author = p.author
    WHERE (SELECT count(*) FROM held) >= 0
    ORDER BY m.author
    FOR UPDATE OF m
), verdict AS MATERIALIZED (
    SELECT (SELECT count(*) FROM held WHERE holds) + (SELECT count(*) FROM pushers WHERE holds) = $6::bigint
        AND (
            SELECT r.term = $2 AND r.term_id = $3 AND r.xmin = coalesce($36::xid, r.xmin) FROM sealwire.relay r
        ) AS good
), accepted AS MATERIALIZED (
    SELECT held.* FROM held, verdict WHERE good AND new_head IS NOT NULL
), accepted_pushers AS MATERIALIZED (
    SELECT pushers.* FROM pushers, verdict WHERE good
), moved AS (
    UPDATE sealwire.stream s
    SET head = a.new_head, top = greatest(s.top, a.new_top), bytes = s.bytes + a.added, written = now(),
        term = $2, term_id = a.term_id,
        terms = CASE WHEN a.term_begins THEN s.terms || ARRAY[$2, a.term_id, a.start] ELSE s.terms END
    FROM accepted a WHERE s.vault_id = $1 AND s.stream = a.stream
    RETURNING 1
), counted_on AS (
    UPDATE sealwire.member m
    SET last_batch = a.new_last, last_term = $2
    FROM accepted_pushers a WHERE m.vault_id = $1 AND m.author = a.author
    RETURNING 1
), stored AS (
    INSERT INTO sealwire.segment (vault_id, stream, last, prev, body)
    SELECT $1, g.* FROM unnest($19::bigint[], $20::bigint[], $21::bigint[], $22::bytea[])
        AS g (stream, last, prev, body)
    WHERE (SELECT good FROM verdict)
), guarded AS (
    INSERT INTO sealwire.guard AS g (vault_id, stream, tag, version, salt, seq, tombstone, line, epoch)
    SELECT $1, n.* FROM unnest($23::bigint[], $24::uuid[], $25::bigint[], $26::bigint[], $27::bigint[], $28::boolean[],
                            $29::bytea[], $30::integer[])
        AS n (stream, tag, version, salt, seq, tombstone, line, epoch)
    WHERE (SELECT good FROM verdict)
    ON CONFLICT (vault_id, stream, tag) DO UPDATE
    SET version = excluded.version, salt = excluded.salt, seq = excluded.seq, tombstone = excluded.tombstone,
        line = excluded.line, epoch = excluded.epoch
), answered AS (
    INSERT INTO sealwire.outcome AS o (vault_id, author, slot, batch, digest, answer)
    SELECT $1, b.* FROM unnest($31::bigint[], $32::smallint[], $33::bigint[], $34::bytea[], $35::bytea[])
        AS b (author, slot, batch, digest, answer)
    WHERE (SELECT good FROM verdict)
    ON CONFLICT (vault_id, author, slot)
    DO UPDATE SET batch = excluded.batch, digest = excluded.digest, answer = excluded.answer
)
SELECT
    (SELECT good FROM verdict) AS good,
    1 / ((SELECT count(*) FROM moved) = (SELECT count(*) FROM accepted)
        AND (SELECT count(*) FROM counted_on) = (SELECT count(*) FROM accepted_pushers))::integer AS whole
