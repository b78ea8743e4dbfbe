-- name: sweep_mailboxes
-- Forget the mailboxes that have expired.
DELETE FROM sealwire.mailbox WHERE expires <= now()

-- name: open_mailbox
-- Open a mailbox, or leave one's own as it is; a row comes back iff the inviter may.
INSERT INTO sealwire.mailbox AS b (mailbox, vault_id, expires, inviter, request, answer)
SELECT $1::uuid, m.vault_id, now() + make_interval(secs => $4::integer), m.device, '', ''
FROM sealwire.member m
WHERE m.vault_id = $2 AND m.device = $3::bit(256) AND m.role >= $5::smallint
ON CONFLICT (mailbox) DO UPDATE SET expires = b.expires
WHERE b.vault_id = excluded.vault_id AND b.inviter = excluded.inviter
RETURNING 1

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
