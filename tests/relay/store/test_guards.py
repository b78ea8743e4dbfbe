"""What every store keeps of guarded streams, and that nobody replaces what another one put there meanwhile."""

import asyncio
import itertools
from dataclasses import replace

import pytest

from sealwire_protocol.conditions import NOTHING, Condition, Current, Names
from sealwire_protocol.ids import KeyId, Position, StreamId, Tag, Term, TermStart
from sealwire_protocol.lines import Line
from sealwire_protocol.messages import Group, Pushed, StreamKind, StreamState
from sealwire_protocol.segment import read_segment
from sealwire_relay.store.interface import Store, StreamWrite
from tests.relay.store.places import (
    EPOCH,
    STATE,
    Place,
    Vault,
    batch_write,
    make_vault,
    name,
    segments,
    stream_write,
    whole,
    write,
)
from tests.support.aio import asyncio_test
from tests.support.device import Device, Identity, record, stream_id
from tests.support.device import guarded as guarded_group
from tests.support.relay import running

COUNTS = stream_id(1)
_identities = itertools.count(7_000)
"""Devices that no other test of the shared database founds a vault with."""


def tag(number: int) -> Tag:
    """A tag with its high bit set, where a signed column would go wrong."""
    return Tag(b"\xf0" * 15 + bytes([number]))


LINE = Position(Term(2**62, b"\xf0" * 8), 2**62), Position(Term(1, b"the term"), 7)


def held(version: int, seq: int, tombstone: bool = False, line: Line = ()) -> Current:
    """What a stream holds, with a salt whose high bit is set."""
    return Current(version, b"\xf0" * 7 + bytes([version % 256]), tombstone, seq, line)


def guarded(vault: Vault, head: int, body: bytes, *guards: tuple[Tag, Current]) -> StreamWrite:
    """An append to the vault's stream, and what it holds afterwards."""
    return stream_write(vault.stream, head, body)._replace(guards=guards)


