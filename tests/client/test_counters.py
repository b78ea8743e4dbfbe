"""Counters: several devices add at once, and each addition counts once."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from sealwire_client import EncodingError, TransactionError, counting, tallies
from sealwire_client.counting import CounterSchema
from sealwire_client.policies import strict
from sealwire_client.replica import Delivery, Differing, Incoming, Pinned, Place, Replica, Room
from sealwire_client.tallies import Addition
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_protocol.errors import Outcome
from sealwire_protocol.ids import Author, Position, StreamId, Term, TermStart, VaultId
from sealwire_protocol.links import Role
from sealwire_protocol.messages import StreamKind
from sealwire_protocol.segment import Rank
from tests.client.party import founded, in_step, joined
from tests.client.replica.support import apply
from tests.support.virtual import virtual


@dataclass
class Account:
    amount: int


@virtual
async def test_additions_of_two_devices_made_offline_all_count(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with open_device("a") as a, open_device("b") as b:
        home = await founded(a)
        other = await joined(b, home.vault)
        hits, same = await home.vault.counters("hits"), await other.vault.counters("hits")
        memory_relay.stop()
        for _ in range(3):
            await hits.add("page")
        await same.add("page", 10)
        await same.add("page", -1)
        assert (hits.get("page"), same.get("page"), hits.get("other")) == (3, 9, 0)
        memory_relay.start()
        for _ in range(2):
            await home.vault.synced()
            await other.vault.synced()
        assert (hits.get("page"), same.get("page")) == (12, 12)
        assert (hits.mine("page"), same.mine("page")) == (3, 9)
        assert home.vault.select("SELECT key, value FROM hits").rows == [("page", 12)]


@virtual
async def test_a_reset_takes_away_what_was_seen_and_no_more(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with open_device("a") as a, open_device("b") as b:
        home = await founded(a)
        other = await joined(b, home.vault)
        hits, same = await home.vault.counters("hits"), await other.vault.counters("hits")
        await hits.add("page", 5)
        await home.vault.synced()
        await other.vault.synced()
        memory_relay.stop()
        await hits.reset("page")
        await same.add("page", 2)
        memory_relay.start()
        for _ in range(2):
            await home.vault.synced()
            await other.vault.synced()
        assert (hits.get("page"), same.get("page")) == (2, 2)


@virtual
async def test_cuts_and_lost_answers_count_nothing_twice(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with open_device("a") as a, open_device("b") as b:
        home = await founded(a)
        other = await joined(b, home.vault)
        hits, same = await home.vault.counters("hits"), await other.vault.counters("hits")
        for messages in range(1, 12):
            memory_relay.lose_answers(1)
            await hits.add("page")
            memory_relay.cut_after(messages)
            await same.add("page")
            await home.vault.synced()
            await other.vault.synced()
        await home.vault.synced()
        assert (hits.get("page"), same.get("page")) == (22, 22)


@virtual
async def test_a_device_that_starts_again_goes_on_with_its_own_tally(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with open_device("a") as a:
        home = await founded(a)
        hits = await home.vault.counters("hits")
        await hits.add("page", 3)
        await home.vault.synced()
    async with open_device("a") as a:
        vault = a.vaults[0]
        hits = await vault.counters("hits")
        await hits.add("page", 4)
        await vault.synced()
        assert (hits.get("page"), hits.mine("page")) == (7, 7)


@virtual
async def test_a_transaction_counts_as_a_whole(open_device: OpenDevice) -> None:
    async with open_device("a") as a:
        home = await founded(a)
        hits = await home.vault.counters("hits")
        async with home.vault.transaction() as transaction:
            await hits.add("page", 2)
            await hits.add("page", 3)
            await hits.add("site")
            assert hits.get("page") == 5
        await transaction.durable()
        assert dict(hits.items()) == {"page": 5, "site": 1}

        async def change_ones_mind() -> None:
            async with home.vault.transaction():
                await hits.add("page", 2)
                raise RuntimeError("changed its mind")

        with pytest.raises(RuntimeError, match="changed its mind"):
            await change_ones_mind()
        assert (hits.get("page"), hits.mine("page")) == (5, 5)


@virtual
async def test_what_cannot_be_counted_is_refused(open_device: OpenDevice) -> None:
    async with open_device("a") as a:
        home = await founded(a)
        hits = await home.vault.counters("hits")
        accounts = await home.vault.collection("accounts", Account, policy=strict())
        with pytest.raises(EncodingError, match="takes integers"):
            await hits.add("page", 1.5)  # type: ignore[arg-type]
        with pytest.raises(EncodingError, match="takes at most"):
            await hits.add("page", 2**60)
        assert (hits.get("page"), hits.mine("page")) == (0, 0)

        async def count_and_be_strict() -> None:
            async with home.vault.transaction():
                await hits.add("page")
                await accounts.put("a", Account(1))

        with pytest.raises(TransactionError, match="strict"):
            await count_and_be_strict()
        assert len(hits) == 0


@virtual
async def test_who_watches_hears_of_additions(open_device: OpenDevice) -> None:
    async with open_device("a") as a, open_device("b") as b:
        home = await founded(a)
        other = await joined(b, home.vault)
        hits, same = await home.vault.counters("hits"), await other.vault.counters("hits")
        with same.changes() as changes, trio.fail_after(60):
            await hits.add("page")
            heard = await anext(aiter(changes))
            assert heard is not None
            assert [change.key for change in heard] == ["page"]
        await in_step([home, other])


@virtual
async def test_both_copies_of_a_folder_count_all_that_each_adds(
    tmp_path: Path, open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with open_device("a") as a:
        home = await founded(a)
        hits = await home.vault.counters("hits")
        await hits.add("page", 2)
        await home.vault.synced()
        memory_relay.stop()
        await hits.add("page", 30)
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    memory_relay.start()
    async with open_device("a") as a, open_device("copy") as copy:
        one, other = a.vaults[0], copy.vaults[0]
        hits, same = await one.counters("hits"), await other.counters("hits")
        await one.synced()
        memory_relay.stop()
        await hits.add("page", 100)
        await same.add("page", 4000)
        await same.add("other", 1)
        memory_relay.start()
        for _ in range(3):
            await one.synced()
            await other.synced()
        assert hits.get("page") == same.get("page")
        # The 30 was unsent when the folder was copied: a copy cannot know that the other sends it too, unless it comes
        # so much later that it has seen it.
        assert hits.get("page") in (2 + 30 + 100 + 4000, 2 + 30 + 30 + 100 + 4000)
        assert hits.get("other") == 1
        assert (hits.mine("page"), same.mine("page")) == (2 + 30 + 100, 2 + 30 + 4000)


@virtual
async def test_what_was_given_up_is_not_added_later(open_device: OpenDevice) -> None:
    async with open_device("a") as a, open_device("reader") as reader:
        home = await founded(a)
        invite = await home.vault.invite(role=Role.READER)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(invite.joined)
            vault = await reader.join(invite.link)
        hits, same = await home.vault.counters("hits"), await vault.counters("hits")
        await hits.add("page", 1)
        for each in (home.vault, vault):
            await each.synced()
        written = await same.add("page", 500)
        assert (await written.durable()).place is Place.REFUSED
        assert (same.get("page"), same.mine("page")) == (501, 500)
        assert await vault.discard("hits", "page")
        assert (same.get("page"), same.mine("page")) == (1, 0)
        await same.add("page", 2)
        assert (same.get("page"), same.mine("page")) == (3, 2)


def test_what_is_stuck_moves_to_the_new_author_too(tmp_path: Path) -> None:
    """Else it would be sent again as the former one's, of whom another copy may have sent something else by now."""
    replica = Replica(tmp_path)
    held = replica.vaults.add(VaultId(bytes(16)), "home", "wss://relay.example.org", Author(3))
    schema = CounterSchema()
    hits = replica.entries.open(
        held.number, "hits", StreamId(bytes(8)), StreamKind.GUARDED, tallies.POLICY, schema.columns, schema
    )
    with replica.transaction():
        replica.edit(hits, [tallies.counted(replica, hits, Addition("page", 5))])
        replica.outbox.aside.put_edit(replica.outbox.edits.marks(hits.number, ["page"])[0].n, "too large")
        replica.vaults.enrol(held.number, Author(7))
        tallies.move(replica, held.number, 3, 7)
        replica.outbox.aside.retry(hits, "page")
        replica.edit(hits, [tallies.counted(replica, hits, Addition("page", 2))])
    value = replica.claims.shown(hits, "page").value
    replica.close()
    assert (counting.total(value), counting.of_author(value, 3)) == (7, counting.NOTHING)
    assert counting.of_author(value, 7) == counting.Part(2, 7)


