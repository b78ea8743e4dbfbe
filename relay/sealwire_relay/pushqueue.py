"""Pushes that wait for a commit: each vault's in the order in which they came, the vaults by turns. Pure.

However much one vault pushes, what another one has pushed is in the next commit, unless more vaults wait than fit.
"""

from collections import OrderedDict, deque
from collections.abc import Collection
from typing import Final, NamedTuple, TypeAlias

from sealwire_protocol.ids import DeviceKey, VaultId
from sealwire_relay.peer import Peer
from sealwire_relay.view import Admitted

TURN_BYTES: Final = 65_536
TURN_RECORDS: Final = 1_024
"""What a vault gives to a commit before it is another one's turn: a push or two of one that is busy, all that others
have. So a hundred vaults fit into one commit, whatever each of them pushes."""


class Waiting(NamedTuple):
    """A push that waits, who pushed it, and since when (`time.perf_counter`)."""

    peer: Peer
    admitted: Admitted
    since: float


Batch: TypeAlias = dict[VaultId, list[Waiting]]


class PushQueue:
    """What waits. `size`: the bytes of all of it."""

    def __init__(self) -> None:
        self._vaults: OrderedDict[VaultId, deque[Waiting]] = OrderedDict()
        self._count = 0
        self.size = 0

    def __len__(self) -> int:
        return self._count

    def add(self, waiting: Waiting) -> None:
        """The last of its vault."""
        self._vaults.setdefault(waiting.admitted.push.vault, deque()).append(waiting)
        self._count += 1
        self.size += waiting.admitted.size

    def take(self, records_max: int, bytes_max: int) -> Batch:
        """Take out what is next, until there are so many records or bytes of it; it may be one push more. Of a vault
        that is left with some, the turn comes after all others'."""
        taken: Batch = {}
        records = size = 0
        while self._vaults and records < records_max and size < bytes_max:
            vault, queue = self._vaults.popitem(last=False)
            items = taken.setdefault(vault, [])
            before = records, size
            while (
                queue
                and records - before[0] < TURN_RECORDS
                and size - before[1] < TURN_BYTES
                and records < records_max
                and size < bytes_max
            ):
                waiting = queue.popleft()
                items.append(waiting)
                records += waiting.admitted.records
                size += waiting.admitted.size
            if queue:
                self._vaults[vault] = queue
        self._count -= sum(map(len, taken.values()))
        self.size -= size
        return taken

    def take_of(self, pushers: Collection[tuple[VaultId, DeviceKey]]) -> list[Waiting]:
        """Take out all that these devices have pushed to these vaults, in its order."""
        found: list[Waiting] = []
        for vault in dict.fromkeys(vault for vault, _ in pushers):
            kept: deque[Waiting] = deque()
            for waiting in self._vaults.get(vault, ()):
                (found if (vault, waiting.admitted.device) in pushers else kept).append(waiting)
            if kept:
                self._vaults[vault] = kept
            else:
                self._vaults.pop(vault, None)
        self._count -= len(found)
        self.size -= sum(waiting.admitted.size for waiting in found)
        return found
