"""A collection as an app uses it: editing, reading, watching, and what cannot be kept."""

from collections.abc import Iterator

import pytest
import trio
import trio.testing

from sealwire_client.collection import CHANGES_WAITING_MAX, EDITS_TOGETHER_MAX
from sealwire_client.encoding import EncodingError
from sealwire_client.replica import Change, Kind
from sealwire_client.sealing import ValueTooLargeError
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_protocol.limits import PLAINTEXT_BYTES_MAX
from tests.client.party import Note, appended_twice, cut_off, founded, in_step, party, records, returned
from tests.support.virtual import virtual

ODD_KEYS = [
    "",
    " ",
    "a\0b",
    "\0",
    "\n",
    "ключ",
    "🔑",
    "e\u0301",
    "\u00e9",
    "\U0010ffff",
    "%_",
    "'; DROP TABLE x",
    "k" * 9_000,
]
HALF = "half of a pair: \ud800"


# --- editing and reading


@virtual
async def test_an_edit_is_seen_as_soon_as_it_is_made(open_device: OpenDevice) -> None:
    async with open_device("a") as device:
        notes = (await founded(device)).notes
        assert (len(notes), notes.get("x"), "x" in notes) == (0, None, False)
        await notes.put("x", Note("one", 1))
        assert (len(notes), notes.get("x"), "x" in notes, 5 in notes) == (1, Note("one", 1), True, False)
        await notes.put("x", Note("two"))
        assert dict(notes.items()) == {"x": Note("two")}
        await notes.delete("x")
        assert (len(notes), notes.get("x"), list(notes.items())) == (0, None, [])


@virtual
async def test_deleting_what_is_not_there_is_no_error(open_device: OpenDevice) -> None:
    async with party(open_device) as guests:
        a, b = guests
        await a.notes.delete("never was")
        await b.notes.put("x", Note("here"))
        await in_step(guests)
        assert a.dump() == {"x": "here"}


@virtual
async def test_items_come_in_order_and_by_prefix(open_device: OpenDevice) -> None:
    async with open_device("a") as device:
        notes = (await founded(device)).notes
        await notes.put_many((key, Note(key)) for key in ("b", "a", "ab", "aa", "b\U0010ffff", "c"))
        assert [key for key, _ in notes.items()] == ["a", "aa", "ab", "b", "b\U0010ffff", "c"]
        assert [key for key, _ in notes.items("a")] == ["a", "aa", "ab"]
        assert [key for key, _ in notes.items("b")] == ["b", "b\U0010ffff"]
        assert [key for key, _ in notes.items("b\U0010ffff")] == ["b\U0010ffff"]


@virtual
async def test_any_text_is_a_key_everywhere(open_device: OpenDevice) -> None:
    async with party(open_device) as guests:
        a, b = guests
        await a.notes.put_many((key, Note(f"value {number}")) for number, key in enumerate(ODD_KEYS))
        await in_step(guests)
        for number, key in enumerate(ODD_KEYS):
            assert b.notes.get(key) == Note(f"value {number}"), repr(key[:20])
            assert [found for found, _ in b.notes.items(key) if found == key] == [key]
            await b.notes.delete(key)
        await in_step(guests)
        assert len(a.notes) == 0


@virtual
async def test_what_is_no_text_is_no_key(open_device: OpenDevice) -> None:
    async with open_device("a") as device:
        notes = (await founded(device)).notes
        with pytest.raises(EncodingError, match="surrogate"):
            await notes.put(HALF, Note("x"))
        with pytest.raises(EncodingError, match="surrogate"):
            await notes.delete(HALF)
        assert notes.get(HALF) is None
        assert HALF not in notes
        assert list(notes.items(HALF)) == []
        with pytest.raises(EncodingError):
            await notes.put("x", Note(HALF))


@pytest.mark.parametrize("long_key", [True, False])
def test_what_does_not_fit_into_a_record_fails_at_once_and_nothing_else_does(
    open_device: OpenDevice, memory_relay: MemoryRelay, long_key: bool
) -> None:
    @virtual
    async def test() -> None:
        async with party(open_device) as guests:
            a, b = guests
            key, note = ("k" * PLAINTEXT_BYTES_MAX, Note("x")) if long_key else ("x", Note("x" * PLAINTEXT_BYTES_MAX))
            with pytest.raises(ValueTooLargeError, match="split it"):
                await a.notes.put(key, note)
            if long_key:
                with pytest.raises(ValueTooLargeError):
                    await a.notes.delete(key)
            largest = Note("x" * (PLAINTEXT_BYTES_MAX - 100))
            await a.notes.put("largest", largest)
            await in_step(guests)
            assert b.notes.get("largest") == largest
            assert records(memory_relay, a.vault) == 1

    test()


@virtual
async def test_many_are_put_in_one_go(open_device: OpenDevice) -> None:
    async with party(open_device) as guests:
        a, b = guests
        assert await a.notes.put_many({}) == 0
        assert await a.notes.put_many({"x": Note("one"), "y": Note("two")}) == 2
        assert await a.notes.put_many([("x", Note("three")), ("x", Note("four"))]) == 2
        await in_step(guests)
        assert b.dump() == {"x": "four", "y": "two"}


