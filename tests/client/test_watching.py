"""`watch`: what becomes of entries, as values."""

import trio

from sealwire_client.live import Live
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_client.watching import Watched
from tests.client.party import Note, in_step, party
from tests.support.virtual import virtual


async def told(live: Live[Watched[Note]]) -> Watched[Note]:
    """What is told next."""
    with trio.fail_after(60):
        return await anext(live)


@virtual
async def test_first_come_the_present_entries_then_what_became_of_them(open_device: OpenDevice) -> None:
    async with party(open_device) as [a, b]:
        await a.notes.put_many({"a1": Note("one"), "a2": Note("two"), "b": Note("other")})
        async with a.notes.watch(prefix="a") as live:
            present = {"a1": Note("one"), "a2": Note("two")}
            assert await told(live) == Watched(present, inserted=present)
            await in_step([a, b])
            await b.notes.put("a0", Note("zero"))
            found = await told(live)
            assert found == Watched({"a0": Note("zero"), **present}, inserted={"a0": Note("zero")})
            assert list(found.values) == ["a0", "a1", "a2"]
            await a.notes.put("b", Note("not watched"))
            async with a.vault.transaction():
                await a.notes.put("a1", Note("1"))
                await a.notes.delete("a2")
            found = await told(live)
            assert (found.updated, found.deleted) == ({"a1": Note("1")}, ("a2",))
            assert found.values == {"a0": Note("zero"), "a1": Note("1")}


@virtual
async def test_one_entry_comes_and_goes(open_device: OpenDevice) -> None:
    async with party(open_device, 1) as [a], a.notes.watch("x") as live:
        assert await told(live) == Watched({})
        await a.notes.put("x", Note("here"))
        assert (await told(live)).inserted == {"x": Note("here")}
        await a.notes.put("xx", Note("another"))
        await a.notes.delete("x")
        assert await told(live) == Watched({}, deleted=("x",))


@virtual
async def test_a_whole_collection_is_the_empty_prefix(open_device: OpenDevice) -> None:
    async with party(open_device, 1) as [a], a.notes.watch() as live:
        await a.notes.put_many({"\U0010ffff": Note("last"), "": Note("first")})
        assert list((await told(live)).values) == ["", "\U0010ffff"]


@virtual
async def test_counters_are_watched_as_numbers(open_device: OpenDevice) -> None:
    async with party(open_device) as [a, b]:
        here, there = await a.vault.counters("hits"), await b.vault.counters("hits")
        async with here.watch("x") as one, here.watch() as every:
            assert (await anext(one)).values == (await anext(every)).values == {}
            await here.add("x", 2)
            assert (await anext(one)).inserted == (await anext(every)).inserted == {"x": 2}
            await there.add("x", 3)
            assert (await anext(one)).updated == (await anext(every)).updated == {"x": 5}
