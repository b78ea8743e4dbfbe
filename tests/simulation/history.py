"""What happened in a run, in order. Positions in time are numbers of steps; ranks are packed, so that they compare."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sealwire_protocol.conditions import Condition, decode_conditions
from sealwire_protocol.errors import Refusal
from sealwire_protocol.ids import StreamId
from sealwire_protocol.messages import REFILL, RESEAL, Push, Pushed
from sealwire_protocol.segment import read_record

Key = tuple[StreamId, str]
Name = tuple[StreamId, bytes]
"""A sealed record: its stream and its rank, which contains its author and a salt."""


class Violation(AssertionError):
    """A promise was broken. The message names it first."""


@dataclass(slots=True)
class Edit:
    """An edit that a replica has made. `seen`: the rank that stood there, `before`: what was shown.

    `certain`: False if the device died meanwhile, so that it may be gone. `tx`: the transaction that it is part of.
    `n`: the replica's name for it.
    """

    device: str
    place: Key
    value: bytes | None
    step: int
    seen: bytes
    certain: bool = True
    before: bytes | None = None
    tx: int = 0
    n: int = 0


class Seal(NamedTuple):
    """A record that a device sealed and stored. It stands for the device's edits of the key from n `first` to `n`."""

    device: str
    place: Key
    value: bytes | None
    rank: bytes
    step: int
    first: int = 0
    n: int = 0


class Call(NamedTuple):
    """An app's call, from when it began."""

    device: str
    place: Key
    value: bytes | None
    step: int


class Ack(NamedTuple):
    """A group of a push that a device was told to be committed: where its accepted records are.

    `refill`: they are records that it has given back.
    """

    device: str
    stream: StreamId
    records: tuple[tuple[int, bytes], ...]
    step: int
    refill: bool = False


class Refused(NamedTuple):
    """A record that a device was told to be refused, and the seq of what came first (0: nothing stands there).

    `eras`: how often the database had been restored when the push was sent first, and when the verdict arrived.
    """

    device: str
    stream: StreamId
    rank: bytes
    reason: Refusal
    seq: int
    winner: bytes
    refill: bool = False
    eras: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class Transfer:
    """A strict transaction that an app asked for. `done` None: it may or may not have been made."""

    device: str
    name: str
    done: bool | None = None


@dataclass(slots=True)
class _Together:
    """The edits of one transaction of a device."""

    places: set[Key] = field(default_factory=set)
    certain: bool = True


