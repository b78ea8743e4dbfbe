"""The replica's tables, as migrations. Every name begins with `_`, so that collections can have the others."""

from typing import Final

APPLICATION_ID: Final = 0x53_57_72_31
"""`PRAGMA application_id` of a replica: "SWr1"."""

MIGRATIONS: Final = (
    """
    -- Terms by small local numbers, because every entry names one. 0 is NO_TERM.
    CREATE TABLE _term (
        id      INTEGER PRIMARY KEY,
        number  INTEGER NOT NULL,
        name    BLOB NOT NULL,
        UNIQUE (number, name)
    ) STRICT;
    INSERT INTO _term VALUES (0, 0, zeroblob(8));

    CREATE TABLE _vault (
        id          INTEGER PRIMARY KEY,
        vault       BLOB NOT NULL UNIQUE,
        name        TEXT NOT NULL,
        origin      TEXT NOT NULL,
        author      INTEGER NOT NULL,
        next_batch  INTEGER NOT NULL DEFAULT 1
    ) STRICT;

    CREATE TABLE _link (
        vault  INTEGER NOT NULL REFERENCES _vault,
        seq    INTEGER NOT NULL,
        raw    BLOB NOT NULL,
        PRIMARY KEY (vault, seq)
    ) STRICT, WITHOUT ROWID;

    -- columns: JSON [[name, type], …], every column the table ever had; opened: how many of them the app knew last.
    CREATE TABLE _collection (
        id            INTEGER PRIMARY KEY,
        vault         INTEGER NOT NULL REFERENCES _vault,
        name          TEXT NOT NULL,
        stream        BLOB NOT NULL,
        kind          INTEGER NOT NULL,
        policy        TEXT NOT NULL,
        columns       TEXT NOT NULL,
        opened        INTEGER NOT NULL,
        cursor_term   INTEGER NOT NULL DEFAULT 0 REFERENCES _term,
        cursor_seq    INTEGER NOT NULL DEFAULT 0,
        served_term   INTEGER NOT NULL DEFAULT 0 REFERENCES _term,
        served_seq    INTEGER NOT NULL DEFAULT 0,
        floor_term    INTEGER NOT NULL DEFAULT 0 REFERENCES _term,
        floor_seq     INTEGER NOT NULL DEFAULT 0,
        version_seen  INTEGER NOT NULL DEFAULT 0,
        UNIQUE (vault, name),
        UNIQUE (vault, stream)
    ) STRICT;

    -- The terms of a stream, as the relay told them last: place 0 is the oldest.
    CREATE TABLE _told (
        collection  INTEGER NOT NULL REFERENCES _collection,
        place       INTEGER NOT NULL,
        term        INTEGER NOT NULL REFERENCES _term,
        start       INTEGER NOT NULL,
        PRIMARY KEY (collection, place)
    ) STRICT, WITHOUT ROWID;

    -- Edits not yet sealed, one a key; n grows for ever and is never used twice (AUTOINCREMENT). value NULL: deleted.
    -- raw: the row alone would not encode to this value again.
    CREATE TABLE _edit (
        n           INTEGER PRIMARY KEY AUTOINCREMENT,
        vault       INTEGER NOT NULL REFERENCES _vault,
        collection  INTEGER NOT NULL REFERENCES _collection,
        key         TEXT NOT NULL,
        value       BLOB,
        raw         INTEGER NOT NULL,
        UNIQUE (collection, key)
    ) STRICT;
    CREATE INDEX _edit_order ON _edit (vault);

    -- Batches without a verdict, and their groups as they are sent.
    CREATE TABLE _batch (
        vault   INTEGER NOT NULL REFERENCES _vault,
        number  INTEGER NOT NULL,
        flags   INTEGER NOT NULL,
        PRIMARY KEY (vault, number)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE _group (
        vault       INTEGER NOT NULL,
        batch       INTEGER NOT NULL,
        place       INTEGER NOT NULL,
        stream      BLOB NOT NULL,
        conditions  BLOB NOT NULL,
        count       INTEGER NOT NULL,
        records     BLOB NOT NULL,
        PRIMARY KEY (vault, batch, place),
        FOREIGN KEY (vault, batch) REFERENCES _batch
    ) STRICT;

    -- Sealed writes: unanswered while seq is NULL, then answered (or delivered) at (term, seq) until the cursor passes
    -- that. A batch may outlive its writes: it waits for its verdict also when they have all been delivered.
    CREATE TABLE _sent (
        vault       INTEGER NOT NULL,
        batch       INTEGER NOT NULL,
        place       INTEGER NOT NULL,
        at          INTEGER NOT NULL,
        collection  INTEGER NOT NULL REFERENCES _collection,
        key         TEXT NOT NULL,
        rank        BLOB NOT NULL,
        key_id      BLOB NOT NULL,
        flags       INTEGER NOT NULL,
        value       BLOB,
        raw         INTEGER NOT NULL,
        term        INTEGER REFERENCES _term,
        seq         INTEGER,
        PRIMARY KEY (vault, batch, place, at)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX _sent_key ON _sent (collection, key);
    CREATE INDEX _sent_answered ON _sent (collection, term, seq) WHERE seq IS NOT NULL;

    -- Writes refused for good: kept and shown until they are tried again, replaced or discarded.
    CREATE TABLE _stuck (
        collection  INTEGER NOT NULL REFERENCES _collection,
        key         TEXT NOT NULL,
        value       BLOB,
        raw         INTEGER NOT NULL,
        reason      TEXT NOT NULL,
        PRIMARY KEY (collection, key)
    ) STRICT, WITHOUT ROWID;

    -- Records that could not be opened, with their bytes.
    CREATE TABLE _quarantine (
        collection  INTEGER NOT NULL REFERENCES _collection,
        seq         INTEGER NOT NULL,
        term        INTEGER NOT NULL REFERENCES _term,
        rank        BLOB NOT NULL,
        record      BLOB NOT NULL,
        reason      TEXT NOT NULL,
        PRIMARY KEY (collection, term, seq)
    ) STRICT;
    """,
    """
    -- Of each key one edit that stands alone (tx 0) may wait, and one of each transaction (tx: the n of its first).
    -- base: the value as the user saw it before the first edit that waits (guarded collections alone; NULL: absent).
    -- refused: what this edit was to replace when it was refused last, and where that stood. since: the n of the first
    -- edit that this one took the place of (NULL: of none).
    CREATE TABLE _edit_2 (
        n           INTEGER PRIMARY KEY AUTOINCREMENT,
        vault       INTEGER NOT NULL REFERENCES _vault,
        collection  INTEGER NOT NULL REFERENCES _collection,
        key         TEXT NOT NULL,
        value       BLOB,
        raw         INTEGER NOT NULL,
        tx          INTEGER NOT NULL DEFAULT 0,
        since       INTEGER,
        base        BLOB,
        refused     BLOB,
        UNIQUE (collection, key, tx)
    ) STRICT;
    INSERT INTO _edit_2 (n, vault, collection, key, value, raw) SELECT n, vault, collection, key, value, raw FROM _edit;
    DELETE FROM sqlite_sequence WHERE name = '_edit_2';
    INSERT INTO sqlite_sequence (name, seq) SELECT '_edit_2', seq FROM sqlite_sequence WHERE name = '_edit';
    DROP TABLE _edit;
    ALTER TABLE _edit_2 RENAME TO _edit;
    CREATE INDEX _edit_order ON _edit (vault);
    CREATE INDEX _edit_together ON _edit (tx) WHERE tx > 0;

    -- What an edit was, so that it can be an edit again (n 0: not known; -1: it was none, but a strict write).
    -- condition: what it replaces in a guarded stream, and where that stands.
    ALTER TABLE _sent ADD COLUMN n INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE _sent ADD COLUMN tx INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE _sent ADD COLUMN since INTEGER;
    ALTER TABLE _sent ADD COLUMN base BLOB;
    ALTER TABLE _sent ADD COLUMN condition BLOB;
    ALTER TABLE _stuck ADD COLUMN n INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE _stuck ADD COLUMN tx INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE _stuck ADD COLUMN since INTEGER;
    ALTER TABLE _stuck ADD COLUMN base BLOB;

    -- 1: the relay has told that the stream is of this kind.
    ALTER TABLE _collection ADD COLUMN settled INTEGER NOT NULL DEFAULT 0;
    UPDATE _collection SET settled = 1 WHERE cursor_seq > 0;

    -- What this device has added to each counter, as its author, in all: never read back from a record (R19).
    CREATE TABLE _counted (
        collection  INTEGER NOT NULL REFERENCES _collection,
        key         TEXT NOT NULL,
        author      INTEGER NOT NULL,
        count       INTEGER NOT NULL,
        subtotal    INTEGER NOT NULL,
        PRIMARY KEY (collection, key, author)
    ) STRICT, WITHOUT ROWID;
    """,
    """
    -- doubt: why a batch number may be used twice if this device goes on under its keys (NULL: it may go on).
    -- synced_at: when all was last sent and applied. Times for people: this device's clock, Unix milliseconds.
    ALTER TABLE _vault ADD COLUMN doubt TEXT;
    ALTER TABLE _vault ADD COLUMN synced_at INTEGER;

    -- When the last record of each author was applied here.
    CREATE TABLE _heard (
        vault   INTEGER NOT NULL REFERENCES _vault,
        author  INTEGER NOT NULL,
        at      INTEGER NOT NULL,
        PRIMARY KEY (vault, author)
    ) STRICT, WITHOUT ROWID;
    """,
    """
    -- Records that could not be opened, one of each tag and rank; both stand outside of the seal, as flags do. A record
    -- of term 0 is of a history that the relay has lost: it is kept, and takes no part in anything.
    CREATE TABLE _quarantine_2 (
        id          INTEGER PRIMARY KEY,
        collection  INTEGER NOT NULL REFERENCES _collection,
        term        INTEGER NOT NULL REFERENCES _term,
        seq         INTEGER NOT NULL,
        tag         BLOB NOT NULL,
        rank        BLOB NOT NULL,
        flags       INTEGER NOT NULL,
        record      BLOB NOT NULL,
        reason      TEXT NOT NULL,
        UNIQUE (collection, tag, rank)
    ) STRICT;
    INSERT OR REPLACE INTO _quarantine_2 (collection, term, seq, tag, rank, flags, record, reason)
        SELECT collection, term, seq, substr(record, 3, 16), rank,
            instr('123456789ABCDEF', substr(hex(substr(record, 2, 1)), 2, 1)) & 3, record, reason
        FROM _quarantine ORDER BY term, seq;
    DROP TABLE _quarantine;
    ALTER TABLE _quarantine_2 RENAME TO _quarantine;

    -- The floor up to which tombstones were dropped here.
    ALTER TABLE _collection ADD COLUMN dropped_to INTEGER NOT NULL DEFAULT 0;

    -- Terms of a stream that the relay has lost: which one was written there before each, and up to which seq. Kept
    -- while something may have to be given back of them.
    CREATE TABLE _lost_term (
        collection  INTEGER NOT NULL REFERENCES _collection,
        term        INTEGER NOT NULL REFERENCES _term,
        before      INTEGER NOT NULL REFERENCES _term,
        start       INTEGER NOT NULL,
        PRIMARY KEY (collection, term)
    ) STRICT, WITHOUT ROWID;
    """,
    """
    -- Devices whose links have gone with the end of a membership log that another one outranked: this device, an admin,
    -- is to add them again.
    CREATE TABLE _unissued (
        vault    INTEGER NOT NULL REFERENCES _vault,
        device   BLOB NOT NULL,
        box_key  BLOB NOT NULL,
        role     INTEGER NOT NULL,
        name     TEXT NOT NULL,
        PRIMARY KEY (vault, device)
    ) STRICT, WITHOUT ROWID;
    """,
    """
    -- What may entitle this device to give the relay a vault that it does not know: the registration token that it was
    -- made with, and what the relay has told last to know it again. Empty: none.
    ALTER TABLE _vault ADD COLUMN token BLOB NOT NULL DEFAULT x'';
    ALTER TABLE _vault ADD COLUMN receipt BLOB NOT NULL DEFAULT x'';
    """,
    """
    -- What each collection holds of the log, in one number. None yet: it is made when the collection is opened.
    CREATE TABLE _sum (
        collection  INTEGER PRIMARY KEY REFERENCES _collection,
        sum         BLOB NOT NULL
    ) STRICT;

    -- What it held where deliveries ended, the latest at the greatest place.
    CREATE TABLE _boundary (
        collection  INTEGER NOT NULL REFERENCES _collection,
        place       INTEGER NOT NULL,
        term        INTEGER NOT NULL REFERENCES _term,
        seq         INTEGER NOT NULL,
        sum         BLOB NOT NULL,
        PRIMARY KEY (collection, place)
    ) STRICT, WITHOUT ROWID;

    -- Up to there entries may stand beyond the cursor, which was set back.
    ALTER TABLE _collection ADD COLUMN exact_from INTEGER NOT NULL DEFAULT 0;
    """,
    """
    -- Vaults that this device was let into by an invite and does not hold yet. at: since when, Unix milliseconds.
    CREATE TABLE _awaited (
        vault      BLOB PRIMARY KEY,
        origin     TEXT NOT NULL,
        link_seq   INTEGER NOT NULL,
        link_hash  BLOB NOT NULL,
        at         INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    """,
    """
    -- signed 1: the collection's entries are signed by their authors. _proof: their signatures, see proofs.py.
    ALTER TABLE _collection ADD COLUMN signed INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE _proof (
        collection  INTEGER NOT NULL REFERENCES _collection,
        key         TEXT NOT NULL,
        rank        BLOB NOT NULL,
        proof       BLOB NOT NULL,
        PRIMARY KEY (collection, key, rank)
    ) STRICT, WITHOUT ROWID;
    """,
    """
    -- Keys whose records are sealed anew in a batch without a verdict: nothing else of them is sent before.
    CREATE TABLE _resealed (
        collection  INTEGER NOT NULL REFERENCES _collection,
        key         TEXT NOT NULL,
        vault       INTEGER NOT NULL REFERENCES _vault,
        batch       INTEGER NOT NULL,
        PRIMARY KEY (collection, key)
    ) STRICT, WITHOUT ROWID;
    """,
    """
    -- Where a collection stood when it was last stated what it holds, and when: this device's clock, Unix milliseconds.
    ALTER TABLE _collection ADD COLUMN stated_seq INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE _collection ADD COLUMN stated_at INTEGER NOT NULL DEFAULT 0;

    -- Signed statements that cannot both be true. One stands of each device (lineage) and stream. back: `held` is a
    -- former one of the same device; else it is this device's own.
    CREATE TABLE _dispute (
        id         INTEGER PRIMARY KEY,
        vault      INTEGER NOT NULL REFERENCES _vault,
        stream     BLOB NOT NULL,
        lineage    INTEGER NOT NULL,
        author     INTEGER NOT NULL,
        term       INTEGER NOT NULL REFERENCES _term,
        seq        INTEGER NOT NULL,
        back       INTEGER NOT NULL,
        held       BLOB NOT NULL,
        theirs     BLOB NOT NULL,
        at         INTEGER NOT NULL,
        dismissed  INTEGER NOT NULL,
        UNIQUE (vault, stream, lineage)
    ) STRICT;
    """,
    """
    -- A vault that this device is leaving: the link that says so, until it is forgotten (NULL: it is not), and whether
    -- what was not sent is discarded then.
    ALTER TABLE _vault ADD COLUMN leave BLOB;
    ALTER TABLE _vault ADD COLUMN leave_discards INTEGER NOT NULL DEFAULT 0;
    """,
    """
    -- Keys of epochs of other ends of a membership log, which had to give way, until an epoch hands them on. Each is
    -- wrapped under the key of the epoch `under`, which every member of the log that stands can open.
    CREATE TABLE _other_key (
        vault       INTEGER NOT NULL REFERENCES _vault,
        epoch       INTEGER NOT NULL,
        commitment  BLOB NOT NULL,
        under       INTEGER NOT NULL,
        wrapped     BLOB NOT NULL,
        PRIMARY KEY (vault, epoch, commitment)
    ) STRICT, WITHOUT ROWID;

    -- How often a device that is to be added again had left or been removed by the log that stands.
    ALTER TABLE _unissued ADD COLUMN parted INTEGER NOT NULL DEFAULT 0;
    """,
)
"""Script k brings a replica from schema version k to k + 1. Published ones are never changed, only followed."""

SCHEMA_VERSION: Final = len(MIGRATIONS)
