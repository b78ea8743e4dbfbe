"""Letting go of a vault: all that the replica has of it goes in one transaction, but what was not sent only if that was
said."""

from typing import Final, NamedTuple

from sealwire_client.replica.database import Database
from sealwire_client.replica.declared import drop_words
from sealwire_client.replica.entries import Entries
from sealwire_client.replica.errors import UnsentError
from sealwire_client.replica.outbox import Outbox
from sealwire_client.replica.sums import Sums
from sealwire_client.replica.tables import Table
from sealwire_client.replica.vaults import Vaults

OF_NO_VAULT: Final = frozenset(("_awaited", "_term"))
"""Tables whose rows are no vault's that is held: every other one says of which vault, or collection, a row is."""


class Leaving(NamedTuple):
    """A vault is to be left: the link that says so, which the relay may have or not, and whether what was not sent is
    to be discarded."""

    link: bytes
    discard: bool


class Parting:
    """What goes with a vault. Each method is one transaction."""

    def __init__(self, database: Database, vaults: Vaults, entries: Entries, outbox: Outbox, sums: Sums) -> None:
        self._database, self._vaults = database, vaults
        self._entries, self._outbox, self._sums = entries, outbox, sums

    def unsent(self, vault: int) -> int:
        """How many writes only this device has: waiting, without a verdict, or refused for good."""
        waiting = self._outbox.waiting(vault)
        return waiting.pending + waiting.stuck

    def check_sent(self, vault: int) -> None:
        """Raises UnsentError if only this device has some writes."""
        if unsent := self.unsent(vault):
            raise UnsentError(unsent)

    def intend(self, vault: int, leaving: Leaving | None) -> None:
        """Go on with leaving a vault even if this run ends; None: it is not to be left after all."""
        link, discard = leaving or (None, False)
        with self._database.transaction() as connection:
            connection.execute("UPDATE _vault SET leave = ?, leave_discards = ? WHERE id = ?", (link, discard, vault))

    def intended(self, vault: int) -> Leaving | None:
        """Whether a vault is to be left."""
        found = self._database.connection.execute(
            "SELECT leave, leave_discards FROM _vault WHERE id = ? AND leave IS NOT NULL", (vault,)
        ).fetchone()
        return None if found is None else Leaving(found[0], bool(found[1]))

    def forget(self, vault: int, *, discard: bool) -> None:
        """Delete every row of a vault, and the tables of its collections. Raises UnsentError, and deletes nothing, if
        anything of it was not sent and is not to be discarded."""
        with self._database.transaction() as connection:
            if not discard:
                self.check_sent(vault)
            run = connection.execute
            run("PRAGMA defer_foreign_keys = ON")
            numbers = [row[0] for row in run("SELECT id FROM _collection WHERE vault = ?", (vault,))]
            for number in numbers:
                for stored in Table(number, ()).stored:
                    run(f"DROP TABLE IF EXISTS {stored}")
                drop_words(connection, number)
                self._sums.forget(number)
            of_it = "IN (SELECT id FROM _collection WHERE vault = ?)"
            for table, columns in self._tables():
                if "collection" in columns:
                    run(f"DELETE FROM {table} WHERE collection {of_it}", (vault,))
                elif "vault" in columns and table != "_collection":
                    run(f"DELETE FROM {table} WHERE vault = ?", (vault,))
            run("DELETE FROM _collection WHERE vault = ?", (vault,))
            run("DELETE FROM _vault WHERE id = ?", (vault,))
        self._entries.forget(numbers)
        self._vaults.forget(vault)

    def _tables(self) -> list[tuple[str, set[str]]]:
        """The tables of rows that belong to vaults, with their columns."""
        run = self._database.connection.execute
        names = [
            row[0]
            for row in run("SELECT name FROM sqlite_schema WHERE type = 'table' AND name GLOB '_[a-z]*'")
            if row[0] not in OF_NO_VAULT and row[0] != "_vault" and not row[0][2:].isdigit()
        ]
        return [(name, {row[1] for row in run(f"PRAGMA table_info({name})")}) for name in names]
