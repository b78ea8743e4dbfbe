-- The compacted log of all vaults.
--
-- What is keyed by a vault leads with vault_id, so that the schema can be distributed by it as it stands.
-- Small relays count every page: few tables, no index that repeats a primary key, and fixed-size columns where
-- they do, because any column without a size brings a TOAST table with an index of its own.
--
-- Autovacuum comes later than its defaults would have it. Rows that change are pruned within their page by the next
-- update, so that vacuuming them after every fifty gains nothing; and segments are never updated: what vacuuming
-- inserts is good for, freezing, can wait for the first million rows. Each vacuum of a small table adds 32 kB to it.
--
-- Identifiers: vaults and mailboxes are their 16 bytes as uuid; streams, term ids (8 bytes) and key ids (4) are
-- big-endian signed integers; device keys are bit(256), which has a size where bytea has none.

CREATE SCHEMA sealwire;

-- One row: how far the schema is migrated, and the current term. It needs no key, for nobody adds a second one,
-- and every query of it fails if anybody does.
CREATE TABLE sealwire.relay (
    migrated_pre  integer NOT NULL,
    migrated_post integer NOT NULL,
    term          bigint  NOT NULL,
    term_id       bigint  NOT NULL
);

INSERT INTO sealwire.relay (migrated_pre, migrated_post, term, term_id) VALUES (0, 0, 0, 0);

-- The head row of every stream. Stream 0 is the membership log: its row stands for the vault. Each row carries
-- the vault's epoch, so that whoever holds a head's lock knows it. term is the newest one written in the stream;
-- terms has them all, oldest first, as (number, id, start head) one after the other, and never loses one. Numbers
-- ascend; those of stream 0 may repeat under another id, where links were replaced, and those of a vault that comes back
-- begin with such a one. A long list moves out of the row, and is not touched by commits that add nothing to it.
-- Every commit updates a head: half of each page stays free and no changing column is indexed, so that updates
-- stay within the page and leave the index alone.
CREATE TABLE sealwire.stream (
    vault_id   uuid     NOT NULL,
    stream     bigint   NOT NULL,
    head       bigint   NOT NULL,
    top        bigint   NOT NULL,
    floor      bigint   NOT NULL,
    floor_head bigint   NOT NULL,
    purged     bigint   NOT NULL,
    cleaned_to bigint   NOT NULL,
    term       bigint   NOT NULL,
    term_id    bigint   NOT NULL,
    key_id     integer  NOT NULL,
    epoch      integer  NOT NULL,
    kind       smallint NOT NULL,
    terms      bigint[] NOT NULL,
    PRIMARY KEY (vault_id, stream)
) WITH (fillfactor = 50, toast_tuple_target = 256, autovacuum_vacuum_threshold = 10000);

ALTER TABLE sealwire.stream ALTER COLUMN terms SET STORAGE EXTERNAL;

-- Records (prev, last] of a stream as they are sent. The rows of a stream tile (0, head].
CREATE TABLE sealwire.segment (
    vault_id uuid   NOT NULL,
    stream   bigint NOT NULL,
    last     bigint NOT NULL,
    prev     bigint NOT NULL,
    body     bytea  NOT NULL,
    PRIMARY KEY (vault_id, stream, last)
) WITH (autovacuum_vacuum_insert_threshold = 1000000, toast.autovacuum_vacuum_insert_threshold = 1000000);

-- Ciphertext does not compress, and uncompressed bodies tell their size without being read.
ALTER TABLE sealwire.segment ALTER COLUMN body SET STORAGE EXTERNAL;

-- The members of each vault, as the membership log has them, and where each stands with its batches. A device is
-- looked for among the members of one vault, which are few; that it is there once is checked in the log.
CREATE TABLE sealwire.member (
    vault_id   uuid     NOT NULL,
    author     bigint   NOT NULL,
    last_batch bigint   NOT NULL,
    last_term  bigint   NOT NULL,
    device     bit(256) NOT NULL,
    role       smallint NOT NULL,
    PRIMARY KEY (vault_id, author)
) WITH (autovacuum_vacuum_threshold = 10000);

-- The latest verdicts on each member's batches; slot = batch modulo their number, so they never grow.
CREATE TABLE sealwire.outcome (
    vault_id uuid     NOT NULL,
    author   bigint   NOT NULL,
    batch    bigint   NOT NULL,
    slot     smallint NOT NULL,
    digest   bytea    NOT NULL,
    answer   bytea    NOT NULL,
    PRIMARY KEY (vault_id, author, slot)
) WITH (autovacuum_vacuum_threshold = 10000);

-- Where a joining device and its inviter meet. Found by its own id: a joiner does not know the vault yet.
CREATE TABLE sealwire.mailbox (
    mailbox  uuid        NOT NULL,
    vault_id uuid        NOT NULL,
    expires  timestamptz NOT NULL,
    inviter  bit(256)    NOT NULL,
    joiner   bit(256),
    request  bytea       NOT NULL,
    answer   bytea       NOT NULL,
    PRIMARY KEY (mailbox)
);
