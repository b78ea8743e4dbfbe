"""Vaults: which ones a replica holds, and their membership links as they came."""

import time
from collections.abc import Iterable
from typing import Final, NamedTuple

from sealwire_client.replica.database import Database
from sealwire_client.replica.errors import ReplicaMisuse
from sealwire_protocol.ids import Author, StreamId, VaultId
from sealwire_protocol.messages import StreamKind

HEARD_MS_MIN: Final = 1_000
"""An author that is heard all the time is noted so often: people do not look closer, and a bulk load costs nothing."""


_AUTHOR: Final = slice(10, 14)
"""Where a packed rank holds its author."""


class HeldVault(NamedTuple):
    """A vault of this replica. `number` is its local name, `author` this device's index in its membership log.

    `doubt`: why a batch number may be used twice if the device goes on as this author (R16); None: it may go on.
    `synced_at`: when everything was last sent and applied, as far as it was remembered (`Vaults.in_step`).
    """

    number: int
    id: VaultId
    name: str
    origin: str
    author: Author
    next_batch: int
    doubt: str | None = None
    synced_at: int | None = None


class Vaults:
    """The vaults of a replica. Each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._heard_at: dict[tuple[int, Author], int] = {}

    def add(self, vault: VaultId, name: str, origin: str, author: Author) -> HeldVault:
        """Hold a vault from now on; the one held already if it is. Raises ReplicaMisuse if that differs."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO _vault (vault, name, origin, author) VALUES (?, ?, ?, ?)",
                (vault, name, origin, author),
            )
            held = next(held for held in self.all() if held.id == vault)
            if (held.origin, held.author) != (origin, author):
                raise ReplicaMisuse(
                    f"vault {vault.hex()} is held already, from {held.origin} and as author {held.author}"
                )
        return held

    def all(self) -> list[HeldVault]:
        """Every vault, the oldest first."""
        found = self._database.connection.execute(
            "SELECT id, vault, name, origin, author, next_batch, doubt, synced_at FROM _vault ORDER BY id"
        )
        return [HeldVault(*row) for row in found]

    def author(self, vault: int) -> Author:
        """This device's index in a vault's membership log."""
        found = self._database.connection.execute("SELECT author FROM _vault WHERE id = ?", (vault,)).fetchone()
        return Author(found[0])

    def enrol(self, vault: int, author: Author) -> HeldVault | None:
        """Be another member of a vault from now on, whose batches count from 1 again. None, and nothing changed, while
        a batch of the former one has no verdict.

        What was answered and not delivered yet keeps its rank; its batches get numbers below those to come.
        """
        with self._database.transaction() as connection:
            waits, after, before = connection.execute(
                "SELECT EXISTS (SELECT 1 FROM _batch WHERE vault = :vault), next_batch,"
                " (SELECT coalesce(min(batch), 1) FROM _sent WHERE vault = :vault) FROM _vault WHERE id = :vault",
                {"vault": vault},
            ).fetchone()
            if waits:
                return None
            # By more than they span, so that no number is met that is not moved yet.
            connection.execute("UPDATE _sent SET batch = batch - ? WHERE vault = ?", (after - min(before, 1), vault))
            connection.execute(
                "UPDATE _vault SET author = ?, next_batch = 1, doubt = NULL WHERE id = ?", (author, vault)
            )
            return next(held for held in self.all() if held.number == vault)

    def heard(self, vault: int, ranks: Iterable[bytes]) -> None:
        """Records of these packed ranks are being applied: note their authors. Within the caller's transaction, and
        written once in a while."""
        now, since = int(time.time() * 1000), self._heard_at
        authors = [Author(int.from_bytes(author, "big")) for author in {rank[_AUTHOR] for rank in ranks}]
        late = [author for author in authors if abs(now - since.get((vault, author), 0)) >= HEARD_MS_MIN]
        since.update({(vault, author): now for author in late})
        self._database.connection.executemany(
            "INSERT OR REPLACE INTO _heard (vault, author, at) VALUES (?, ?, ?)",
            [(vault, author, now) for author in late],
        )

    def last_heard(self, vault: int) -> dict[Author, int]:
        """When the last record of each author was applied here: this device's clock, Unix milliseconds."""
        found = self._database.connection.execute("SELECT author, at FROM _heard WHERE vault = ?", (vault,))
        return {Author(author): at for author, at in found}

    def in_step(self, vault: int, at: int) -> None:
        """Remember that at this time (as in `last_heard`) everything was sent and applied."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE _vault SET synced_at = ? WHERE id = ?", (at, vault))

    def move(self, vault: HeldVault, origin: str) -> bool:
        """Give a vault another relay, if none has been sent anything of it yet but its first link. True if it moved."""
        with self._database.transaction() as connection:
            (left,) = connection.execute(
                "SELECT (SELECT count(*) > 1 FROM _link WHERE vault = :vault)"
                " OR EXISTS (SELECT 1 FROM _batch WHERE vault = :vault)"
                " OR EXISTS (SELECT 1 FROM _sent WHERE vault = :vault)"
                " OR EXISTS (SELECT 1 FROM _stuck AS s JOIN _collection AS c ON c.id = s.collection"
                " WHERE c.vault = :vault)"
                " OR EXISTS (SELECT 1 FROM _collection WHERE vault = :vault AND (cursor_seq > 0 OR served_seq > 0))",
                {"vault": vault.number},
            ).fetchone()
            if not left:
                connection.execute("UPDATE _vault SET origin = ? WHERE id = ?", (origin, vault.number))
        return not left

    def add_links(self, vault: int, first: int, links: list[bytes]) -> None:
        """Append membership links with seqs from `first`. A link held already must be the same one.

        Raises ReplicaMisuse if they leave a gap or contradict what is held.
        """
        with self._database.transaction() as connection:
            held = self.links(vault)
            if not 1 <= first <= len(held) + 1 or any(
                old != new for old, new in zip(held[first - 1 :], links, strict=False)
            ):
                raise ReplicaMisuse(f"links from {first} do not continue the {len(held)} links held")
            connection.executemany(
                "INSERT OR IGNORE INTO _link (vault, seq, raw) VALUES (?, ?, ?)",
                [(vault, first + place, raw) for place, raw in enumerate(links)],
            )

    def cut_links(self, vault: int, count: int) -> None:
        """Forget all links but the first so many: the others do not verify."""
        self._database.connection.execute("DELETE FROM _link WHERE vault = ? AND seq > ?", (vault, count))

    def links(self, vault: int) -> list[bytes]:
        """The membership links in order; the first has seq 1."""
        found = self._database.connection.execute("SELECT raw FROM _link WHERE vault = ? ORDER BY seq", (vault,))
        return [row[0] for row in found]

    def kind_of(self, vault: int, stream: StreamId) -> StreamKind:
        """The kind of stream that a collection of this device is here."""
        found = self._database.connection.execute(
            "SELECT kind FROM _collection WHERE vault = ? AND stream = ?", (vault, stream)
        )
        return StreamKind(found.fetchone()[0])

    def confirm_kind(self, collection: int) -> None:
        """The relay has the collection as the kind of stream that it is here."""
        self._database.connection.execute(
            "UPDATE _collection SET settled = 1 WHERE id = ? AND settled = 0", (collection,)
        )

    def settle_kind(self, collection: int, kind: StreamKind) -> bool:
        """A collection was made here while another device made it as another kind of stream: that one counts when it is
        opened next. False, and nothing done, once the relay has told otherwise, or anything was sent: then it errs."""
        policy = "merge" if kind is StreamKind.GUARDED else "latest"
        settled = self._database.connection.execute(
            "UPDATE _collection SET kind = ?1, policy = ?2, settled = 1 WHERE id = ?3 AND settled = 0"
            " AND NOT EXISTS (SELECT 1 FROM _sent WHERE collection = ?3)",
            (int(kind), policy, collection),
        )
        return bool(settled.rowcount)

    def policy_of(self, vault: int, name: str) -> str | None:
        """The policy that a collection was opened with last; None if there is no such collection."""
        found = self._database.connection.execute(
            "SELECT policy FROM _collection WHERE vault = ? AND name = ?", (vault, name)
        ).fetchone()
        return found[0] if found else None

    def collections(self, vault: int) -> list[str]:
        """The names of a vault's collections in which anything was ever edited or received, in order."""
        found = self._database.connection.execute(
            "SELECT name FROM _collection AS c WHERE vault = ? AND (cursor_seq > 0 OR version_seen > 0"
            " OR EXISTS (SELECT 1 FROM _edit WHERE collection = c.id)"
            " OR EXISTS (SELECT 1 FROM _sent WHERE collection = c.id)"
            " OR EXISTS (SELECT 1 FROM _stuck WHERE collection = c.id)) ORDER BY name",
            (vault,),
        )
        return [row[0] for row in found]
