-- What says how long tombstones must stay (R11).
--
-- How many tombstones lie in the compacted part of a stream, and a seq before which there are none of them. marks has
-- (head, unix seconds) pairs, one after the other, oldest first: whatever lies at or below such a head is at least as
-- old. Only streams with tombstones have any, a few dozen at most.
--
-- The defaults are what every stream there is has, and what those that a relay of the version before creates will have:
-- a stream's tombstones are counted when it is cleaned next. Constant ones are kept beside the table, so no row is
-- rewritten.

ALTER TABLE sealwire.stream
    ADD COLUMN marks            bigint[] NOT NULL DEFAULT '{}',
    ADD COLUMN tombstones       bigint   NOT NULL DEFAULT 0,
    ADD COLUMN oldest_tombstone bigint   NOT NULL DEFAULT 0;

ALTER TABLE sealwire.stream ALTER COLUMN marks SET STORAGE EXTERNAL;

-- How far each device has applied each stream that it subscribes to, as it said last, and when that was. Written
-- behind, by whatever relay it is connected to. No changing column is indexed, and a quarter of each page stays free,
-- so that updates stay within the page and leave the index alone.
CREATE TABLE sealwire.ack (
    vault_id uuid        NOT NULL,
    stream   bigint      NOT NULL,
    author   bigint      NOT NULL,
    term     bigint      NOT NULL,
    term_id  bigint      NOT NULL,
    seq      bigint      NOT NULL,
    seen     timestamptz NOT NULL,
    PRIMARY KEY (vault_id, stream, author)
) WITH (fillfactor = 75, autovacuum_vacuum_threshold = 10000);
