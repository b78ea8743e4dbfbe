-- name: tables
-- Every table of the schema with its columns, as it is now: what a backup holds, whatever migrations add.
SELECT c.relname::text AS name,
    array_agg(a.attname::text ORDER BY a.attnum) AS columns,
    array_agg(format_type(a.atttypid, a.atttypmod) ORDER BY a.attnum) AS types
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = to_regnamespace('sealwire') AND c.relkind = 'r'
    AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
GROUP BY c.relname
ORDER BY c.relname

-- name: backup_state
-- What a backup says of itself besides its tables.
SELECT r.migrated_pre, r.migrated_post, r.term_id, current_setting('server_version') AS postgres
FROM sealwire.relay r

-- name: contents
-- What the database holds, in a few numbers.
SELECT r.term, s.vaults, s.streams, s.heads
FROM sealwire.relay r
CROSS JOIN (
    SELECT count(*) FILTER (WHERE stream = 0) AS vaults, count(*) AS streams, coalesce(sum(head), 0)::bigint AS heads
    FROM sealwire.stream
) s

-- name: other_relays
-- Connections to this database that relays and cleaners have now ($1 is what they call themselves).
SELECT count(*) FROM pg_catalog.pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name = $1
