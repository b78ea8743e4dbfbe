"""Terms as the store keeps them: scenarios of R7 and R8."""

from sealwire_protocol.ids import NO_TERM, Term, TermStart
from sealwire_relay.store.interface import Store
from tests.relay.store.places import Place, Vault, make_vault, stream_write, whole, write
from tests.support.aio import asyncio_test


async def _terms(store: Store, vault: Vault) -> tuple[TermStart, ...]:
    told = await store.subscription(vault.id, vault.admin, [vault.stream])
    assert told is not None
    return told.streams[0].terms


async def _push(store: Store, vault: Vault, term: Term, head: int, body: bytes = b"x") -> bool:
    [done] = await store.append([write(vault, term, [stream_write(vault.stream, head, body)])])
    return done


@asyncio_test
async def test_each_process_opens_a_term_of_its_own(fresh: Place) -> None:
    async with fresh.opened() as one, fresh.opened() as two:
        assert await one.current_term() == NO_TERM
        first, second = await one.open_term(), await two.open_term()
        assert (first.number, second.number) == (1, 2)
        assert first.id != second.id
        assert await one.current_term() == await two.current_term() == second


@asyncio_test
async def test_two_relays_that_take_turns_write_one_history(fresh: Place) -> None:
    """The later process's term is adopted by the earlier one; with a term each, both would cry loss by turns."""
    async with fresh.opened() as one, fresh.opened() as two:
        first = await one.open_term()
        vault = await make_vault(one, first)
        assert await _push(one, vault, first, 0)
        second = await two.open_term()
        assert not await _push(one, vault, first, 1)
        adopted = await one.current_term()
        assert adopted == second
        for turn, store in enumerate([one, two, one, two], start=1):
            assert await _push(store, vault, adopted, turn)
        assert await _terms(one, vault) == (TermStart(first, 0), TermStart(second, 1))
        page = await two.read(vault.id, vault.stream, 0, 0)
        assert page is not None
        assert (page.term, page.head) == (second, 5)


@asyncio_test
async def test_a_term_in_which_a_stream_was_not_written_leaves_no_trace_in_it(fresh: Place) -> None:
    async with fresh.opened() as store:
        first = await store.open_term()
        vault = await make_vault(store, first)
        assert await _push(store, vault, first, 0, b"abc")
        for _ in range(3):
            term = await store.open_term()
        assert await _terms(store, vault) == (TermStart(first, 0),)
        page = await store.read(vault.id, vault.stream, 0, 100)
        assert page is not None
        assert page.term == first
        assert await _push(store, vault, term, 3, b"d")
        assert await _terms(store, vault) == (TermStart(first, 0), TermStart(term, 3))


@asyncio_test
async def test_a_restored_relay_writes_the_same_seqs_under_another_term(fresh: Place) -> None:
    """R8: a device at seq 100 of a relay restored to 90 can tell the new 91 to 100 from those it has."""
    async with fresh.opened() as store:
        first = await store.open_term()
        vault = await make_vault(store, first)
        assert await _push(store, vault, first, 0, b"a" * 90)
    await fresh.back_up()
    async with fresh.opened() as store:
        assert await _push(store, vault, first, 90, b"b" * 10)
        lost = await store.open_term()
        assert await _push(store, vault, lost, 100, b"c")
    await fresh.restore()
    async with fresh.opened() as store:
        assert not await _push(store, vault, lost, 90, b"d" * 13)
        term = await store.open_term()
        assert term.number == lost.number
        assert term.id != lost.id
        assert not await _push(store, vault, first, 90, b"d" * 13)
        assert await _push(store, vault, term, 90, b"d" * 13)
        assert await _terms(store, vault) == (TermStart(first, 0), TermStart(term, 90))
        assert [segment.last for segment in await whole(store, vault, vault.stream)] == [90, 103]
