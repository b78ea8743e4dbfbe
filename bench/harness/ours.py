"""What devices of a relay do in a bench, in the terms of the generator in C: push, follow, catch up."""

from collections.abc import Sequence
from typing import Final

from bench.harness.devices import STREAM, BenchVault, DeviceWire, Member, at_once, fleet, masked
from bench.harness.traffic import Connection, Lane, Reader, Shape
from sealwire_protocol import codec
from sealwire_protocol.ids import START, TERM_ID_BYTES, Term, VaultId
from sealwire_protocol.limits import CREDIT_BYTES_DEFAULT
from sealwire_protocol.messages import Push, Subscribe, Wanted
from sealwire_protocol.segment import MAC_BYTES, UNIT_BYTES, encode_record, encode_varint
from tests.support.device import group, record

UNITS: Final = 2
"""A record of 32 bytes of ciphertext, beside which its header and its MAC stand."""

WITHOUT_PAUSE: Final = {
    "clean_seconds": 0,
    "device_pushes_per_second_max": 1_000_000,
    "device_bytes_per_second_max": 10_737_418_240,
    "vault_pushes_per_second_max": 1_000_000,
    "vault_bytes_per_second_max": 10_737_418_240,
}
"""Settings of a relay that is pushed to as fast as it answers: nobody is told to come back later, though all is
counted; and the cleaner leaves alone what is pushed, which is much the same again and again."""

RECORD_BYTES: Final = len(encode_record(record(units=UNITS)))

SHAPE: Final = Shape(RECORD_BYTES, 0, 0, CREDIT_BYTES_DEFAULT // 2)


def stamped(units: int) -> Shape:
    """A record of so many units with its time in its first eight bytes of ciphertext, which nobody opens."""
    size = len(encode_record(record(units=units)))
    return SHAPE._replace(bytes=size, stamp_at=units * UNIT_BYTES + MAC_BYTES)


STAMPED: Final = stamped(UNITS)


def lane(
    vault: VaultId, term: Term, number: int, member: Member, window: int, records: int, units: int = UNITS
) -> Lane:
    """A member's pushes to one vault, from this batch number on, which takes no place in what is sealed."""
    sealed = [record(author=member.author, units=units, tag=place) for place in range(records)]
    data = codec.encode(Push(vault, term, 0, 0, (group(STREAM, *sealed),)))
    at = 1 + len(vault) + len(encode_varint(term.number)) + TERM_ID_BYTES
    return Lane(data[:at], data[at + 1 :], window, records, number, vault)


async def pushers(
    port: int,
    vaults: Sequence[BenchVault],
    members: Sequence[Member],
    window: int,
    records: int = 1,
    units: int = UNITS,
) -> list[Connection]:
    """One connection for each of these members, who are in all of these vaults, with pushes of so many records to each
    vault, `window` of them unanswered. They are subscribed to no stream."""

    async def one(member: Member) -> Connection:
        wire = await DeviceWire.login(port, member.identity)
        lanes = []
        for vault in vaults:
            told = await wire.subscribe(vault.id)
            lanes.append(lane(vault.id, told.term, told.last_batch + 1, member, window, records, units))
        opened = wire.hand_over()
        return Connection(opened.socket, lanes, None, b"", opened.rest)

    return await at_once(one, members)


async def followers(port: int, vault: BenchVault, members: Sequence[Member]) -> list[Connection]:
    """These members, subscribed to STREAM from where it ends now."""
    return [Connection(one.socket, (), Reader(), b"", one.rest) for one in await fleet(port, vault, members)]


async def catcher(port: int, vault: BenchVault) -> Connection:
    """A device that has nothing yet, and asks for STREAM as soon as it is set going."""
    wire = await DeviceWire.login(port, vault.admin.identity)
    say = masked(codec.encode(Subscribe(vault.id, (Wanted(STREAM, START, START),))))
    opened = wire.hand_over()
    return Connection(opened.socket, (), Reader(), say, opened.rest)
