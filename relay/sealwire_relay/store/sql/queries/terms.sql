-- name: schema_state
-- How far the schema is migrated.
SELECT migrated_pre, migrated_post FROM sealwire.relay

-- name: current_term
-- The term under which appends are accepted now, and the transaction that wrote its row. Whatever restores the row in
-- place writes it in another transaction, so that tells one history from another which brings back the very same term.
SELECT term, term_id, xmin AS written FROM sealwire.relay

-- name: open_term
-- Begin the next term under a random id; returns it.
UPDATE sealwire.relay SET term = term + 1, term_id = $1 RETURNING term, term_id, xmin AS written

-- name: begin_history
-- Begin the first term after a restore: newer than the backup's, and than the one that was there before ($2).
UPDATE sealwire.relay SET term = greatest(term, $2::bigint) + 1, term_id = $1::bigint RETURNING term, term_id

-- name: server_identity
-- What differs when a connection leads to another history: R7's reasons to open a term.
SELECT
    current_setting('synchronous_commit') AS synchronous_commit,
    (SELECT system_identifier FROM pg_control_system()) AS system_identifier,
    pg_postmaster_start_time() AS started,
    (SELECT timeline_id FROM pg_control_checkpoint()) AS timeline
