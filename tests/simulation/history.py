"""What happened in a run, and what must be true of it: the promises of the log and of the replicas, as a checker.

Positions in time are numbers of steps. A rank is packed as replicas keep it, so that ranks compare as bytes.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sealwire_client.sealing import Opener
from sealwire_protocol.ids import MEMBERSHIP, StreamId
from sealwire_protocol.messages import Appended, Push
from sealwire_protocol.segment import TOMBSTONE

Key = tuple[StreamId, str]


class Violation(AssertionError):
    """A promise was broken. The message names it first."""


@dataclass(slots=True)
class Edit:
    """An edit that an app asked for. `durable`: the step at which the replica had it, if it is known to."""

    device: str
    place: Key
    value: bytes | None
    step: int
    seen: bytes
    certain: bool = True


class Seal(NamedTuple):
    """A record that a device sealed and stored."""

    device: str
    place: Key
    value: bytes | None
    rank: bytes
    step: int


class Call(NamedTuple):
    """An app's call, from when it began."""

    device: str
    place: Key
    value: bytes | None
    step: int


class Ack(NamedTuple):
    """A group of a push that a device was told to be committed."""

    device: str
    group: Appended
    records: bytes
    step: int


class Logged(NamedTuple):
    """A record of the log."""

    seq: int
    key: str
    rank: bytes
    value: bytes | None


class History:
    """Gathers what happens. `fail` keeps the first violation that is seen while the run goes on."""

    def __init__(self) -> None:
        self.step = 0
        self.calls: list[Call] = []
        self.edits: list[Edit] = []
        self.seals: list[Seal] = []
        self.acks: list[Ack] = []
        self.broken: str | None = None
        self._unsealed: dict[tuple[str, Key], Edit] = {}
        self._pushes: dict[tuple[str, int], Push] = {}
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

    def unsealed(self, device: str, place: Key) -> Edit | None:
        """The last edit of a key by a device, if the device has not sealed it yet."""
        return self._unsealed.get((device, place))

    def edited(self, edit: Edit) -> None:
        """A device has made an edit."""
        self.edits.append(edit)
        self._unsealed[edit.device, edit.place] = edit

    def sealed(self, seal: Seal) -> None:
        """A device has sealed a record."""
        self.seals.append(seal)
        self._unsealed.pop((seal.device, seal.place), None)

    def pushed(self, device: str, push: Push) -> None:
        """A batch is being sent: always with the bytes that it had the first time."""
        known = self._pushes.setdefault((device, push.batch), push)
        if known.groups != push.groups:
            self.fail(f"the same bytes until there is a verdict: {device} sends batch {push.batch} with others")

    def acked(self, device: str, batch: int, appended: Sequence[Appended]) -> None:
        """A device hears that a batch was committed."""
        records = {group.stream: group.records for group in self._pushes[device, batch].groups}
        for group in appended:
            self.acks.append(Ack(device, group, records[group.stream], self.step))


def read(opener: Opener, segments: Iterable[tuple[int, int, bytes]]) -> Iterator[Logged]:
    """The records of a log, opened. Raises Violation where its seqs do not follow each other."""
    at = 0
    for prev, last, body in segments:
        found = opener.open_segment(body, prev)
        if found.unopened:
            raise Violation(f"sealed records open: {found.unopened[0]} does not")
        if prev != at or [record.seq for record in found.opened] != list(range(prev + 1, last + 1)):
            raise Violation(f"seqs have no gaps: the segment after {at} says ({prev}, {last}]")
        at = last
        for record in found.opened:
            value = None if record.flags & TOMBSTONE else record.value
            yield Logged(record.seq, record.key, record.rank, value)


