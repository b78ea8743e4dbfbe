-- name: vacuum
-- Make room of segments that were deleted. Who cannot have the lock, or is not allowed to, is told so and has done
-- nothing; what is still seen by a transaction that began before (a dump) stays, and is for the next time.
VACUUM (SKIP_LOCKED) sealwire.segment

-- name: room
-- The size of the table of large bodies in bytes, and of the one that refers to them in pages.
SELECT pg_relation_size(large.oid) AS size,
    pg_relation_size(table_.oid) / current_setting('block_size')::bigint AS pages
FROM pg_catalog.pg_class table_ JOIN pg_catalog.pg_class large ON large.oid = table_.reltoastrelid
WHERE table_.oid = to_regclass('sealwire.segment')

-- name: used_room
-- What large bodies take up, from as many percent of all pages: in pieces of 1,996 bytes, of which four fill a page of
-- 8,192. What vacuuming counts of them is no use: it takes the pages that it has not read for average ones.
SELECT (coalesce(sum(ceil(octet_length(body) / 1996.0)), 0) * 2048 * 100 / $1::real)::bigint AS used
FROM sealwire.segment TABLESAMPLE SYSTEM ($1::real)
WHERE octet_length(body) > 2000

-- name: sizes
-- Every table with its indexes and large values, in bytes.
SELECT c.relname::text AS name, pg_total_relation_size(c.oid) AS size
FROM pg_catalog.pg_class c
WHERE c.relnamespace = to_regnamespace('sealwire') AND c.relkind = 'r'

-- name: log_size
-- How much of its write-ahead log Postgres means to keep at most, in bytes.
SELECT pg_size_bytes(current_setting('max_wal_size'))
