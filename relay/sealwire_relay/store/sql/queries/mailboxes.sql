-- name: sweep_mailboxes
-- Forget the mailboxes that have expired.
DELETE FROM sealwire.mailbox WHERE expires <= now()

-- name: open_mailbox
-- Open a mailbox, or leave one's own as it is; a row comes back iff the inviter may. A vault has less than so many others
-- ($6); the table is small, and has just been swept.
INSERT INTO sealwire.mailbox AS b (mailbox, vault_id, expires, inviter, request, answer)
SELECT $1::uuid, m.vault_id, now() + make_interval(secs => $4::integer), m.device, '', ''
FROM sealwire.member m JOIN sealwire.stream v ON v.vault_id = m.vault_id AND v.stream = 0 AND v.epoch > 0
WHERE m.vault_id = $2 AND m.device = $3::bit(256) AND m.role >= $5::smallint
    AND (SELECT count(*) FROM sealwire.mailbox o WHERE o.vault_id = $2 AND o.mailbox <> $1) < $6::bigint
ON CONFLICT (mailbox) DO UPDATE SET expires = b.expires
WHERE b.vault_id = excluded.vault_id AND b.inviter = excluded.inviter
RETURNING 1

-- name: mailboxes_full
-- Whether an admin's vault has so many mailboxes ($4) that no other may be opened: a row comes back iff it has.
SELECT 1 FROM sealwire.member m
WHERE m.vault_id = $1 AND m.device = $2::bit(256) AND m.role >= $3::smallint
    AND (SELECT count(*) FROM sealwire.mailbox o WHERE o.vault_id = $1) >= $4::bigint

-- name: deposit
-- Leave a request; a row comes back iff the mailbox is there and empty, or the same joiner's. Once answered, the
-- request stays as it was.
UPDATE sealwire.mailbox
SET joiner = $2, request = CASE WHEN octet_length(answer) = 0 THEN $3::bytea ELSE request END
WHERE mailbox = $1 AND expires > now() AND (joiner IS NULL OR joiner = $2::bit(256))
RETURNING 1

-- name: answer
-- Leave the inviter's answer to a request; a row comes back iff there is one in a mailbox of that inviter.
UPDATE sealwire.mailbox SET answer = $3::bytea
WHERE mailbox = $1 AND expires > now() AND inviter = $2::bit(256) AND joiner IS NOT NULL
RETURNING 1

-- name: mailbox
-- A mailbox that has not expired.
SELECT vault_id, inviter, joiner, request, answer FROM sealwire.mailbox WHERE mailbox = $1 AND expires > now()
