"""How a relay in memory answers devices that compare their history with its own: a tree is made for every question."""

from collections.abc import Iterable

from sealwire_protocol.errors import Action, FaultCode
from sealwire_protocol.events import Answer, Refuse
from sealwire_protocol.history import is_lost, newest_term
from sealwire_protocol.ids import START, Position
from sealwire_protocol.limits import SEGMENT_BYTES_MAX
from sealwire_protocol.messages import Fetch, Fetched, Ranges, Reconcile, Records, StreamState
from sealwire_protocol.reconcile import Gathering, pack_item
from sealwire_protocol.segment import Placed, encode_record


def ranges(message: Reconcile, state: StreamState, records: Iterable[Placed]) -> Answer | Refuse:
    """RANGES, or that the position is not known any more."""
    here = Position(newest_term(state), state.head) if state.head else START
    pin = here if message.pin == START else message.pin
    if is_lost(pin, state) or pin.seq < state.floor_head:
        return _stale(message)
    gathering = Gathering()
    gathering.add(
        pack_item(record.tag, record.rank.pack(), seq, record.flags) for seq, record in records if seq <= pin.seq
    )
    tree = gathering.build()
    branches = tuple(tree.branch(prefix) for prefix in message.prefixes)
    name = message.request, message.vault, message.stream
    floors = state.floor, state.floor_head, state.purged, state.cleaned_to
    return Answer(Ranges(*name, pin, tree.total, state.top, *floors, state.terms, branches))


def records(message: Fetch, state: StreamState, records: Iterable[Placed]) -> Answer | Refuse:
    """RECORDS, or that the position is not known any more."""
    if message.pin == START or is_lost(message.pin, state) or message.pin.seq < state.floor_head:
        return _stale(message)
    wanted = set(message.seqs)
    there = {seq: encode_record(record) for seq, record in records if seq in wanted}
    found: list[Fetched] = []
    size = considered = 0
    for seq in message.seqs:
        size += len(there.get(seq, b""))
        if size > SEGMENT_BYTES_MAX:
            break
        considered += 1
        if seq in there:
            found.append(Fetched(seq, there[seq]))
    name = message.request, message.vault, message.stream
    return Answer(Records(*name, state.cleaned_to, considered, tuple(found)))


def _stale(message: Reconcile | Fetch) -> Refuse:
    told = "the position that was compared is not at hand any more; begin again"
    return Refuse(FaultCode.STALE_PIN, Action.RESUBSCRIBE, told, message.request, message.vault)