class History:
    """Gathers what happens. `fail` keeps the first violation that is seen while the run goes on."""

    def __init__(self) -> None:
        self.step = 0
        self.calls: list[Call] = []
        self.edits: list[Edit] = []
        self.seals: list[Seal] = []
        self.acks: list[Ack] = []
        self.refused: list[Refused] = []
        self.transfers: list[Transfer] = []
        self.atomic: list[tuple[Name, ...]] = []
        """The records of every atomic batch that was sealed."""
        self.conditions: dict[Name, Condition] = {}
        self.returned: dict[Name, set[tuple[str, int]]] = defaultdict(set)
        """Records that devices have given back after a loss, and the batches in which they did."""
        self.resealed: set[Name] = set()
        """Records that devices have sealed anew under a new key: nobody has written anything by them."""
        self.received: set[Name] = set()
        """Records that a device has been delivered, or has fetched, also if it died over it."""
        self.turned_away: set[Name] = set()
        """Records of batches that were refused as a whole: what they say is sealed again, or shown to be refused."""
        self.merged: list[Edit] = []
        """Lost entries of a device that became part of the edit `n`, because another write came before they were given
        back. Not certain: what others have taken out of them since is to stay out."""
        self.came_back: set[str] = set()
        """Devices that were removed and invited again: what they had sent before may have been taken or not."""
        self.restores = 0
        self.broken: str | None = None
        self._unsealed: dict[tuple[str, Key], Edit] = {}
        self._together: dict[tuple[str, int], _Together] = {}
        self._pushes: dict[tuple[str, int, int], tuple[Push, int]] = {}
        self._digest = hashlib.blake2b(digest_size=16)

    def add(self, kind: str, who: str, data: bytes = b"") -> None:
        """One more step."""
        self.step += 1
        self._digest.update(f"{self.step} {kind} {who} {len(data)} ".encode() + data)

    @property
    def digest(self) -> str:
        """The whole history as a number."""
        return self._digest.hexdigest()

    def fail(self, what: str) -> None:
        """Remember a broken promise, if it is the first."""
        self.broken = self.broken or f"{what} (step {self.step})"

    # --- in the replica

    def unsealed(self, device: str, place: Key) -> Edit | None:
        """The last edit of a key by a device, if the device has not sealed it yet."""
        return self._unsealed.get((device, place))

    def edited(self, edit: Edit) -> None:
        """A device has made an edit."""
        self.edits.append(edit)
        self._unsealed[edit.device, edit.place] = edit
        if edit.tx:
            known = self._together.get((edit.device, edit.tx))
            # The number of one that a crash has undone is used again.
            if known is None or (edit.n == edit.tx and not known.certain):
                known = self._together[edit.device, edit.tx] = _Together(certain=edit.certain)
            known.places.add(edit.place)

    def sealed(self, seals: Sequence[Seal], transactions: Sequence[int], atomic: bool) -> None:
        """A device has sealed and stored a batch; `transactions` says of each record to which one it belongs."""
        for seal in seals:
            self.seals.append(seal)
            self._unsealed.pop((seal.device, seal.place), None)
        if atomic:
            self.atomic.append(tuple((seal.place[0], seal.rank) for seal in seals))
        for tx in {tx for tx in transactions if tx}:
            device = seals[0].device
            places = {seal.place for seal, of in zip(seals, transactions, strict=True) if of == tx}
            made = self._together[device, tx].places
            # Before a restore a part of it may have been delivered: that is given back, and the rest is sent again. Of
            # what was sent before a removal a part may have been superseded, if it was taken.
            whole = places <= made if self.restores or device in self.came_back else places == made
            if not atomic or len(set(transactions)) > 1 or not whole:
                self.fail(f"atomic groups stay whole: {device} seals {len(places)} of transaction {tx}")

    # --- at the network

    def pushed(self, device: str, push: Push, member: int = 1) -> None:
        """A batch of a device, which is this member of its vault, is being sent: always with the bytes that it had the
        first time."""
        known, _ = self._pushes.setdefault((device, member, push.batch), (push, self.restores))
        if (known.flags, known.groups) != (push.flags, push.groups):
            self.fail(f"the same bytes until there is a verdict: {device} sends batch {push.batch} with others")
        for group in push.groups:
            names = [(group.stream, rank) for rank in ranks_of(group.records)]
            if push.flags & RESEAL:
                self.resealed.update(names)
            if push.flags & RESEAL or not group.conditions:
                continue
            if push.flags & REFILL:
                for name in names:
                    self.returned[name].add((device, push.batch))
            else:
                conditions = decode_conditions(group.conditions, len(names))
                self.conditions |= dict(zip(names, conditions, strict=True))

    def batch(self, device: str, number: int, member: int = 1) -> Push:
        """A batch of a device, as it was sent."""
        return self._pushes[device, member, number][0]

    def turn_away(self, device: str, batch: int, member: int) -> None:
        """A device hears that a batch was refused as a whole."""
        for group in self._pushes[device, member, batch][0].groups:
            self.turned_away |= {(group.stream, rank) for rank in ranks_of(group.records)}

    def answered(self, device: str, verdict: Pushed, member: int = 1) -> None:
        """A device hears what became of a batch that it sent as this member."""
        refused = {(each.group, each.place): each for each in verdict.refused}
        told = {group.stream: group for group in verdict.appended}
        push, era = self._pushes[device, member, verdict.batch]
        if push.flags & RESEAL:
            return  # nobody waits for it
        refill = bool(push.flags & REFILL)
        for index, group in enumerate(push.groups):
            accepted: list[bytes] = []
            for place, rank in enumerate(ranks_of(group.records)):
                no = refused.get((index, place))
                if no is None:
                    accepted.append(rank)
                    continue
                if push.flags & RESEAL:
                    continue  # it is looked at again
                eras = era, self.restores
                self.refused.append(Refused(device, group.stream, rank, no.reason, no.seq, no.winner, refill, eras))
            at = told.get(group.stream)
            if len(accepted) != (at.records if at else 0):
                self.fail(f"every record has its verdict: {device}'s batch {verdict.batch}")
            elif at is not None:
                records = tuple(enumerate(accepted, at.first))
                self.acks.append(Ack(device, group.stream, records, self.step, refill))


def ranks_of(records: bytes) -> list[bytes]:
    """The packed ranks of the records of a push, in order."""
    found, at = [], 0
    while at < len(records):
        _, record, at = read_record(records, at)
        found.append(record.rank.pack())
    return found


def by_device(edits: Sequence[Edit]) -> dict[tuple[str, Key], list[Edit]]:
    """Edits by device and key, in order."""
    found: dict[tuple[str, Key], list[Edit]] = defaultdict(list)
    for edit in edits:
        found[edit.device, edit.place].append(edit)
    return found