def test_a_counter_that_was_not_given_back_and_is_discarded_loses_no_more_than_the_relay_has(tmp_path: Path) -> None:
    """The relay has an older state, 3 of 5, and has refused to take back the lost one."""
    replica = Replica(tmp_path)
    held = replica.vaults.add(VaultId(bytes(16)), "home", "wss://relay.example.org", Author(3))
    schema, old, new = CounterSchema(), Term(1, b"term-one"), Term(2, b"term-two")
    hits = replica.entries.open(
        held.number, "hits", StreamId(bytes(8)), StreamKind.GUARDED, tallies.POLICY, schema.columns, schema
    )

    def came(seq: int, count: int, subtotal: int) -> Incoming:
        rank = Rank(seq, 0, 3, b"saltsalt").pack()
        return Incoming(seq, "page", rank, b"key1", 0, *hits.read(counting.added(None, 3, count, subtotal)))

    apply(replica, hits, Delivery(old, 0, 2), [came(2, 2, 5)])
    replica.database.connection.execute("INSERT INTO _counted VALUES (1, 'page', 3, 2, 5)")
    first = came(1, 1, 3)
    place, rank = replica.database.connection.execute(f"SELECT rowid, _rank FROM {hits.table.name}").fetchone()
    pinned = Pinned(Position(old, 1), (TermStart(old, 0),), 1, 0, 0, 0, new)
    differing = [Differing(place, rank, first.rank)]
    assert replica.reconciling.settle(
        hits, Position(old, 2), pinned, differing, [([first], [])], lambda lost: b"<", Room(9, 999)
    )
    replica.outbox.answer(held.number, 1, Outcome.QUOTA, (), ())
    tallies.discard(replica, hits, "page")
    with replica.transaction():
        replica.edit(hits, [tallies.counted(replica, hits, Addition("page", 10))])
    value = replica.claims.shown(hits, "page").value
    replica.close()
    assert value is not None
    assert counting.total(value) == 13