@virtual
async def test_what_was_put_before_a_bad_entry_stays_and_its_own_transaction_does_not(open_device: OpenDevice) -> None:
    def entries() -> Iterator[tuple[str, Note]]:
        for number in range(EDITS_TOGETHER_MAX + 5):
            yield f"key {number:06}", Note("fine")
        yield "bad", Note("x" * PLAINTEXT_BYTES_MAX)

    async with open_device("a") as device:
        notes = (await founded(device)).notes
        with pytest.raises(ValueTooLargeError):
            await notes.put_many(entries())
        assert len(notes) == EDITS_TOGETHER_MAX


@virtual
async def test_an_edit_that_was_cancelled_was_made_and_is_sent_or_was_never_begun(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device, 1) as guests:
        (a,) = guests
        with a.notes.changes() as changes:
            with trio.CancelScope() as scope:
                scope.cancel()
                await a.notes.put("x", Note("never"))
            assert a.dump() == {}
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(a.notes.put, "y", Note("made"))
                    await trio.lowlevel.cancel_shielded_checkpoint()
                    await trio.lowlevel.cancel_shielded_checkpoint()
                    scope.cancel()
            assert a.dump() == {"y": "made"}
            assert await anext(changes) == [Change("y", Kind.INSERTED)]
        await trio.sleep(1)
        assert records(memory_relay, a.vault) == 1


@virtual
async def test_edits_of_many_tasks_at_once_are_all_made(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with party(open_device) as guests:
        a, b = guests

        async def work(guest: int) -> None:
            for number in range(20):
                await guests[guest % 2].notes.put(f"{guest}/{number}", Note("x", number))

        async with trio.open_nursery() as nursery:
            for guest in range(10):
                nursery.start_soon(work, guest)
        await in_step(guests)
        assert len(a.notes) == len(b.notes) == 200
        assert appended_twice(memory_relay) == []


# --- watching


@virtual
async def test_changes_of_this_device_and_others_are_told_alike(open_device: OpenDevice) -> None:
    async with party(open_device) as guests:
        a, b = guests
        with b.notes.changes() as changes:
            await a.notes.put("x", Note("one"))
            assert await anext(changes) == [Change("x", Kind.INSERTED)]
            await b.notes.put("x", Note("two"))
            assert await anext(changes) == [Change("x", Kind.UPDATED)]
            await in_step(guests)
            await a.notes.delete("x")
            assert await anext(changes) == [Change("x", Kind.DELETED)]


@virtual
async def test_a_listener_that_is_slow_is_told_to_look_at_everything(open_device: OpenDevice) -> None:
    async with open_device("a") as device:
        notes = (await founded(device)).notes
        with notes.changes() as slow:
            for first in range(0, CHANGES_WAITING_MAX, 100):
                await notes.put_many((f"key {number}", Note("x")) for number in range(first, first + 100))
            told = await anext(slow)
            assert told is not None and len(told) == CHANGES_WAITING_MAX
            await notes.put("key 0", Note("between"))
            for first in range(0, CHANGES_WAITING_MAX, 100):
                await notes.put_many((f"key {number}", Note("y")) for number in range(first, first + 100))
            assert await anext(slow) is None
            await notes.put("one more", Note("z"))
            assert await anext(slow) == [Change("one more", Kind.INSERTED)]


@virtual
async def test_more_changes_at_once_than_are_named_are_told_as_such(open_device: OpenDevice) -> None:
    async with party(open_device) as guests:
        a, b = guests
        with a.notes.changes() as own, b.notes.changes() as theirs:
            await a.notes.put_many((f"key {n}", Note("x")) for n in range(CHANGES_WAITING_MAX + 1))
            assert await anext(own) is None
            await in_step(guests)
            assert await anext(theirs) is None


@virtual
async def test_a_listener_hears_only_while_it_listens(open_device: OpenDevice) -> None:
    async with open_device("a") as device:
        notes = (await founded(device)).notes
        with notes.changes() as changes:
            pass
        await notes.put("x", Note("one"))
        with trio.move_on_after(1) as waiting:
            await anext(changes)
        assert waiting.cancelled_caught


@virtual
async def test_changes_that_arrive_while_the_connection_breaks_are_told(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, b = guests
        seen: set[str] = set()
        with b.notes.changes() as changes:

            async def listen() -> None:
                async for told in changes:
                    seen.update(change.key for change in told or ())

            async with trio.open_nursery() as nursery:
                nursery.start_soon(listen)
                for number in range(30):
                    await in_step(guests)
                    memory_relay.cut_after(number % 6 + 1)
                    await a.notes.put(f"key {number}", Note("x"))
                await in_step(guests)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        assert seen == set(b.dump())


@virtual
async def test_a_value_that_another_edit_beat_while_offline_is_told_as_changed(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, b = guests
        await a.notes.put("x", Note("first"))
        await in_step(guests)
        with a.notes.changes() as ours, b.notes.changes() as theirs:
            async with cut_off(memory_relay):
                await a.notes.put("x", Note("a's"))
                await b.notes.put("x", Note("b's"))
                await anext(ours)
                await anext(theirs)
            await in_step(guests)
            loser, changes = (a, ours) if a.notes.get("x") == Note("b's") else (b, theirs)
            assert await anext(changes) == [Change("x", Kind.UPDATED)]
            assert loser.dump() == {"x": "b's" if loser is a else "a's"}


@virtual
async def test_what_was_put_is_there_after_closing(open_device: OpenDevice) -> None:
    async with open_device("a") as device:
        notes = (await founded(device)).notes
        await notes.put_many((f"key {n}", Note("x", n)) for n in range(100))
    async with open_device("a") as device:
        assert len((await returned(device)).notes) == 100
