"""Which streams of a vault are to be subscribed to, from where, and what the relay tells of them then."""

from collections.abc import Iterable, Mapping

from sealwire_client.link import Link
from sealwire_client.memberlog import MemberLog
from sealwire_client.replica import HeldVault, Replica, Runner
from sealwire_client.stream import StreamSync, settle_kind
from sealwire_protocol.events import Beside, Listen
from sealwire_protocol.history import newest_term
from sealwire_protocol.ids import MEMBERSHIP, NO_TERM, START, StreamId
from sealwire_protocol.limits import SUBSCRIBE_STREAMS_MAX
from sealwire_protocol.messages import StreamKind, Subscribed, Wanted


class Listening:
    """The subscriptions of one vault. `wrong` is told what is wrong with a collection, by its name."""

    def __init__(
        self,
        held: HeldVault,
        streams: Mapping[StreamId, StreamSync],
        members: MemberLog,
        writer: Runner[Replica],
        wrong: dict[str, str],
    ) -> None:
        self._held, self._streams, self._members, self._writer, self._wrong = held, streams, members, writer, wrong
        self._unheard: list[StreamId] = []
        self._term = NO_TERM
        self._moved_at = members.membership.moved_at
        self._unanswered = self._late = 0

    def online(self) -> None:
        """The relay was asked nothing on this connection."""
        self._unanswered = self._late = 0
        self.anew()

    def refused(self) -> bool:
        """The relay has no such vault. True: it was asked that before it was given the vault."""
        late = self._late > 0
        self._answered()
        return late

    def given_back(self) -> None:
        """The relay has the vault from now on; what it was asked before that it may refuse all the same."""
        self._late = self._unanswered

    def _answered(self) -> None:
        self._unanswered, self._late = max(0, self._unanswered - 1), max(0, self._late - 1)

    def anew(self) -> None:
        """Nothing is subscribed to."""
        self._unheard = [MEMBERSHIP, *self._streams]

    def add(self, streams: Iterable[StreamId]) -> None:
        """Subscribe to these next, again if they are subscribed to: until then it is not known how far they go. Not to
        what is to be reconciled first."""
        for name in streams:
            stream = self._streams.get(name)
            if stream is None or stream.lost is None:
                self._unheard.append(name)
            if stream is not None and stream.lost is None:
                stream.told = False

    async def listen(self, link: Link) -> None:
        """Subscribe to what is new, where the replica stands; after a MOVE to everything again, since a vault that came
        back to this relay has begun anew there."""
        if self._moved_at != self._members.membership.moved_at:
            self._moved_at = self._members.membership.moved_at
            self.anew()
        names, self._unheard = list(dict.fromkeys(self._unheard)), []
        if self._members.membership.relay is not None and not self._members.is_one:
            # The relay may have the vault as it was before it was moved away, and back: the log comes first.
            self._unheard = [name for name in names if name != MEMBERSHIP]
            names = [name for name in names if name == MEMBERSHIP]
        numbers = [
            (name, self._streams[name].collection.number)
            for name in names
            if name != MEMBERSHIP and self._streams[name].lost is None
        ]

        def standings(replica: Replica) -> list[tuple[Wanted, Beside]]:
            found = []
            for name, number in numbers:
                standing, dropped = replica.positions.standing(number), replica.positions.dropped_to(number)
                beside = Beside(standing.whole_from, replica.outbox.sent.answered_at(number), dropped)
                found.append((Wanted(name, standing.cursor, standing.served), beside))
            return found

        wanted = await self._writer.run(standings) if numbers else []
        for each, _ in wanted:
            self._streams[each.stream].cursor = each.cursor.seq
        if MEMBERSHIP in names:
            wanted.insert(0, (Wanted(MEMBERSHIP, self._members.listen_from(), START), Beside()))
        for at in range(0, len(wanted), SUBSCRIBE_STREAMS_MAX):
            part = wanted[at : at + SUBSCRIBE_STREAMS_MAX]
            self._unanswered += 1
            link.handle(Listen(self._held.id, tuple(one for one, _ in part), tuple(beside for _, beside in part)))

    async def told(self, message: Subscribed) -> bool:
        """Take in how things stand. False: the relay has batches of this device that it did not send."""
        self._answered()
        told = [(state, self._streams[state.stream]) for state in message.streams if state.stream in self._streams]

        def remember(replica: Replica) -> int:
            with replica.transaction():
                if message.receipt:
                    replica.vaults.keep_receipt(self._held.number, message.receipt)
                for state, stream in told:
                    if state.kind is stream.collection.kind:
                        replica.vaults.confirm_kind(stream.collection.number)
                    if stream.lost is None:
                        replica.positions.told(stream.collection.number, state.terms, state.floor)
                        replica.forget(stream.collection, state.floor, state.floor_head)
                return replica.outbox.edits.next_batch(self._held.number)

        next_batch = await self._writer.run(remember)
        if message.term != self._term:
            self._term = message.term
            for stream in self._streams.values():
                stream.won = 0
                stream.void()
        for state in message.streams:
            if state.stream == MEMBERSHIP:
                self._members.tell(state.head)
        for state, stream in told:
            if newest_term(state) != (stream.told_terms[-1].term if stream.told_terms else NO_TERM):
                stream.won = 0
            stream.exists = state.kind is not StreamKind.ABSENT
            if stream.exists and not stream.misfit:
                stream.refused = False  # it could not be made, and somebody has
            stream.told_epoch = message.epoch
            stream.told_terms, stream.told_head = state.terms, state.head
            # It may be told from a view of the log that is older than a verdict which came before.
            stream.top, stream.head = state.top, max(state.head, stream.won, stream.cursor)
            stream.told = True  # who looks from here on learns how far it is behind
            if state.kind not in (StreamKind.ABSENT, stream.collection.kind):
                self._wrong[stream.collection.name] = stream.refuse_kind(state.kind)
                await self._writer.run(settle_kind, stream.collection, state.kind)
        return message.last_batch < next_batch
