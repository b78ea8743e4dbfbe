-- What guarded streams hold of each tag: the record accepted last, so that a write can say what it replaces (R5).
--
-- Rows are written in the statement that moves the stream's head, under the head's lock, and at no other time.
-- There may be as many as there are entries. No changing column is indexed, and a tenth of each page stays free, so
-- that an entry that is written again and again stays within its page and leaves the index alone.

CREATE TABLE sealwire.guard (
    vault_id  uuid    NOT NULL,
    stream    bigint  NOT NULL,
    tag       uuid    NOT NULL,
    version   bigint  NOT NULL,
    salt      bigint  NOT NULL,
    seq       bigint  NOT NULL,
    tombstone boolean NOT NULL,
    PRIMARY KEY (vault_id, stream, tag)
) WITH (fillfactor = 90, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_insert_threshold = 1000000);
