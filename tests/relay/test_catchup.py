"""Catching up: pages as frames; what is recent costs no read, and what many want at once costs one."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from sealwire_protocol import codec
from sealwire_protocol.ids import Position, Term, VaultId
from sealwire_protocol.limits import DELIVER_HEAD_BYTES_MAX, SEGMENT_BYTES_MAX
from sealwire_protocol.messages import Deliver
from sealwire_protocol.segment import encode_segment
from sealwire_relay.catchup import deliver_frames
from sealwire_relay.store.interface import Page, StoreDownError, StoreError
from sealwire_relay.store.segments import StoredSegment
from tests.relay.test_fanout import filled
from tests.support.aio import asyncio_test
from tests.support.device import Device, Identity, group, record, stream_id
from tests.support.relay import Mishap, TroubledStore, memory_store, running, turns_until

ANNA, BERT = Identity(1), Identity(2)
TODOS, NOTES = stream_id(1), stream_id(2)
TERM = Term(3, b"whatever")
VAULT = VaultId(bytes(16))
PAGE_BYTES = 131_072


def page(*sizes: int, cleaned_to: int = 0, start: int = 0) -> Page:
    """A page of fresh segments with so many records each."""
    segments, at = [], start
    for size in sizes:
        body = encode_segment([record() for _ in range(size)])
        segments.append(StoredSegment(at, at + size, body))
        at += size
    return Page(TERM, at, 0, 0, 0, cleaned_to, tuple(segments))


def delivers(found: Page) -> list[Deliver]:
    """The page's frames, decoded."""
    out = []
    for last, frame in deliver_frames(VAULT, TODOS, found):
        message = codec.decode(frame)
        assert isinstance(message, Deliver)
        assert message.last == last
        out.append(message)
    return out


def test_small_neighbours_are_sent_as_one() -> None:
    found = page(1, 2, 3)
    (only,) = delivers(found)
    assert (only.prev, only.last, only.term) == (0, 6, TERM)
    assert only.segment == b"".join(segment.body for segment in found.segments)


def test_segments_that_the_cleaner_has_touched_are_sent_as_they_are() -> None:
    assert [(d.prev, d.last) for d in delivers(page(1, 2, 3, 4, cleaned_to=3))] == [(0, 1), (1, 3), (3, 10)]


def test_what_is_joined_stays_within_a_segment() -> None:
    sent = delivers(page(*[1000] * 9))
    assert [(d.prev, d.last) for d in sent] == [(0, 3000), (3000, 6000), (6000, 9000)]
    assert all(len(d.segment) <= SEGMENT_BYTES_MAX for d in sent)


def test_an_empty_page_has_no_frames() -> None:
    assert deliver_frames(VAULT, TODOS, page()) == ()


def test_a_frame_is_larger_than_its_segment_by_less_than_its_limit() -> None:
    huge = 2**62
    body = bytes(SEGMENT_BYTES_MAX)
    found = Page(Term(huge, bytes(8)), huge, huge, huge, huge, huge, (StoredSegment(huge - 1, huge, body),))
    ((_, frame),) = deliver_frames(VAULT, TODOS, found)
    assert len(frame) - len(body) <= DELIVER_HEAD_BYTES_MAX


# --- what is recent


@asyncio_test
async def test_a_short_absence_costs_the_database_no_read() -> None:
    store = TroubledStore(await memory_store())
    async with running(store.store) as relay:
        anna, vault = await filled(relay, 20)
        async with anna, await Device.open(relay.port, BERT) as bert:
            await bert.subscribe(vault, TODOS, cursor=Position(anna.term(vault), 7))
            await bert.has(TODOS, 13)
            assert bert.seqs(TODOS) == list(range(8, 21))
            assert "read" not in store.calls and relay.counted("recent_pages_total") == 1


@asyncio_test
async def test_what_another_relay_wrote_is_read_and_what_came_here_before_and_after_is_not() -> None:
    store = await memory_store()
    here = TroubledStore(store)
    async with running(here.store) as relay, running(store) as other:
        anna, vault = await filled(relay, 3, units=1)
        async with anna, await Device.open(other.port, BERT) as bert:
            await bert.subscribe(vault, NOTES)
            await bert.push(vault, 1, group(TODOS, record(author=2)))
            for batch in (4, 5):
                await anna.push(vault, batch, group(TODOS, record()))
            async with await Device.open(relay.port, BERT) as again:
                await again.subscribe(vault, TODOS)
                await again.has(TODOS, 6)
                assert again.seqs(TODOS) == [1, 2, 3, 4, 5, 6]
                reads = here.calls.count("read")
                await anna.subscribe(vault, TODOS)
                await anna.has(TODOS, 6)
                assert reads == here.calls.count("read") == 1


