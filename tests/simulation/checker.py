"""What must be true of a history and of the log that is left at its end: the promises of every stream.

A restore ends a history in the midst, and another one begins. In a run every device comes back, so whatever any of them
ever held must be in the last history, or be superseded there. What is said of places and of order is said within one
history, and of records that went straight into it.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from sealwire_client.sealing import Opener
from sealwire_client.statements import STATEMENTS
from sealwire_protocol.errors import Refusal
from sealwire_protocol.ids import StreamId, Tag
from sealwire_protocol.segment import TOMBSTONE, read_record
from tests.simulation.history import Call, Edit, History, Key, Name, Seal, Violation, by_device
from tests.simulation.things import ACCOUNTS, NOTES

_AUTHOR: Final = slice(10, 14)
"""Where a packed rank holds its author."""


class Logged(NamedTuple):
    """A record of the log."""

    seq: int
    key: str
    rank: bytes
    value: bytes | None
    tag: Tag = Tag(b"")


def read(opener: Opener, segments: Iterable[tuple[int, int, bytes]], at: int = 0) -> Iterator[Logged]:
    """The records of a log after a place, opened. Raises Violation where its seqs do not follow each other."""
    for prev, last, body in segments:
        found = opener.open_segment(body, prev)
        if found.unopened:
            raise Violation(f"sealed records open: {found.unopened[0]} does not")
        if prev != at or [record.seq for record in found.opened] != list(range(prev + 1, last + 1)):
            raise Violation(f"seqs have no gaps: the segment after {at} says ({prev}, {last}]")
        at = last
        for record in found.opened:
            value = None if record.flags & TOMBSTONE else record.value
            yield Logged(record.seq, record.key, record.rank, value, record.tag)


class Ended(NamedTuple):
    """What is known of how the present logs came to be, beside what is in them."""

    lost: Mapping[StreamId, Sequence[Logged]] = {}
    """Records that restores took away, by stream."""
    forgotten: Mapping[Key, int] = {}
    """Keys whose tombstone was purged, and the head then: no record of theirs up to there stands any more."""
    late: Collection[Key] = frozenset()
    """Deleted keys that somebody may bring back who came too late to learn that they were (R13)."""


_NOTHING_ENDED: Final = Ended()

Gone = Mapping[str, Mapping[Key, bytes | None]]

_NOBODY_GONE: Final[Gone] = {}


class Checker:
    """Holds a history against the logs that stand in the end. `names`: what each stream's collection is called. `gone`:
    devices that are no members any more, and what each shows of the keys of which something is unsent there."""

    def __init__(
        self,
        history: History,
        logs: Mapping[StreamId, list[Logged]],
        names: Mapping[StreamId, str],
        ended: Ended = _NOTHING_ENDED,
        gone: Gone = _NOBODY_GONE,
    ):
        self.history, self.logs, self.names, self.ended, self.gone = history, logs, names, ended, gone
        self.ranks = {(stream, record.rank): record.seq for stream, log in logs.items() for record in log}
        self.lost: set[Name] = {(stream, record.rank) for stream, log in ended.lost.items() for record in log}
        self.placed: dict[tuple[StreamId, int], set[bytes]] = defaultdict(set)
        """All records that ever stood at a place, in one history or another."""
        for stream, log in (*logs.items(), *ended.lost.items()):
            for record in log:
                self.placed[stream, record.seq].add(record.rank)
        self.origins = self._origins()
        self.winners: dict[Key, Logged] = {}
        for stream, log in logs.items():
            for record in log:
                place = stream, record.key
                held = self.winners.get(place)
                if record.seq > ended.forgotten.get(place, 0) and (held is None or record.rank >= held.rank):
                    self.winners[place] = record

    def _origins(self) -> dict[Name, bytes]:
        """Of what was sealed anew, the rank with which its author had sealed it."""
        sealed = {(seal.place, _write(seal.rank)): seal.rank for seal in self.history.seals}
        found: dict[Name, bytes] = {}
        for stream, log in (*self.logs.items(), *self.ended.lost.items()):
            for record in log:
                if (stream, record.rank) in self.history.resealed:
                    origin = sealed.get(((stream, record.key), _write(record.rank)))
                    if origin is None:
                        raise Violation(f"only devices write: {record.key} at {record.seq} was sealed anew by others")
                    found[stream, record.rank] = origin
        return found

    def shown(self, stream: StreamId) -> dict[str, bytes]:
        """What every replica must show of a stream."""
        winners = {key: record.value for (of, key), record in self.winners.items() if of == stream}
        return {key: value for key, value in winners.items() if value is not None}

    def stream(self, name: str) -> StreamId:
        """The stream of a collection."""
        return next(stream for stream, of in self.names.items() if of == name)

    def went_straight(self, name: Name) -> bool:
        """True if a record was never lost, nor given back."""
        return name not in self.lost and name not in self.history.returned

    def check(self) -> None:
        """All promises. Raises Violation."""
        self.once()
        self.sealed_anew_is_the_same()
        self.acked_is_logged()
        self.refused_is_not()
        self.all_or_none()
        self.in_real_time()
        self.nothing_lost()
        self.nothing_held_is_lost()
        self.no_conflict_with_itself()

    def once(self) -> None:
        """No record stands in the log twice, unless more than one device gave it back; and a device sealed it."""
        sealed = {seal.rank for seal in self.history.seals}
        for stream, log in self.logs.items():
            seen: dict[tuple[str, bytes], list[int]] = defaultdict(list)
            for record in log:
                places = seen[record.key, record.rank]
                places.append(record.seq)
                if len(places) > 1 + len(self.history.returned.get((stream, record.rank), ())):
                    raise Violation(f"exactly once: {record.key} stands at {places[-2]} and at {record.seq}")
                if record.rank not in sealed and (stream, record.rank) not in self.origins:
                    raise Violation(f"only devices write: {record.key} at {record.seq} of {stream.hex()}")

    def sealed_anew_is_the_same(self) -> None:
        """What is sealed anew has the value that its author gave it, and takes the place of that very record: else it
        changes nothing. After a loss what it was made from may come back later."""
        values = {(seal.place[0], seal.rank): seal.value for seal in self.history.seals}
        for stream, log in self.logs.items():
            held: dict[str, Logged] = {}
            for record in log:
                before, origin = held.get(record.key), self.origins.get((stream, record.rank))
                if before is None or record.rank >= before.rank:
                    held[record.key] = record
                if origin is None:
                    continue
                if record.value is None or record.value != values[stream, origin]:
                    raise Violation(f"what is sealed anew is the same: {record.key} at {record.seq} is not")
                wins = before is None or record.rank > before.rank
                if wins and not self.history.restores and (before is None or _write(before.rank) != _write(origin)):
                    raise Violation(f"what is sealed anew wins over nothing: {record.key} at {record.seq} does")

    def acked_is_logged(self) -> None:
        """What a device was told to be committed is in the log where it was told, or was until a restore."""
        for ack in self.history.acks:
            for seq, rank in ack.records:
                if rank not in self.placed[ack.stream, seq]:
                    raise Violation(f"acked means durable: a record of {ack.device} is not at {seq}")

    def refused_is_not(self) -> None:
        """What a device was told to be refused is not in the log, and what came first is another device's."""
        for refused in self.history.refused:
            who, name = refused.device, (refused.stream, refused.rank)
            if refused.refill:
                continue
            if name in self.ranks and self.went_straight(name) and set(refused.eras) == {self.history.restores}:
                raise Violation(f"a refused record is in no log: one of {who} is")
            if refused.reason is not Refusal.CONFLICT or not refused.seq:
                continue
            there = self.placed[refused.stream, refused.seq]
            if not there:
                raise Violation(f"a refusal names what came first: {who} is told of {refused.seq}, which is not there")
            # After a restore it may be an older one of its own, for that which it named has been lost.
            own = [
                winner[_AUTHOR] == refused.rank[_AUTHOR] and (refused.stream, winner) not in self.origins
                for winner in there
            ]
            if not self.history.restores and all(own):
                raise Violation(f"no device conflicts with itself: {who}'s write lost to its own at {refused.seq}")
            if refused.winner and read_record(refused.winner, 0)[1].rank.pack() not in there:
                raise Violation(f"a refusal tells what came first: {who} is told another record than {refused.seq}")

    def all_or_none(self) -> None:
        """An atomic batch stands in the log as a whole, or not at all. After a loss each record came back alone."""
        for names in self.history.atomic:
            there = [name for name in names if name in self.ranks]
            if there and len(there) < len(names) and all(map(self.went_straight, names)):
                raise Violation(f"atomic groups are whole: {len(there)} of {len(names)} records stand in the log")

    def _call_of(self, calls: Mapping[tuple[str, Key], list[Call]], seal: Seal) -> Call | None:
        merged = self.names[seal.place[0]] not in (NOTES, ACCOUNTS)
        for call in reversed(calls[seal.device, seal.place]):
            if call.step <= seal.step and (merged or call.value == seal.value):
                return call
        return None

    def in_real_time(self) -> None:
        """An edit that was begun after another one was acknowledged comes after it in the stream."""
        calls: dict[tuple[str, Key], list[Call]] = defaultdict(list)
        for call in self.history.calls:
            calls[call.device, call.place].append(call)
        merged = {(edit.device, edit.place) for edit in self.history.merged}
        begun: dict[StreamId, list[tuple[int, int]]] = defaultdict(list)
        for seal in self.history.seals:
            if self.names[seal.place[0]] == STATEMENTS:
                continue  # no app has asked for it
            found, seq = self._call_of(calls, seal), self.ranks.get((seal.place[0], seal.rank))
            if found is None and (seal.device, seal.place) in merged:
                continue  # what it had lost was all that it said
            if found is None:
                raise Violation(f"what is sealed was asked for: {seal.device}'s {seal.place[1]}")
            if seq is not None and self.went_straight((seal.place[0], seal.rank)):
                begun[seal.place[0]].append((found.step, seq))
        for stream, places in begun.items():
            acks = [
                (ack.step, seq)
                for ack in self.history.acks
                if ack.stream == stream
                for seq, rank in ack.records
                if self.went_straight((stream, rank))
            ]
            acks.sort(reverse=True)
            greatest = 0
            for step, seq in sorted(places):
                while acks and acks[-1][0] < step:
                    greatest = max(greatest, acks.pop()[1])
                if seq <= greatest:
                    raise Violation(f"order of time: seq {seq} was begun after seq {greatest} was acknowledged")

    def nothing_lost(self) -> None:
        """The last durable edit of a device and key was in a log; and no edit loses against what its device saw.

        Of what is merged: see `guarded`.
        """
        seals: dict[tuple[str, Key], list[Seal]] = defaultdict(list)
        for seal in self.history.seals:
            if self._was_logged((seal.place[0], seal.rank)):
                seals[seal.device, seal.place].append(seal)
        notes = [edit for edit in self.history.edits if self.names[edit.place[0]] == NOTES]
        for (device, place), made in by_device(notes).items():
            edits = _last(made)
            edit = edits[0]
            if not edit.certain:
                continue
            values = [e.value for e in edits]
            if self.gone.get(device, {}).get(place, b"") in values:
                continue  # it could not be sent, and is shown
            found = [seal for seal in seals[device, place] if seal.value in values and seal.step >= edit.step]
            found = found or [seal for seal in seals[device, place] if seal.value == edit.value is not None]
            if not found and self._may_be_superseded(device, place, values):
                continue
            if not found:
                raise Violation(f"nothing unsent is lost: {device}'s edit of {place[1]} at step {edit.step}")
            if found[-1].rank <= edit.seen:
                raise Violation(f"an edit wins over what its device saw: {device}'s of {place[1]}")

    def _may_be_superseded(self, device: str, place: Key, values: Sequence[bytes | None]) -> bool:
        """What a device sent before it was removed, and came back, counts as taken if something greater stands there:
        nobody knows whether it was."""
        if device not in self.history.came_back:
            return False
        greatest = max((record.rank for record in self.logs[place[0]] if record.key == place[1]), default=b"")
        return any(
            (seal.device, seal.place) == (device, place) and seal.value in values and seal.rank < greatest
            for seal in self.history.seals
        )

    def _was_logged(self, name: Name) -> bool:
        return name in self.ranks or name in self.lost

    def nothing_held_is_lost(self) -> None:
        """What a restore took away is in the log again, unless something greater is; and what was deleted stays so.

        Of what a device wrote that was removed before it could give it back, perhaps nobody else has heard.

        Of an entry that is guarded, and of which somebody wrote a version without knowledge of the one that was lost:
        see `guarded`. A strict write that nobody knew to be made is what its author is told of it in the end. Of a
        deletion that was forgotten before an older backup came back, nobody knows any more.
        """
        conflicts, withdrawn, forgotten = self.conflicts, self.withdrawn, self._forgotten()
        withdrawn |= {(seal.place[0], seal.rank) for seal in self.history.seals if seal.device in self.gone}
        greatest: dict[Key, bytes] = {}
        for stream, log in self.logs.items():
            for record in log:
                place = stream, record.key
                greatest[place] = max(record.rank, greatest.get(place, b""))
        for stream, lost in self.ended.lost.items():
            for record in lost:
                place = stream, record.key
                if (stream, record.rank) in self.origins:
                    continue  # that is what comes back
                given_up = place in conflicts or (stream, record.rank) in withdrawn
                given_up = given_up or record.rank <= forgotten.get(place, b"")
                if not given_up and record.rank > greatest.get(place, b""):
                    raise Violation(f"what a restore takes comes back: {record.key} of {record.seq} is lost")
        for place, highest in greatest.items():
            held = self.winners.get(place)
            if held is not None and held.rank < highest and place not in self.ended.late:
                raise Violation(f"what was deleted stays deleted: {place[1]} is back, from {held.seq}")

    def _forgotten(self) -> dict[Key, bytes]:
        """The greatest deletion that was lost, of each key of which deletions were forgotten."""
        greatest: dict[Key, bytes] = {}
        for stream, lost in self.ended.lost.items():
            for record in lost:
                place = stream, record.key
                if record.value is None and place in self.ended.late:
                    greatest[place] = max(record.rank, greatest.get(place, b""))
        return greatest

    @property
    def conflicts(self) -> set[Key]:
        """Guarded entries that were given back, and another version stood there."""
        sealed_by = self.sealed_by
        refused = [(r.stream, r.rank) for r in self.history.refused if r.refill and r.reason is not Refusal.SUPERSEDED]
        return {sealed_by[name].place for name in refused if name in sealed_by}

    @property
    def withdrawn(self) -> set[Name]:
        """Strict writes that a restore took before any device heard of them, also their authors: these have sent them
        again, and were told that they are not made, for what they replace was lost too."""
        acked = {(ack.stream, rank) for ack in self.history.acks for _, rank in ack.records}
        refused = {
            (each.stream, each.rank)
            for each in self.history.refused
            if self.names[each.stream] == ACCOUNTS and not each.refill and each.eras[0] < each.eras[1]
        }
        refused |= {name for name in self.history.turned_away if self.names[name[0]] == ACCOUNTS}
        return refused - acked - self.history.received

    def no_conflict_with_itself(self) -> None:
        """What a device seals later of a key has the greater rank."""
        greatest: dict[tuple[str, Key], bytes] = {}
        for seal in self.history.seals:
            name = (seal.device, seal.place)
            if not self._was_logged((seal.place[0], seal.rank)):
                continue
            if seal.rank <= greatest.get(name, b""):
                raise Violation(f"no device conflicts with itself: {seal.device}'s {seal.place[1]}")
            greatest[name] = seal.rank

    @property
    def sealed_by(self) -> dict[Name, Seal]:
        """Who sealed a record first."""
        found = {(seal.place[0], seal.rank): seal for seal in self.history.seals}
        return found | {name: found[name[0], origin] for name, origin in self.origins.items()}


def _write(rank: bytes) -> bytes:
    """What names a write in a packed rank, whoever has sealed it last: version and author."""
    return rank[:8] + rank[_AUTHOR]


def _last(edits: list[Edit]) -> list[Edit]:
    """The last edit that is certain, and those after it; all, if none is."""
    certain = [place for place, edit in enumerate(edits) if edit.certain]
    return edits[certain[-1] :] if certain else edits
