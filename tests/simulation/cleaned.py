"""What must be true of a log that was cleaned: it says the same as the whole one."""

from collections.abc import Mapping, Sequence
from typing import Final

from sealwire_protocol.ids import Tag
from sealwire_protocol.segment import Placed, Rank, read_segment
from sealwire_relay.store.segments import StoredSegment
from tests.simulation.history import Violation
from tests.simulation.past import Grave

_NO_GRAVE: Final = Grave(0, 0)


def check_cleaned(
    whole: Sequence[StoredSegment], log: Sequence[StoredSegment], compacted: int, forgotten: Mapping[Tag, Grave]
) -> None:
    """Nothing was added or moved, every winner is there, and up to `compacted` nothing else. Raises Violation.

    `forgotten`: tags whose tombstone was purged.
    """
    made = {seq: p for seq, p in _records(whole).items() if seq > forgotten.get(p.record.tag, _NO_GRAVE).head}
    left = _records(log)
    if whole and log[-1].last != whole[-1].last:
        raise Violation(
            f"seqs never change: a cleaned log ends at {log[-1].last}, and the whole one at {whole[-1].last}"
        )
    for seq, placed in left.items():
        if made.get(seq) != placed:
            raise Violation(f"cleaning changes no record: the one at {seq} is another")
    best = _winners(made)
    for placed in best.values():
        if placed.seq not in left:
            raise Violation(f"cleaning keeps what wins: the record at {placed.seq} is gone")
    if any(compacted < segment.last and segment.prev < compacted for segment in log):
        return  # another cleaner has joined segments across the place
    winners = {placed.seq for placed in _winners({seq: p for seq, p in made.items() if seq <= compacted}).values()}
    for seq in left:
        if seq <= compacted and seq not in winners:
            raise Violation(f"up to {compacted} all losers are gone: the one at {seq} is not")


def _records(log: Sequence[StoredSegment]) -> dict[int, Placed]:
    at, found = 0, dict[int, Placed]()
    for segment in log:
        if segment.prev != at:
            raise Violation(f"segments tile: after {at} comes ({segment.prev}, {segment.last}]")
        found.update({placed.seq: placed for placed in read_segment(segment.body, segment.prev, segment.last)})
        at = segment.last
    return found


def _winners(records: dict[int, Placed]) -> dict[Tag, Placed]:
    best: dict[Tag, Placed] = {}
    for seq in sorted(records):
        placed = records[seq]
        held: Rank | None = best[placed.record.tag].record.rank if placed.record.tag in best else None
        if held is None or placed.record.rank >= held:
            best[placed.record.tag] = placed
    return best