@asyncio_test
async def test_what_the_database_does_not_have_any_more_is_not_given() -> None:
    store = await memory_store()
    async with running(store) as relay:
        anna, vault = await filled(relay, 5, units=1)
        async with anna, await Device.open(relay.port, BERT) as bert:
            log = store.database.vaults[vault].streams[TODOS]
            del log.segments[3:], log.lasts[3:]
            log.head = 3
            await bert.subscribe(vault, TODOS)
            await bert.has(TODOS, 3)
            await relay.plane._sweep.look()
            assert bert.seqs(TODOS) == [1, 2, 3]
            assert relay.counted("pages_total") == 1


# --- many at once


@asyncio_test
async def test_of_many_that_return_at_once_each_page_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sealwire_relay.catchup.PAGE_BYTES_MAX", PAGE_BYTES)
    store = await memory_store()
    async with running(store) as before:
        anna, vault = await filled(before, 24, units=2_000)
        await anna.close()
    read = TroubledStore(store, lambda: 3)
    pages = -(-24 // (PAGE_BYTES // len(encode_segment([record(units=2_000)]))))
    async with running(read.store) as relay, AsyncExitStack() as stack:
        devices = [await stack.enter_async_context(await Device.open(relay.port, BERT)) for _ in range(30)]
        await asyncio.gather(*[device.subscribe(vault, TODOS) for device in devices])
        for device in devices:
            await device.has(TODOS, 24)
            assert device.seqs(TODOS) == list(range(1, 25))
        assert read.calls.count("read") == pages == relay.counted("pages_total")


@asyncio_test
async def test_who_waits_for_a_read_that_is_under_way_keeps_no_reader_from_others() -> None:
    store = TroubledStore(await memory_store())
    async with running(store.store) as before:
        anna, vault = await filled(before, 3, units=1)
        await anna.push(vault, 4, group(NOTES, record()))
        await anna.close()
    async with running(store.store, read_pages_max=2) as relay, AsyncExitStack() as stack:
        devices = [await stack.enter_async_context(await Device.open(relay.port, BERT)) for _ in range(6)]
        held = asyncio.Event()
        store.expect("read", Mishap(made=True, before=held.wait))
        for device in devices[:5]:
            await device.subscribe(vault, TODOS)
        await turns_until(lambda: "read" in store.calls)
        await devices[5].subscribe(vault, NOTES)
        await devices[5].has(NOTES, 1)
        held.set()
        for device in devices[:5]:
            await device.has(TODOS, 3)
        assert store.calls.count("read") == 2


@pytest.mark.parametrize("error", [StoreDownError("down"), StoreError("refused")])
def test_who_waits_for_a_read_that_fails_is_served_by_the_next(
    error: StoreError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sealwire_relay.catchup.RETRY_SECONDS", 0.0)

    @asyncio_test
    async def run() -> None:
        store = TroubledStore(await memory_store())
        async with running(store.store) as before:
            anna, vault = await filled(before, 3, units=1)
            await anna.close()
        async with running(store.store) as relay, AsyncExitStack() as stack:
            devices = [await stack.enter_async_context(await Device.open(relay.port, BERT)) for _ in range(5)]
            held = asyncio.Event()
            store.expect("read", Mishap(error, before=held.wait))
            for device in devices:
                await device.subscribe(vault, TODOS)
            await turns_until(lambda: sum(map(len, relay.plane._fanout._catchup._reads.values())) == 5)
            held.set()
            for device in devices:
                await device.has(TODOS, 3)
            assert store.calls.count("read") == 2

    run()


@asyncio_test
async def test_a_page_is_not_given_to_who_was_told_something_else_since_it_was_asked_for() -> None:
    store = await memory_store()
    async with running(store) as before:
        anna, vault = await filled(before, 3, units=1)
        await anna.close()
    slow = TroubledStore(store)
    async with running(slow.store) as relay, AsyncExitStack() as stack:
        early, late = [await stack.enter_async_context(await Device.open(relay.port, BERT)) for _ in range(2)]
        held = asyncio.Event()
        slow.expect("read", Mishap(made=True, after=held.wait))
        await early.subscribe(vault, TODOS)
        await turns_until(lambda: "read" in slow.calls)
        log = store.database.vaults[vault].streams[TODOS]
        log.floor = log.floor_head = 3
        await late.subscribe(vault, TODOS)
        held.set()
        for device in (early, late):
            await device.has(TODOS, 3)
            assert {message.floor for message in device.delivered} == {3}
