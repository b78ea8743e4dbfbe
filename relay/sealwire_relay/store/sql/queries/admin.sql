-- name: add_admin_token
-- Keep an admin token's hash under a name; a row comes back iff there is none of that name, not even a revoked one.
INSERT INTO sealwire.admin_token (name, hash, created) VALUES ($1, $2::bit(256), now())
ON CONFLICT (name) DO NOTHING RETURNING 1

-- name: revoke_admin_token
-- A token is of no use from now on; a row comes back iff it was until now.
UPDATE sealwire.admin_token SET revoked = now() WHERE name = $1 AND revoked IS NULL RETURNING 1

-- name: admin_tokens
-- All tokens there ever were, by name.
SELECT name, hash, created, revoked FROM sealwire.admin_token ORDER BY name

-- name: add_audit
-- Write down what was asked, in order, each with the name of the token whose hash was shown; of more than so many ($6) the
-- oldest go. Two that write at once take the same numbers, and the second fails.
WITH last AS (
    SELECT coalesce(max(number), 0) AS number FROM sealwire.audit
), asked AS (
    INSERT INTO sealwire.audit (number, at, token, address, asked, verdict)
    SELECT l.number + w.place, to_timestamp(w.at), coalesce(t.name, ''), w.address, w.asked, w.verdict
    FROM last l
    CROSS JOIN unnest($1::float8[], $2::bit(256)[], $3::varchar[], $4::varchar[], $5::varchar[]) WITH ORDINALITY
        AS w (at, hash, address, asked, verdict, place)
    LEFT JOIN sealwire.admin_token t ON t.hash = w.hash
    RETURNING number
)
DELETE FROM sealwire.audit WHERE number <= (SELECT max(number) FROM asked) - $6::bigint

-- name: audit
-- What was asked last, the newest first.
SELECT at, token, address, asked, verdict FROM sealwire.audit ORDER BY number DESC LIMIT $1::bigint
