"""A device of a test compares what it holds with the relay, range by range, and fetches what it lacks."""

from collections.abc import Iterable

from sealwire_protocol.errors import FaultCode
from sealwire_protocol.ids import START, Position, StreamId, Tag, VaultId
from sealwire_protocol.messages import Fault, Fetch, Fetched, Prefix, Ranges, Reconcile, Records
from sealwire_protocol.reconcile import ROOT, Comparison, Difference, Gathering, Tree, pack_item
from sealwire_protocol.segment import Record
from tests.support.device import Device


def tree_of(records: Iterable[Record]) -> Tree:
    """The tree of a device that holds these."""
    gathering = Gathering()
    gathering.add(pack_item(record.tag, record.rank.pack(), 0, record.flags) for record in records)
    return gathering.build()


async def ranges(device: Device, vault: VaultId, stream: StreamId, *prefixes: Prefix, pin: Position = START) -> Ranges:
    """What the relay tells of ranges of a stream."""
    answer = await device.ask(lambda number: Reconcile(number, vault, stream, pin, prefixes))
    assert isinstance(answer, Ranges), answer
    return answer


async def refused(device: Device, vault: VaultId, stream: StreamId, pin: Position = START) -> FaultCode:
    """Why a stream is not compared."""
    answer = await device.ask(lambda number: Reconcile(number, vault, stream, pin, (ROOT,)))
    assert isinstance(answer, Fault), answer
    return answer.code


async def compare(
    device: Device, vault: VaultId, stream: StreamId, records: Iterable[Record]
) -> tuple[Ranges, dict[Tag, Difference]]:
    """How what a device holds differs from what the relay does; and the last thing that was told."""
    comparison = Comparison(tree_of(records))
    told = await ranges(device, vault, stream)
    while prefixes := comparison.ask():
        told = await ranges(device, vault, stream, *prefixes, pin=told.pin)
        comparison.take(prefixes, told.branches)
    assert comparison.done
    return told, {found.tag: found for found in comparison.differing}


async def fetch(device: Device, vault: VaultId, stream: StreamId, pin: Position, *seqs: int) -> Records:
    """Records of a stream."""
    answer = await device.ask(lambda number: Fetch(number, vault, stream, pin, seqs))
    assert isinstance(answer, Records), answer
    return answer


async def fetch_all(
    device: Device, vault: VaultId, stream: StreamId, pin: Position, seqs: Iterable[int]
) -> list[Fetched]:
    """Records of a stream, asked for until all have been looked at."""
    left, found = sorted(seqs), list[Fetched]()
    while left:
        told = await fetch(device, vault, stream, pin, *left[:1024])
        assert told.considered
        found += told.records
        del left[: told.considered]
    return found
