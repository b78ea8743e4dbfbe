"""Numbers that no honest relay sends: the device refuses them or sets them aside, goes on, and loses nothing."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import trio
import trio.testing

from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_protocol.errors import Action, FaultCode
from sealwire_protocol.ids import MEMBERSHIP, Term
from sealwire_protocol.limits import VERSION_LAST
from sealwire_protocol.messages import NO_REQUEST, Deliver, Fault, Message, Pushed, Subscribed
from sealwire_protocol.segment import SEQ_LAST, Record, encode_record, read_segment
from tests.client.party import Note, comes, in_step, party, told
from tests.support.virtual import virtual

Alter = Callable[[Deliver], Deliver]


def delivering(alter: Alter) -> Callable[[Message], Sequence[Message]]:
    """A relay that delivers records so altered."""
    return lambda m: [alter(m)] if isinstance(m, Deliver) and m.stream != MEMBERSHIP else [m]


def first(deliver: Deliver) -> Record:
    return next(read_segment(deliver.segment, deliver.prev)).record


@pytest.mark.parametrize("skip", (1, SEQ_LAST))
def test_a_record_past_the_end_of_its_segment_is_not_taken_in(
    open_device: OpenDevice, memory_relay: MemoryRelay, skip: int
) -> None:
    @virtual
    async def test() -> None:
        async with party(open_device) as guests:
            a, b = guests
            memory_relay.alter = delivering(lambda m: replace(m, segment=encode_record(first(m), skip)))
            await a.notes.put("x", Note("one"))
            await comes(lambda: b.notes.get("x") == Note("one"))  # by comparing
            await in_step(guests)
            assert [stream.cursor for stream in b.vault._sync.streams] == [1]
            memory_relay.alter = None
            await b.notes.put("x", Note("two"))
            await in_step(guests)
            assert a.notes.get("x") == Note("two")

    test()


def version_as(version: int) -> Alter:
    """The version of the first record in the clear, which its seal does not confirm."""

    def alter(deliver: Deliver) -> Deliver:
        data = bytearray(encode_record(first(deliver)._replace(version=VERSION_LAST)))
        data[18:26] = version.to_bytes(8, "big")
        return replace(deliver, segment=bytes(data))

    return alter


@pytest.mark.parametrize("version", (1 << 62, VERSION_LAST, VERSION_LAST + 1, (1 << 64) - 1))
def test_a_version_that_the_relay_made_up_steers_no_edit(
    open_device: OpenDevice, memory_relay: MemoryRelay, version: int
) -> None:
    """Else the next edit would get a still greater one, which no honest relay takes and no database holds."""

    @virtual
    async def test() -> None:
        async with party(open_device) as guests:
            a, b = guests
            memory_relay.alter = delivering(version_as(version))
            await a.notes.put("x", Note("one"))
            await trio.sleep(10)
            memory_relay.alter = None
            await b.notes.put("y", Note("two"))
            await comes(lambda: a.notes.get("y") == Note("two"))
            assert (await b.vault.status()).stuck == 0

    test()


def test_a_top_that_leaves_no_version_to_write_is_not_believed(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    def lie(message: Message) -> Sequence[Message]:
        if not isinstance(message, Subscribed):
            return [message]
        return [replace(message, streams=tuple(state._replace(top=VERSION_LAST) for state in message.streams))]

    @virtual
    async def test() -> None:
        async with party(open_device) as guests:
            a, b = guests
            memory_relay.cut()
            memory_relay.alter = lie
            await a.notes.put("x", Note("one"))
            await told(a, "a version that no stream reaches")
            memory_relay.alter = None
            await in_step(guests)
            assert b.dump() == {"x": "one"}

    test()


def resubscribe(message: Message) -> Sequence[Message]:
    """A relay that answers each push by saying that it should be subscribed to again."""
    if not isinstance(message, Pushed):
        return [message]
    return [Fault(NO_REQUEST, message.vault, FaultCode.TERM_CHANGED, Action.RESUBSCRIBE, 0, "again")]


@pytest.mark.parametrize(
    "alter",
    (
        delivering(lambda m: replace(m, term=Term(m.term.number + 1, b"unheard."))),
        delivering(lambda m: replace(m, prev=m.prev + 1, last=m.last + 1)),
        resubscribe,
    ),
    ids=("another term", "a gap", "a fault"),
)
def test_a_relay_that_is_never_content_does_not_keep_a_device_busy(
    open_device: OpenDevice, memory_relay: MemoryRelay, alter: Callable[[Message], Sequence[Message]]
) -> None:
    @virtual
    async def test() -> None:
        async with party(open_device) as guests:
            a, b = guests
            memory_relay.alter = alter
            memory_relay.delay = 0.001
            before, seconds = memory_relay.carried, 100
            await a.notes.put("x", Note("one"))
            await trio.sleep(seconds)
            assert memory_relay.carried - before < 2 * 10 * seconds
            memory_relay.alter = None
            await in_step(guests)
            assert b.dump() == {"x": "one"}

    test()
