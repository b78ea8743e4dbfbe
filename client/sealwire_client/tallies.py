"""What this device has added to counters: kept apart from the log, and never read back from it (R19).

Additions of one key coalesce like other edits; each makes the device's own count one greater. After a restore of the
relay a record may hold an older state of this device than it has sent, so its own tally is the only one it goes by.
"""

from typing import Final, NamedTuple

from sealwire_client import counting
from sealwire_client.replica import Collection, Discarded, Edit, Replica

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


def discard(replica: Replica, collection: Collection, key: str) -> list[Discarded]:
    """Give up a stuck write, see `Aside.discard`, and what it was to add: the next addition must not bring it back."""
    with replica.transaction() as connection:
        gone = replica.outbox.aside.discard(collection, key)
        for each in gone:
            if each.collection.policy != POLICY:
                continue
            author = replica.vaults.author(each.collection.vault)
            before, after = (counting.of_author(value, author) for value in (each.base, each.value))
            # Of a refill it is not known upon what it was made: what it had added before, the log has.
            said = counting.of_author(replica.claims.said(each.collection, each.key).value, author)
            if before.count < said.count <= after.count:
                before = said
            # The count stays: whatever is added next must be greater than all that ever had a value.
            connection.execute(
                "UPDATE _counted SET subtotal = subtotal - ? WHERE collection = ? AND key = ? AND author = ?",
                (after.subtotal - before.subtotal, each.collection.number, each.key, author),
            )
    return gone


def move(replica: Replica, vault: int, before: int, now: int) -> None:
    """Let this device, enrolled anew, add as another author what it had not sent. Within the caller's transaction.

    No write of the vault is on its way then, so all that was not sent waits among the edits, or is stuck.
    """
    for room in ("_edit", "_stuck"):
        keys = replica.database.connection.execute(
            f"SELECT DISTINCT e.collection, e.key FROM {room} AS e JOIN _collection AS c ON c.id = e.collection"
            " WHERE c.vault = ? AND c.policy = ?",
            (vault, POLICY),
        ).fetchall()
        for number, key in keys:
            _move(replica, room, (number, key), before, now)


def _move(replica: Replica, room: str, names: tuple[int, str], before: int, now: int) -> None:
    """Do so with one key's edits, all of which are in one room. Their values, and the values before them, hold the
    device's whole tally each, of which the least is what the log has."""
    execute = replica.database.connection.execute
    edits = execute(f"SELECT n, value, base FROM {room} WHERE collection = ? AND key = ? ORDER BY n", names).fetchall()
    sent = min((base for _, _, base in edits), key=lambda base: counting.of_author(base, before))
    left = counting.of_author(sent, before)
    for n, value, base in edits:
        value = counting.moved(sent, value, before, now)
        base = base if base is None else counting.moved(sent, base, before, now)
        execute(
            f"UPDATE {room} SET value = ?, base = ? WHERE n = ? AND collection = ? AND key = ?",
            (value, base, n, *names),
        )
    added = counting.of_author(value, now)
    for author, part in ((before, left), (now, added)):
        execute(
            "INSERT OR REPLACE INTO _counted (collection, key, author, count, subtotal) VALUES (?, ?, ?, ?, ?)",
            (*names, author, part.count, part.subtotal),
        )
    table = replica.entries.stored_table(names[0])
    execute(f"UPDATE {table.name} SET _raw = ? WHERE key = ?", (value, names[1]))
