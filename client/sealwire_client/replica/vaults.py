"""Vaults: which ones a replica holds, and their membership links as they came."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from sealwire_client.replica.database import Database
from sealwire_client.replica.entries import INTERNAL
from sealwire_client.replica.errors import ReplicaMisuse
from sealwire_protocol.ids import Author, DeviceKey, StreamId, VaultId
from sealwire_protocol.links import Adopted, Role
from sealwire_protocol.messages import StreamKind

HEARD_MS_MIN: Final = 1_000
"""An author that is heard all the time is noted so often: people do not look closer, and a bulk load costs nothing."""


_AUTHOR: Final = slice(10, 14)
"""Where a packed rank holds its author."""


class Unissued(NamedTuple):
    """A device that this one is to add to the membership log again (R15). `parted`: how often it had left or been
    removed by the log that stands; once more, and it is not to be added."""

    device: DeviceKey
    box_key: bytes
    role: Role
    name: str
    parted: int = 0


class HeldVault(NamedTuple):
    """A vault of this replica. `number` is its local name, `author` this device's index in its membership log.

    `doubt`: why a batch number may be used twice if the device goes on as this author (R16); None: it may go on.
    `synced_at`: when everything was last sent and applied, as far as it was remembered (`Vaults.in_step`).
    `other_keys`: see `Vaults.keep_keys`.
    """

    number: int
    id: VaultId
    name: str
    origin: str
    author: Author
    next_batch: int
    doubt: str | None = None
    synced_at: int | None = None
    other_keys: tuple[tuple[int, Adopted], ...] = ()


class Vaults:
    """The vaults of a replica. Each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._heard_at: dict[tuple[int, Author], int] = {}
        self._gone: set[int] = set()

    def add(self, vault: VaultId, name: str, origin: str, author: Author, token: bytes = b"") -> HeldVault:
        """Hold a vault from now on, and await it no longer; the one held already if it is. `token` is shown to a relay
        that does not know it. Raises ReplicaMisuse if what is held differs."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO _vault (id, vault, name, origin, author, token)"
                " VALUES ((SELECT max(coalesce(max(id), 0), ?) + 1 FROM _vault), ?, ?, ?, ?, ?)",
                (max(self._gone, default=0), vault, name, origin, author, token),
            )
            connection.execute("DELETE FROM _awaited WHERE vault = ?", (vault,))
            held = next(held for held in self.all() if held.id == vault)
            if (held.origin, held.author) != (origin, author):
                raise ReplicaMisuse(
                    f"vault {vault.hex()} is held already, from {held.origin} and as author {held.author}"
                )
        return held

    def forget(self, vault: int) -> None:
        """A vault has gone: its number stands for no other one in this run, for somebody may still know it by that."""
        self._gone.add(vault)
        self._heard_at = {name: at for name, at in self._heard_at.items() if name[0] != vault}

    def has_gone(self, vault: int) -> bool:
        """True if a vault has gone in this run."""
        return vault in self._gone

    def all(self) -> list[HeldVault]:
        """Every vault, the oldest first."""
        found = self._database.connection.execute(
            "SELECT id, vault, name, origin, author, next_batch, doubt, synced_at FROM _vault ORDER BY id"
        )
        return [HeldVault(*row)._replace(other_keys=self._other_keys(row[0])) for row in found]

    def _other_keys(self, vault: int) -> tuple[tuple[int, Adopted], ...]:
        found = self._database.connection.execute(
            "SELECT under, epoch, commitment, wrapped FROM _other_key WHERE vault = ? ORDER BY epoch, commitment",
            (vault,),
        )
        return tuple((under, Adopted(epoch, commitment, key)) for under, epoch, commitment, key in found)

    def keep_keys(self, vault: int, under: int, keys: Iterable[Adopted]) -> None:
        """Keep these keys of other ends of the membership log, each wrapped under the key of this epoch, in the place
        of those that were kept. Within the caller's transaction."""
        execute = self._database.connection.execute
        execute("DELETE FROM _other_key WHERE vault = ?", (vault,))
        for key in keys:
            execute(
                "INSERT INTO _other_key (vault, under, epoch, commitment, wrapped) VALUES (?, ?, ?, ?, ?)",
                (vault, under, *key),
            )

    def proofs(self, vault: int) -> tuple[bytes, bytes]:
        """What to show to a relay that does not know a vault: (registration token, receipt), each may be empty."""
        found = self._database.connection.execute("SELECT token, receipt FROM _vault WHERE id = ?", (vault,)).fetchone()
        return found[0], found[1]

    def keep_token(self, vault: int, token: bytes) -> None:
        """Show this registration token from now on."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE _vault SET token = ? WHERE id = ?", (token, vault))

    def keep_receipt(self, vault: int, receipt: bytes) -> None:
        """Remember what the relay has told, to know the vault again. Within the caller's transaction."""
        self._database.connection.execute(
            "UPDATE _vault SET receipt = :receipt WHERE id = :vault AND receipt <> :receipt",
            {"vault": vault, "receipt": receipt},
        )

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

    def heard(self, vault: int, ranks: Iterable[bytes], is_news: Callable[[bytes], bool]) -> None:
        """Records of these packed ranks are being applied: note their authors, of those that are news. Within the
        caller's transaction, and written once in a while."""
        now, since = int(time.time() * 1000), self._heard_at
        authors = {author: Author(int.from_bytes(author, "big")) for author in {rank[_AUTHOR] for rank in ranks}}
        due = {key for key, author in authors.items() if abs(now - since.get((vault, author), 0)) >= HEARD_MS_MIN}
        late = []
        for rank in ranks if due else ():
            if rank[_AUTHOR] in due and is_news(rank):
                due.remove(rank[_AUTHOR])
                late.append(authors[rank[_AUTHOR]])
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

    def move(self, vault: HeldVault, origin: str, token: bytes = b"") -> bool:
        """Give a vault another relay, if none has been sent anything of it yet but its first link, and the registration
        token for that. True if it moved."""
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
                connection.execute(
                    "UPDATE _vault SET origin = ?, token = ?, receipt = x'' WHERE id = ?", (origin, token, vault.number)
                )
        return not left

    def go_to(self, vault: int, origin: str, *, keeps_token: bool) -> HeldVault:
        """Be at another relay from now on, with no receipt of the former one, and no token unless it is for this one.
        Within the caller's transaction."""
        self._database.connection.execute(
            "UPDATE _vault SET origin = ?, receipt = x'', token = iif(?, token, x'') WHERE id = ?",
            (origin, keeps_token, vault),
        )
        return next(held for held in self.all() if held.number == vault)

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

    def replace_links(self, vault: int, after: int, links: Sequence[bytes]) -> None:
        """Hold these links behind the first `after`, in the place of all that were there. Within the caller's
        transaction."""
        execute = self._database.connection.execute
        self.cut_links(vault, after)
        execute("DELETE FROM _heard WHERE vault = ? AND author > ?", (vault, after))
        self._heard_at = {name: at for name, at in self._heard_at.items() if name[0] != vault}
        self._database.connection.executemany(
            "INSERT INTO _link (vault, seq, raw) VALUES (?, ?, ?)",
            [(vault, seq, raw) for seq, raw in enumerate(links, after + 1)],
        )

    def add_unissued(self, vault: int, devices: Iterable[Unissued]) -> None:
        """Remember whom this device is to add again."""
        self._database.connection.executemany(
            "INSERT OR REPLACE INTO _unissued (vault, device, box_key, role, name, parted) VALUES (?, ?, ?, ?, ?, ?)",
            [(vault, *each) for each in devices],
        )

    def unissued(self, vault: int) -> list[Unissued]:
        """Whom this device is to add again."""
        found = self._database.connection.execute(
            "SELECT device, box_key, role, name, parted FROM _unissued WHERE vault = ? ORDER BY device", (vault,)
        )
        return [Unissued(DeviceKey(device), box_key, Role(role), *rest) for device, box_key, role, *rest in found]

    def forget_unissued(self, vault: int, devices: Iterable[Unissued]) -> None:
        """These need not be added again."""
        self._database.connection.executemany(
            "DELETE FROM _unissued WHERE vault = ? AND device = ?", [(vault, each.device) for each in devices]
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

    def is_signed(self, vault: int, name: str) -> bool:
        """True if there is such a collection, and its entries are signed."""
        found = self._database.connection.execute(
            "SELECT signed FROM _collection WHERE vault = ? AND name = ?", (vault, name)
        ).fetchone()
        return bool(found and found[0])

    def collections(self, vault: int) -> list[str]:
        """The names of a vault's collections in which anything was ever edited or received, in order."""
        found = self._database.connection.execute(
            f"SELECT name FROM _collection AS c WHERE vault = ? AND NOT {INTERNAL}"
            " AND (cursor_seq > 0 OR version_seen > 0"
            " OR EXISTS (SELECT 1 FROM _edit WHERE collection = c.id)"
            " OR EXISTS (SELECT 1 FROM _sent WHERE collection = c.id)"
            " OR EXISTS (SELECT 1 FROM _stuck WHERE collection = c.id)) ORDER BY name",
            (vault,),
        )
        return [row[0] for row in found]
