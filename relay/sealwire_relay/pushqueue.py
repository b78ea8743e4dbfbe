"""Pushes that wait for a commit: each vault's in the order in which they came, the vaults by turns. Pure.

A vault of which little waits shares its commit with others like it, never with one that is busy; both kinds of commit
alternate. So what little is pushed to a vault waits for no large commit but one that has begun, if no writer is free.
What is pushed to a vault while a commit of it is under way waits until that has ended; what is pushed to a busy one for
some time more, so that it leaves most of the relay, of Postgres and of the disk to the others, if there are any.
"""

from collections import OrderedDict, deque
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple, TypeAlias

from sealwire_protocol.ids import DeviceKey, VaultId
from sealwire_relay.peer import Peer
from sealwire_relay.view import Admitted

TURN_BYTES: Final = 65_536
TURN_RECORDS: Final = 1_024
TURN_PUSHES: Final = 128
"""Most that a vault gives to one commit, its turn: all that most vaults ever have waiting. One of which more waits is
busy. A turn is a millisecond of work or two, for the relay and for Postgres each, which others wait for; and in such
turns one vault alone still commits some hundred thousand records a second."""

PAUSE_SHARE: Final = 6.0
"""For how long a busy vault rests, as a share of the time that its commit took: it has a seventh of all time, in which
it still commits more than a hundred thousand records a second."""

PAUSE_SECONDS_MAX: Final = 0.1
"""A commit that takes longer than a sixtieth of a second waits for a slow database, which nobody's rest makes fast."""

OTHERS_SECONDS: Final = 1.0
"""For so long after another vault's push a busy one rests between its commits; alone, it never does."""


class Waiting(NamedTuple):
    """A push that waits, who pushed it, and since when (`time.perf_counter`)."""

    peer: Peer
    admitted: Admitted
    since: float


Batch: TypeAlias = dict[VaultId, list[Waiting]]


class _Line:
    """What waits of one vault."""

    __slots__ = ("items", "records", "size")

    def __init__(self) -> None:
        self.items: deque[Waiting] = deque()
        self.records = self.size = 0

    @property
    def is_busy(self) -> bool:
        return self.records > TURN_RECORDS or self.size > TURN_BYTES or len(self.items) > TURN_PUSHES

    def add(self, waiting: Waiting) -> None:
        self.items.append(waiting)
        self.records += waiting.admitted.records
        self.size += waiting.admitted.size

    def next(self) -> Waiting:
        waiting = self.items.popleft()
        self.records -= waiting.admitted.records
        self.size -= waiting.admitted.size
        return waiting


class PushQueue:
    """What waits. `size`: the bytes of all of it."""

    def __init__(self) -> None:
        self._calm: OrderedDict[VaultId, _Line] = OrderedDict()
        self._busy: OrderedDict[VaultId, _Line] = OrderedDict()
        self._taken: dict[VaultId, _Line] = {}
        self._busy_next = False
        self._busy_taken: set[VaultId] = set()
        """Those of `_taken` that were busy: they are being committed, or rest."""
        self._others_at = 0.0
        """When something was last pushed to another vault than these and those in `_busy`."""
        self._count = 0
        self.size = 0

    def __len__(self) -> int:
        return self._count

    @property
    def is_ready(self) -> bool:
        """True if there is something to take."""
        return bool(self._calm or self._busy)

    @property
    def is_idle(self) -> bool:
        """True if nothing waits, and all vaults of which something was taken were given back."""
        return not self._count and not self._taken

    def add(self, waiting: Waiting) -> bool:
        """The last of its vault. Returns whether there is something to take that was not there before: of another vault
        than wait already."""
        vault = waiting.admitted.push.vault
        self._count += 1
        self.size += waiting.admitted.size
        line = self._taken.get(vault) or self._busy.get(vault)
        if line is not None:
            line.add(waiting)
            return False
        if self._busy or self._busy_taken:
            self._others_at = waiting.since
        known = self._calm.get(vault)
        line = known or _Line()
        line.add(waiting)
        self._put(vault, line)
        return known is None

    def _put(self, vault: VaultId, line: _Line) -> None:
        """Let it wait where it belongs by what is in it."""
        if line.is_busy:
            self._calm.pop(vault, None)
            self._busy[vault] = line
        else:
            self._calm[vault] = line

    def take(self, records_max: int, bytes_max: int) -> Batch:
        """Take out what is next, until there are so many records or bytes of it; it may be one push more. Nothing more
        is taken of these vaults until they are given back."""
        busy = bool(self._busy) and (self._busy_next or not self._calm)
        waiting = self._busy if busy else self._calm
        self._busy_next = bool(self._busy) and not busy
        taken: Batch = {}
        records = size = 0
        while waiting and records < records_max and size < bytes_max:
            vault, line = waiting.popitem(last=False)
            self._taken[vault] = line
            items = taken[vault] = []
            before = records, size
            while (
                line.items
                and records - before[0] < TURN_RECORDS
                and size - before[1] < TURN_BYTES
                and len(items) < TURN_PUSHES
                and records < records_max
                and size < bytes_max
            ):
                item = line.next()
                items.append(item)
                records += item.admitted.records
                size += item.admitted.size
        if busy:
            self._busy_taken.update(taken)
        self._count -= sum(map(len, taken.values()))
        self.size -= size
        return taken

    def rest(self, vaults: Iterable[VaultId], seconds: float, now: float) -> float:
        """For how many seconds these vaults, whose commit took so many, are not to be given back yet. `now` is of the
        clock of what waits."""
        if self._busy_taken.isdisjoint(vaults) or now - self._others_at > OTHERS_SECONDS:
            return 0.0
        return min(PAUSE_SHARE * seconds, PAUSE_SECONDS_MAX)

    def give_back(self, vaults: Iterable[VaultId]) -> None:
        """What was taken of these vaults has its verdict: the next may be taken, after all others' turn."""
        self._busy_taken.difference_update(vaults)
        for vault in vaults:
            line = self._taken.pop(vault)
            if line.items:
                self._put(vault, line)

    def take_of(self, pushers: Collection[tuple[VaultId, DeviceKey]]) -> list[Waiting]:
        """Take out all that these devices have pushed to these vaults, in its order."""
        found: list[Waiting] = []
        for vault in dict.fromkeys(vault for vault, _ in pushers):
            place = next((place for place in (self._taken, self._calm, self._busy) if vault in place), None)
            if place is None:
                continue
            kept = _Line()
            for waiting in place[vault].items:
                if (vault, waiting.admitted.device) in pushers:
                    found.append(waiting)
                else:
                    kept.add(waiting)
            if kept.items or place is self._taken:
                place[vault] = kept
            else:
                del place[vault]
        self._count -= len(found)
        self.size -= sum(waiting.admitted.size for waiting in found)
        return found
