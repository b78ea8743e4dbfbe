"""Pushes that wait for a commit: each vault's in the order in which they came, the vaults by turns. Pure.

However much one vault pushes, what another one has pushed is in the next commit, unless more vaults wait than fit.
What is pushed to a vault while a commit of it is under way waits until that has ended.
"""

from collections import OrderedDict, deque
from collections.abc import Collection, Iterable
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
        self._taken: dict[VaultId, deque[Waiting]] = {}
        self._count = 0
        self.size = 0

    def __len__(self) -> int:
        return self._count

    @property
    def is_ready(self) -> bool:
        """True if there is something to take."""
        return bool(self._vaults)

    @property
    def is_idle(self) -> bool:
        """True if nothing waits, and all vaults of which something was taken were given back."""
        return not self._count and not self._taken

    def add(self, waiting: Waiting) -> bool:
        """The last of its vault. Returns whether there is something to take that was not there before: of another vault
        than wait already."""
        admitted = waiting.admitted
        vault = admitted.push.vault
        self._count += 1
        self.size += admitted.size
        queue = self._taken.get(vault)
        if queue is None:
            queue = self._vaults.get(vault)
        if queue is not None:
            queue.append(waiting)
            return False
        self._vaults[vault] = deque((waiting,))
        return True

    def take(self, records_max: int, bytes_max: int) -> Batch:
        """Take out what is next, until there are so many records or bytes of it; it may be one push more. Nothing more
        is taken of these vaults until they are given back."""
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
        for vault in taken:
            self._taken[vault] = self._vaults.pop(vault, deque())
        self._count -= sum(map(len, taken.values()))
        self.size -= size
        return taken

    def give_back(self, vaults: Iterable[VaultId]) -> None:
        """What was taken of these vaults has its verdict: the next may be taken, after all others' turn."""
        for vault in vaults:
            if queue := self._taken.pop(vault):
                self._vaults[vault] = queue

    def take_of(self, pushers: Collection[tuple[VaultId, DeviceKey]]) -> list[Waiting]:
        """Take out all that these devices have pushed to these vaults, in its order."""
        found: list[Waiting] = []
        for vault in dict.fromkeys(vault for vault, _ in pushers):
            place = self._taken if vault in self._taken else self._vaults
            kept: deque[Waiting] = deque()
            for waiting in place.get(vault, ()):
                (found if (vault, waiting.admitted.device) in pushers else kept).append(waiting)
            if kept or place is self._taken:
                place[vault] = kept
            else:
                place.pop(vault, None)
        self._count -= len(found)
        self.size -= sum(waiting.admitted.size for waiting in found)
        return found
