"""A relay that lies when a device compares what both hold (R13)."""

import os
from collections.abc import Sequence
from dataclasses import replace

import pytest
import trio
import trio.testing

from sealwire_client.link import RETRY_SECONDS_MAX
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_client.testing.relay import Alter
from sealwire_protocol.ids import MEMBERSHIP, Position, Tag, Term
from sealwire_protocol.messages import (
    Branch,
    Fetched,
    Item,
    Message,
    Ranges,
    Records,
    Summary,
)
from tests.client.party import (
    Note,
    comes,
    in_step,
    lying,
    party,
    returned,
)
from tests.support.virtual import virtual


def other_ranges(message: Message) -> Sequence[Message]:
    """Ranges that differ in all their parts, whatever is asked."""
    if not isinstance(message, Ranges):
        return [message]
    parts = tuple(Summary(9, os.urandom(16)) for _ in range(16))
    return [replace(message, branches=tuple(Branch(parts, ()) for _ in message.branches))]


def stranger_ranges(message: Message) -> Sequence[Message]:
    """Records that do not lie in the ranges asked for."""
    if not isinstance(message, Ranges):
        return [message]
    stranger = Branch((), (Item(Tag(b"\xff" * 16), bytes(22), 1, 0), Item(Tag(bytes(16)), bytes(22), 2, 0)))
    return [replace(message, branches=tuple(stranger for _ in message.branches))]


def fewer_ranges(message: Message) -> Sequence[Message]:
    return [replace(message, branches=())] if isinstance(message, Ranges) else [message]


def other_pin(message: Message) -> Sequence[Message]:
    """Ranges of a moment of which no stream has any."""
    return [replace(message, pin=Position(Term(9, b"no term."), 5))] if isinstance(message, Ranges) else [message]


def other_records(message: Message) -> Sequence[Message]:
    """Each record under the seq of another."""
    if not isinstance(message, Records):
        return [message]
    seqs = [record.seq for record in message.records]
    turned = [Fetched(seq, record.record) for seq, record in zip(seqs, reversed(message.records), strict=True)]
    return [replace(message, records=tuple(turned))]


def no_records(message: Message) -> Sequence[Message]:
    """None looked at, so that they are asked for again and again."""
    return [replace(message, considered=0, records=())] if isinstance(message, Records) else [message]


@pytest.mark.parametrize("alter", [other_ranges, stranger_ranges, fewer_ranges, other_pin])
def test_a_comparison_that_cannot_be_true_ends_without_effect(
    open_device: OpenDevice, memory_relay: MemoryRelay, alter: Alter
) -> None:
    @virtual
    async def test() -> None:
        async with party(open_device) as guests:
            a, b = guests
            await a.notes.put_many([(f"k{number}", Note("kept")) for number in range(30)])
            await in_step(guests)
            backup = memory_relay.backup()
            await a.notes.put("x", Note("lost"))
            await in_step(guests)
            with lying(memory_relay, alter):
                memory_relay.restore(backup)
                dialled, carried = memory_relay.dialled, memory_relay.carried
                await trio.sleep(10 * RETRY_SECONDS_MAX)
                assert memory_relay.dialled - dialled < 2 * 15  # it does not come back without pause
                assert memory_relay.carried - carried < 100 * (memory_relay.dialled - dialled)
                assert len(a.notes) == len(b.notes) == 31
            await in_step(guests)
            assert len(a.notes) == 31

    test()


@pytest.mark.parametrize("alter", [other_records, no_records])
def test_records_that_were_not_asked_for_are_not_taken_in(
    open_device: OpenDevice, memory_relay: MemoryRelay, alter: Alter
) -> None:
    @virtual
    async def test() -> None:
        async with party(open_device) as guests:
            a, b = guests
            await a.notes.put_many([(f"k{number}", Note("kept")) for number in range(5)])
            await in_step(guests)
        async with open_device("device 0") as device:
            a = await returned(device)
            await a.notes.put_many([(f"new{number}", Note("new")) for number in range(5)])
            await in_step([a])
            (stream,) = [log for name, log in memory_relay.log.vaults[a.vault.id].streams.items() if name != MEMBERSHIP]
            stream.terms[0] = stream.terms[0]._replace(term=Term(stream.terms[0].term.number, b"another."))
            async with open_device("device 1") as other:
                b = await returned(other)
                with lying(memory_relay, alter):
                    memory_relay.cut()
                    await trio.sleep(10 * RETRY_SECONDS_MAX)
                    assert len(b.notes) == 5
                await in_step([a, b])
                assert len(b.notes) == 10

    test()


@virtual
async def test_a_fetched_record_that_does_not_open_is_set_aside_and_stops_nothing(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    def broken(message: Message) -> Sequence[Message]:
        if not isinstance(message, Records):
            return [message]
        first, *rest = message.records
        turned = Fetched(first.seq, first.record[:-1] + bytes([first.record[-1] ^ 1]))
        return [replace(message, records=(turned, *rest))]

    async with party(open_device) as guests:
        a, _ = guests
        await a.notes.put("x", Note("kept"))
        await in_step(guests)
    async with open_device("device 0") as device:
        a = await returned(device)
        await a.notes.put_many([(f"new{number}", Note("new")) for number in range(5)])
        await in_step([a])
        (stream,) = [log for name, log in memory_relay.log.vaults[a.vault.id].streams.items() if name != MEMBERSHIP]
        stream.terms[0] = stream.terms[0]._replace(term=Term(stream.terms[0].term.number, b"another."))
        memory_relay.cut()
        async with open_device("device 1") as other:
            with lying(memory_relay, broken):
                b = await returned(other)
                await in_step([b])
            assert len(b.notes) == 5
            assert (await b.vault.status()).unreadable == 1
            await a.notes.put("y", Note("goes on"))
            await comes(lambda: b.notes.get("y") is not None)