@asyncio_test
async def test_what_guarded_streams_hold_is_kept_with_the_records(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        one, two = await make_vault(store, term), await make_vault(store, term)
        other = StreamId(name(8))
        await store.create_stream(one.id, other, StreamKind.GUARDED)
        names = [
            (v, s, tag(n)) for v, s in ((one.id, one.stream), (one.id, other), (two.id, two.stream)) for n in (1, 2)
        ]
        assert await store.guards(names) == {}
        assert await store.guards([]) == {}
        first = [
            write(one, term, [guarded(one, 0, b"ab", (tag(1), held(7, 1)), (tag(2), held(2**63 - 1, 2, True)))]),
            write(two, term, [guarded(two, 0, b"a", (tag(1), held(5, 1)))]),
        ]
        assert await store.append(first) == [True, True]
        known = {names[0]: held(7, 1), names[1]: held(2**63 - 1, 2, True), names[4]: held(5, 1)}
        assert await store.guards(names) == known
        assert await store.guards(names[:1] * 2) == {names[0]: held(7, 1)}
        both = [
            guarded(one, 2, b"c", (tag(1), held(8, 3, True))),
            stream_write(other, 0, b"d")._replace(guards=((tag(9), held(3, 1)),)),
        ]
        assert await store.append([write(one, term, both)]) == [True]
        assert await store.guards(names) == known | {names[0]: held(8, 3, True)}
        assert await store.guards([(one.id, other, tag(9))]) == {(one.id, other, tag(9)): held(3, 1)}


@asyncio_test
async def test_r14_whether_a_record_was_given_back_is_kept_until_it_is_replaced(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault = await make_vault(store, term)
        names = [(vault.id, vault.stream, tag(n)) for n in (1, 2)]
        first = (tag(1), held(3, 1, line=LINE)), (tag(2), held(4, 2, True))
        assert await store.append([write(vault, term, [guarded(vault, 0, b"ab", *first)])]) == [True]
        assert await store.guards(names) == {names[0]: held(3, 1, line=LINE), names[1]: held(4, 2, True)}
        second = (tag(1), held(4, 3)), (tag(2), held(5, 4, line=LINE))
        assert await store.append([write(vault, term, [guarded(vault, 2, b"cd", *second)])]) == [True]
        assert await store.guards(names) == {names[0]: held(4, 3), names[1]: held(5, 4, line=LINE)}


@asyncio_test
async def test_the_epoch_of_what_a_stream_holds_is_kept(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vaults = [await make_vault(store, term) for _ in range(2)]
        for head, epoch in enumerate((1, 2, 65_535)):
            mine = (tag(1), held(3, head + 1)._replace(epoch=epoch))
            writes = [write(vault, term, [guarded(vault, head, b"a", mine)]) for vault in vaults]
            assert await store.append(writes) == [True, True]
            for vault in vaults:
                name = vault.id, vault.stream, tag(1)
                assert await store.guards([name]) == {name: mine[1]}


@asyncio_test
@pytest.mark.parametrize("wrong", ["head", "epoch", "key", "batch", "other head"])
async def test_what_a_stream_holds_is_not_touched_when_a_condition_fails(place: Place, wrong: str) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault = await make_vault(store, term)
        other = StreamId(name(8))
        await store.create_stream(vault.id, other, StreamKind.GUARDED)
        names = [(vault.id, vault.stream, tag(1))]
        assert await store.append([write(vault, term, [guarded(vault, 0, b"a", (tag(1), held(1, 1)))])]) == [True]
        good = write(vault, term, [guarded(vault, 1, b"b", (tag(1), held(2, 2)))], [batch_write(1)])
        bad = {
            "head": good._replace(streams=(guarded(vault, 0, b"b", (tag(1), held(2, 1))),)),
            "epoch": good._replace(key=(EPOCH + 1, STATE.key_id)),
            "key": good._replace(key=(EPOCH, KeyId(b"\x00\x01\x02\x03"))),
            "batch": good._replace(batches=(batch_write(2),)),
            "other head": good._replace(streams=(*good.streams, StreamWrite(other, 1, 1, 0, ()))),
        }[wrong]
        assert await store.append([bad]) == [False]
        assert await store.guards(names) == {names[0]: held(1, 1)}
        assert await store.append([good]) == [True]
        assert await store.guards(names) == {names[0]: held(2, 2)}


@asyncio_test
async def test_a_stream_that_was_only_looked_at_is_a_condition_and_is_not_written(place: Place) -> None:
    async with place.opened() as store:
        old = await store.open_term()
        vault = await make_vault(store, old)
        assert await store.append(
            [write(vault, old, [stream_write(vault.stream, 0, b"ab", top=5)], [batch_write(1)])]
        ) == [True]
        term = await store.open_term()
        for head, holds in ((1, False), (3, False), (2, True)):
            looked_at = StreamWrite(vault.stream, head, head, 9, ())
            assert await store.append([write(vault, term, [looked_at], [batch_write(2)])]) == [holds]
        told = await store.subscription(vault.id, vault.admin, [vault.stream])
        assert told is not None
        assert told.last_batch == 2
        assert told.streams[0] == StreamState(vault.stream, StreamKind.OPEN, 2, 5, 0, 0, 0, 0, (TermStart(old, 0),)), (
            "neither its top nor its terms"
        )
        assert await whole(store, vault, vault.stream) == list(segments(0, b"ab"))


@asyncio_test
async def test_of_many_that_replace_the_same_record_one_does(place: Place) -> None:
    """Two stores, 16 tasks: each wants to replace what it found, on condition of the head that it found."""
    async with place.opened() as one, place.opened() as two:
        term = await one.open_term()
        vault = await make_vault(one, term)
        wanted = (vault.id, vault.stream, tag(1))

        async def replace_once(store: Store, number: int) -> None:
            done = False
            while not done:
                page = await store.read(vault.id, vault.stream, 0, 0)
                assert page is not None
                found = (await store.guards([wanted])).get(wanted)
                version = found.version if found else 0
                new = guarded(vault, page.head, b"x", (tag(1), held(version + 1, page.head + 1)))
                [done] = await store.append([write(vault, term, [new])])

        await asyncio.gather(*[replace_once(two if n % 2 else one, n) for n in range(16)])
        assert await one.guards([wanted]) == {wanted: held(16, 16)}


@asyncio_test
async def test_two_relays_on_one_database_refuse_alike_and_lose_no_update(place: Place) -> None:
    """Two devices count up through two relays, each from what the store holds; what was refused is told again alike."""
    async with place.opened() as one, place.opened() as two, running(one) as first, running(two) as second:
        anna = await Device.open(first.port, Identity(next(_identities)))
        bert = Identity(next(_identities))
        vault, log = await anna.create_vault()
        await anna.add(log, bert)
        await anna.create_stream(vault, COUNTS, StreamKind.GUARDED)
        async with anna, await Device.open(second.port, bert) as other, await Device.open(first.port, bert) as again:
            for device in (anna, other, again):
                await device.subscribe(vault, COUNTS)
            wanted = (vault, COUNTS, record().tag)

            async def count_up(device: Device, store: Store, author: int) -> list[tuple[Group, Pushed]]:
                told: list[tuple[Group, Pushed]] = []
                while sum(bool(pushed.appended) for _, pushed in told) < 10:
                    seen = (await store.guards([wanted])).get(wanted)
                    condition = NOTHING if seen is None else Condition(Names.ENTRY, seen.version, seen.salt)
                    new = record(version=1 + (seen.version if seen else 0), author=author)
                    pushed = guarded_group(COUNTS, (condition, new))
                    told.append((pushed, await device.push(vault, len(told) + 1, pushed)))
                return told

            _, told = await asyncio.gather(count_up(anna, one, 1), count_up(other, two, 2))
            held = (await one.guards([wanted]))[wanted]
            assert (held.version, held.seq) == (20, 20)
            for batch, (pushed, verdict) in enumerate(told, 1):
                bare = tuple(refused._replace(winner=b"") for refused in verdict.refused)
                assert await again.push(vault, batch, pushed) == replace(verdict, refused=bare)
            page = await two.read(vault, COUNTS, 0, 1 << 20)
            assert page is not None
            found = [r.version for s in page.segments for _, r in read_segment(s.body, s.prev)]
            assert found == list(range(1, 21))
