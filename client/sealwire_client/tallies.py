"""What this device has added to counters: kept apart from the log, and never read back from it (R19).

Additions of one key coalesce like other edits; each makes the device's own count one greater. After a restore of the
relay a record may hold an older state of this device than it has sent, so its own tally is the only one it goes by.
"""

from typing import Final, NamedTuple

from sealwire_client import counting
from sealwire_client.replica import Collection, Edit, Replica

POLICY: Final = "counter"
"""The policy of collections that count."""


class Addition(NamedTuple):
    """An addition to a counter: an edit whose value the writer makes, of what is shown when it is its turn."""

    key: str
    amount: int


def counted(replica: Replica, collection: Collection, addition: Addition) -> Edit:
    """Make an addition an edit, within the caller's transaction. Raises EncodingError if the counter takes no more."""
    execute, names = replica.database.connection.execute, (collection.number, addition.key)
    author = replica.vaults.author(collection.vault)
    count, subtotal = execute(
        "INSERT INTO _counted (collection, key, author, count, subtotal) VALUES (?, ?, ?, 1, ?)"
        " ON CONFLICT DO UPDATE SET count = count + 1, subtotal = subtotal + excluded.subtotal"
        " RETURNING count, subtotal",
        (*names, author, addition.amount),
    ).fetchone()
    value = counting.added(replica.claims.shown(collection, addition.key).value, author, count, subtotal)
    row, kept = collection.read(value)
    return Edit(addition.key, row, value, kept is not None)


def move(replica: Replica, vault: int, before: int, now: int) -> None:
    """Let this device, enrolled anew, add as another author what it had not sent. Within the caller's transaction.

    No write of the vault is on its way then, so all that was not sent waits among the edits; their values, and the
    values before them, hold the device's whole tally each, of which the least is what the log has.
    """
    connection = replica.database.connection
    keys = connection.execute(
        "SELECT DISTINCT e.collection, e.key FROM _edit AS e JOIN _collection AS c ON c.id = e.collection"
        " WHERE e.vault = ? AND c.policy = ?",
        (vault, POLICY),
    ).fetchall()
    for names in keys:
        edits = connection.execute(
            "SELECT n, value, base FROM _edit WHERE collection = ? AND key = ? ORDER BY n", names
        ).fetchall()
        sent = min((base for _, _, base in edits), key=lambda base: counting.of_author(base, before))
        left = counting.of_author(sent, before)
        for n, value, base in edits:
            value = counting.moved(sent, value, before, now)
            base = base if base is None else counting.moved(sent, base, before, now)
            connection.execute("UPDATE _edit SET value = ?, base = ? WHERE n = ?", (value, base, n))
        added = counting.of_author(value, now)
        for author, part in ((before, left), (now, added)):
            connection.execute(
                "INSERT OR REPLACE INTO _counted (collection, key, author, count, subtotal) VALUES (?, ?, ?, ?, ?)",
                (*names, author, part.count, part.subtotal),
            )
        table = replica.entries.stored_table(names[0])
        connection.execute(f"UPDATE {table.name} SET _raw = ? WHERE key = ?", (value, names[1]))
