"""Writes that were refused for good: kept and shown until they are tried again, replaced or discarded."""

from typing import NamedTuple

from sealwire_client.replica.database import Database
from sealwire_client.replica.edits import STRICT, TakenEdit
from sealwire_client.replica.entries import INTERNAL, Change, Collection, Edit, Entries
from sealwire_client.replica.errors import ReplicaMisuse
from sealwire_client.replica.sent import Refusing


class Stuck(NamedTuple):
    """A write refused for good. `value` None: it deletes. `together`: it was part of a transaction."""

    key: str
    value: bytes | None
    reason: str
    together: bool = False


class Discarded(NamedTuple):
    """A write that was given up: it stood for the edits of its key from `since` to `n`, and made `value` of `base`."""

    collection: Collection
    key: str
    since: int
    n: int
    value: bytes | None
    base: bytes | None
    changes: list[Change]


class Aside:
    """The stuck writes of a replica. Every method is one transaction, or part of the caller's."""

    def __init__(self, database: Database, entries: Entries) -> None:
        self._database, self._entries = database, entries

    def put(self, write: Refusing, reason: str) -> bool:
        """Keep a refused write. False if a newer edit of its key waits, which then stands for both.

        Of a key one is kept; a strict write, whose app has to look again in any case, takes no edit's place."""
        if self._inherited(write):
            return False
        instead = "IGNORE" if write.edit.n == STRICT else "REPLACE"
        self._database.connection.execute(
            f"INSERT OR {instead} INTO _stuck (collection, reason, n, key, value, raw, tx, since, base)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (write.collection, reason, *write.edit[:-1]),
        )
        return True

    def _inherited(self, write: Refusing) -> bool:
        """Let the oldest newer edit of the key, if there is one, change all that the refused write was to change."""
        edit, execute = write.edit, self._database.connection.execute
        if edit.n == STRICT:
            return False
        heir = execute(
            "SELECT min(n) FROM _edit WHERE collection = ? AND key = ? AND n > ?", (write.collection, edit.key, edit.n)
        ).fetchone()[0]
        if heir is None:
            return False
        stood_for = edit.n if edit.since is None else edit.since
        execute("UPDATE _edit SET base = ?, since = ? WHERE n = ?", (edit.base, stood_for, heir))
        return True

    def put_all(self, collection: int, reason: str) -> None:
        """Keep all waiting edits of a collection, with their transactions."""
        execute = self._database.connection.execute
        found = execute("SELECT n FROM _edit WHERE collection = ? ORDER BY n", (collection,)).fetchall()
        for (n,) in found:
            self.put_edit(n, reason)

    def put_edit(self, n: int, reason: str) -> None:
        """Keep a waiting edit that cannot be sealed, with its whole transaction, so that the others can go on."""
        execute = self._database.connection.execute
        rows = execute(
            "SELECT collection, n, key, value, raw, tx, since, base FROM _edit"
            " WHERE n = ?1 OR (tx > 0 AND tx = (SELECT tx FROM _edit WHERE n = ?1)) ORDER BY n",
            (n,),
        ).fetchall()
        for collection, *columns in rows:
            edit = TakenEdit(*columns)
            execute("DELETE FROM _edit WHERE n = ?", (edit.n,))
            self.put(Refusing(0, 0, collection, None, edit), reason)

    def shows(self, collection: Collection, key: str) -> bool:
        """True if what is shown of a key is a stuck write."""
        return self.holds(collection.number, key)

    def holds(self, collection: int, key: str) -> bool:
        """True if there is a stuck write of a key that is shown."""
        found = self._database.connection.execute(
            f"SELECT EXISTS (SELECT 1 FROM _stuck WHERE collection = ? AND key = ? AND n <> {STRICT})",
            (collection, key),
        )
        return bool(found.fetchone()[0])

    def forget_strict(self, collection: Collection, key: str) -> None:
        """Forget a strict write whose app is told that it was refused."""
        self._database.connection.execute(
            f"DELETE FROM _stuck WHERE collection = ? AND key = ? AND n = {STRICT}", (collection.number, key)
        )

    def all(self, collection: Collection) -> list[Stuck]:
        """The stuck writes of a collection, by key."""
        found = self._database.connection.execute(
            "SELECT key, value, reason, tx > 0 FROM _stuck WHERE collection = ? ORDER BY key", (collection.number,)
        )
        return [Stuck(key, value, reason, bool(together)) for key, value, reason, together in found]

    def of_vault(self, vault: int) -> list[tuple[str, Stuck]]:
        """The stuck writes of a vault, each with the name of its collection, in their order."""
        found = self._database.connection.execute(
            "SELECT c.name, s.key, s.value, s.reason, s.tx > 0 FROM _stuck AS s JOIN _collection AS c"
            " ON c.id = s.collection WHERE c.vault = ?"
            f" AND NOT {INTERNAL} ORDER BY c.name, s.key",
            (vault,),
        )
        return [(name, Stuck(key, value, reason, bool(together))) for name, key, value, reason, together in found]

    def why(self, vault: int) -> str | None:
        """Why a write of the vault was refused for good; None if none was."""
        found = self._database.connection.execute(
            "SELECT reason FROM _stuck JOIN _collection AS c ON c.id = collection WHERE c.vault = ?"
            f" AND NOT {INTERNAL} LIMIT 1",
            (vault,),
        ).fetchone()
        return found[0] if found else None

    def retry(self, collection: Collection, key: str) -> bool:
        """Put a stuck write back among the edits, with all of its transaction. False if there is none of that key.

        Raises ReplicaMisuse for a strict write, whose app has to decide anew.
        """
        with self._database.transaction() as connection:
            found = connection.execute(
                "SELECT n, tx FROM _stuck WHERE collection = ? AND key = ?", (collection.number, key)
            ).fetchone()
            if found is None:
                return False
            n, tx = found
            if n == STRICT:
                raise ReplicaMisuse(
                    f"the write of {key!a} in {collection.name} was strict: what it was based on has changed, so it is"
                    " not sent again; look at the entry and write anew, then discard this"
                )
            which = "s.tx = ?" if tx > 0 else "s.collection = ? AND s.key = ?"
            names = (tx,) if tx > 0 else (collection.number, key)
            connection.execute(
                "INSERT OR REPLACE INTO _edit (vault, collection, key, value, raw, tx, since, base)"
                " SELECT c.vault, s.collection, s.key, s.value, s.raw, s.tx, coalesce(s.since, s.n), s.base"
                " FROM _stuck AS s"
                f" JOIN _collection AS c ON c.id = s.collection WHERE {which} ORDER BY s.n",
                names,
            )
            connection.execute(f"DELETE FROM _stuck AS s WHERE {which}", names)
        return True

    def discard(self, collection: Collection, key: str) -> list[Discarded]:
        """Give up a stuck write, with all of its transaction: each key shows what was sent before it, or what the
        log says.

        Raises ReplicaMisuse if another collection of the transaction is not open.
        """
        with self._database.transaction() as connection:
            found = connection.execute(
                "SELECT collection, key, coalesce(since, n), n, value, base FROM _stuck"
                " WHERE (collection = ?1 AND key = ?2)"
                " OR (tx > 0 AND tx = (SELECT tx FROM _stuck WHERE collection = ?1 AND key = ?2)) ORDER BY n",
                (collection.number, key),
            ).fetchall()
            return [self._discard(number, *write) for number, *write in found]

    def _discard(self, number: int, key: str, since: int, n: int, value: bytes | None, base: bytes | None) -> Discarded:
        entries, execute = self._entries, self._database.connection.execute
        collection = entries.opened.get(number)
        if collection is None:
            raise ReplicaMisuse(
                f"the write of {key!a} belongs to a transaction whose other collections are not all open: nothing was"
                " discarded; open them first"
            )
        before = entries.look(collection.table, [key])
        execute("DELETE FROM _stuck WHERE collection = ? AND key = ?", (number, key))
        if n == STRICT:
            return Discarded(collection, key, since, n, value, base, [])  # it showed nothing
        last = execute(
            "SELECT value, 1, n AS at FROM _edit WHERE collection = ?1 AND key = ?2 UNION ALL"
            f" SELECT value, 0, batch FROM _sent WHERE collection = ?1 AND key = ?2 AND n <> {STRICT}"
            " ORDER BY 2 DESC, at DESC LIMIT 1",
            (number, key),
        ).fetchone()
        if last is None:
            entries.settle(collection.table, key)
        else:
            shown = last[0]
            row, kept = (None, None) if shown is None else collection.read(shown)
            entries.show(collection, [Edit(key, row, shown, kept is not None)])
        return Discarded(
            collection, key, since, n, value, base, before.changes_to(entries.look(collection.table, [key]))
        )