class Checker:
    """Holds a history against the log that is left at the end."""

    def __init__(self, history: History, logs: Mapping[StreamId, list[Logged]], openers: Mapping[StreamId, Opener]):
        self.history, self.logs, self.openers = history, logs, openers
        self.winners: dict[Key, Logged] = {}
        for stream, log in logs.items():
            assert stream != MEMBERSHIP
            for record in log:
                held = self.winners.get((stream, record.key))
                if held is None or record.rank > held.rank:
                    self.winners[stream, record.key] = record

    def shown(self, stream: StreamId) -> dict[str, bytes]:
        """What every replica must show of a stream."""
        winners = {key: record.value for (of, key), record in self.winners.items() if of == stream}
        return {key: value for key, value in winners.items() if value is not None}

    def check(self) -> None:
        """All promises about the log. Raises Violation."""
        self.once()
        self.acked_is_logged()
        self.in_real_time()
        self.nothing_lost()
        self.no_conflict_with_itself()

    def once(self) -> None:
        """No record stands in the log twice, and every one was sealed by a device."""
        sealed = {seal.rank for seal in self.history.seals}
        for stream, log in self.logs.items():
            seen: dict[tuple[str, bytes], int] = {}
            for record in log:
                name = (record.key, record.rank)
                if name in seen:
                    raise Violation(f"exactly once: {record.key} stands at {seen[name]} and at {record.seq}")
                if record.rank not in sealed:
                    raise Violation(f"only devices write: {record.key} at {record.seq} of {stream.hex()}")
                seen[name] = record.seq

    def _positions(self, ack: Ack) -> list[Logged]:
        opened = self.openers[ack.group.stream].open_segment(ack.records, ack.group.first - 1).opened
        return [Logged(record.seq, record.key, record.rank, None) for record in opened]

    def acked_is_logged(self) -> None:
        """What a device was told to be committed is in the log, where it was told."""
        for ack in self.history.acks:
            log = self.logs[ack.group.stream]
            for record in self._positions(ack):
                if len(log) < record.seq or log[record.seq - 1].rank != record.rank:
                    raise Violation(f"acked means durable: {ack.device}'s {record.key} is not at {record.seq}")

    def _call_of(self, calls: Mapping[tuple[str, Key], list[Call]], seal: Seal) -> Call | None:
        for call in reversed(calls[seal.device, seal.place]):
            if call.step <= seal.step and call.value == seal.value:
                return call
        return None

    def in_real_time(self) -> None:
        """An edit that was begun after another one was acknowledged comes after it in the stream."""
        calls: dict[tuple[str, Key], list[Call]] = defaultdict(list)
        for call in self.history.calls:
            calls[call.device, call.place].append(call)
        seqs = {(stream, record.rank): record.seq for stream, log in self.logs.items() for record in log}
        begun: dict[StreamId, list[tuple[int, int]]] = defaultdict(list)
        for seal in self.history.seals:
            found, seq = self._call_of(calls, seal), seqs.get((seal.place[0], seal.rank))
            if found is None:
                raise Violation(f"what is sealed was asked for: {seal.device}'s {seal.place[1]}")
            if seq is not None:
                begun[seal.place[0]].append((found.step, seq))
        for stream, places in begun.items():
            acks = [(ack.step, r.seq) for ack in self.history.acks if ack.group.stream == stream
                    for r in self._positions(ack)]  # fmt: skip
            acks.sort(reverse=True)
            greatest = 0
            for step, seq in sorted(places):
                while acks and acks[-1][0] < step:
                    greatest = max(greatest, acks.pop()[1])
                if seq <= greatest:
                    raise Violation(f"order of time: seq {seq} was begun after seq {greatest} was acknowledged")

    def nothing_lost(self) -> None:
        """The last durable edit of a device and key is in the log; and no edit loses against what its device saw."""
        last: dict[tuple[str, Key], list[Edit]] = defaultdict(list)
        for edit in self.history.edits:
            if edit.certain:
                last[edit.device, edit.place] = []
            last[edit.device, edit.place].append(edit)
        seals: dict[tuple[str, Key], list[Seal]] = defaultdict(list)
        ranks = {(stream, record.rank) for stream, log in self.logs.items() for record in log}
        for seal in self.history.seals:
            if (seal.place[0], seal.rank) in ranks:
                seals[seal.device, seal.place].append(seal)
        for (device, place), edits in last.items():
            edit = edits[0]
            if not edit.certain:
                continue
            values = [e.value for e in edits]
            found = [seal for seal in seals[device, place] if seal.value in values and seal.step >= edit.step]
            found = found or [seal for seal in seals[device, place] if seal.value == edit.value is not None]
            if not found:
                raise Violation(f"nothing unsent is lost: {device}'s edit of {place[1]} at step {edit.step}")
            if found[-1].rank <= edit.seen:
                raise Violation(f"an edit wins over what its device saw: {device}'s of {place[1]}")

    def no_conflict_with_itself(self) -> None:
        """What a device seals later of a key has the greater rank."""
        greatest: dict[tuple[str, Key], bytes] = {}
        logged = {(stream, record.rank) for stream, log in self.logs.items() for record in log}
        for seal in self.history.seals:
            name = (seal.device, seal.place)
            if (seal.place[0], seal.rank) not in logged:
                continue
            if seal.rank <= greatest.get(name, b""):
                raise Violation(f"no device conflicts with itself: {seal.device}'s {seal.place[1]}")
            greatest[name] = seal.rank
