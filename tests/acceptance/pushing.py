"""Devices that push without pause, each to a vault of its own, by the real link and session but without a replica.

So there can be many of them in one process. What they push is noise; what was acknowledged is remembered.
"""

import time
from collections.abc import Sequence
from typing import Final, cast

from sealwire_client.identity import DeviceIdentity
from sealwire_client.link import Link
from sealwire_protocol.errors import Outcome
from sealwire_protocol.events import Listen, Submit
from sealwire_protocol.ids import DeviceKey, Position, StreamId
from sealwire_protocol.links import vault_id_of
from sealwire_protocol.messages import (
    NO_REQUEST,
    CreateStream,
    CreateVault,
    Deliver,
    Fault,
    Group,
    Push,
    Pushed,
    StreamKind,
    Subscribed,
)
from tests.support.device import Identity, genesis, group, record, stream_id

STREAM: Final = stream_id(1)


class Keys(Identity):
    """A device's key pair, as the link wants it."""

    @property
    def device_key(self) -> DeviceKey:
        """The public one."""
        return self.key


def linked(origin: str, number: int) -> tuple[Keys, Link]:
    """A device, by its number, and its way to the relay; `Link.run` keeps it up."""
    keys = Keys(number)
    return keys, Link(origin, cast(DeviceIdentity, keys))


class Pusher:
    """One device. `window` pushes of `records` records of `units` each are under way at all times while it is `eager`.
    `same`: its pushes differ in their number alone, which costs nothing to make; `acked` has no more than one then."""

    def __init__(
        self, origin: str, number: int, *, window: int, records: int, units: int = 1, same: bool = False
    ) -> None:
        self.keys, self.link = linked(origin, number)
        self._window, self._records, self._units = window, records, units
        link = genesis(self.keys, number)
        self._genesis, self.vault = link, vault_id_of(link)
        self._batch = self._verdicts = 0
        self._unanswered: dict[int, tuple[Group, list[bytes]]] = {}
        self._began: dict[int, float] = {}
        self.eager = True
        self.acked: dict[bytes, int] = {}
        """By the salt of each acknowledged record its seq."""
        self.seconds: list[float] = []
        """From each push to its verdict."""
        self.faults = 0
        self.wrong: list[str] = []
        """What no honest device should be told."""

    async def found(self) -> None:
        """Make the vault and begin to push."""
        await self.link.request(CreateVault(NO_REQUEST, self._genesis))
        await self.link.request(CreateStream(NO_REQUEST, self.vault, STREAM, StreamKind.OPEN))
        self.link.follow(self.vault, self)

    @property
    def is_idle(self) -> bool:
        """True if every push has its verdict."""
        return not self._unanswered

    def push(self) -> None:
        """One more batch, now if the connection takes it, else as soon as it does."""
        self._batch += 1
        self._unanswered[self._batch] = self._make(self._batch)
        self._began[self._batch] = time.perf_counter()
        self._submit()

    def begin_again(self, eager: bool) -> int:
        """Push without pause from now on, or no more; returns how many records were acknowledged, and forgets them."""
        told, self._verdicts = self._verdicts, 0
        self.acked.clear()
        self.seconds.clear()
        self.eager = eager
        self._fill()
        return told * self._records

    def _make(self, version: int) -> tuple[Group, list[bytes]]:
        made = [record(version, tag=place, units=self._units) for place in range(self._records)]
        return group(STREAM, *made), [each.salt for each in made]

    def _submit(self) -> None:
        """Send what is not under way, in order."""
        session = self.link.session
        for batch, (pushed, _) in self._unanswered.items():
            term = None if session is None else session.term_of(self.vault)
            if session is None or term is None or not session.may_push(self.vault):
                return
            if batch not in session.outstanding(self.vault):
                self.link.handle(Submit(Push(self.vault, term, batch, 0, (pushed,))))

    def _fill(self) -> None:
        while self.eager and len(self._unanswered) < self._window:
            self.push()

    # --- Follower

    def online(self) -> None:
        """Ask for the term; it listens to nothing."""
        self.link.handle(Listen(self.vault, ()))

    def offline(self) -> None:
        """What is unanswered is sent again."""

    def subscribed(self, message: Subscribed) -> None:
        """Send again what has no verdict, in order, then more."""
        self._submit()
        self._fill()

    async def apply(self, delivers: Sequence[Deliver]) -> list[tuple[StreamId, Position]]:
        """Nothing comes."""
        return []

    def pushed(self, message: Pushed) -> None:
        """A verdict."""
        _, salts = self._unanswered.pop(message.batch, (None, None))
        if salts is None:
            return  # it was told twice
        if message.outcome is not Outcome.DONE or message.refused:
            self.wrong.append(f"batch {message.batch}: {message.outcome.name}")
            return
        self.seconds.append(time.perf_counter() - self._began.pop(message.batch))
        self._verdicts += 1
        first = message.appended[0].first
        self.acked.update((salt, first + place) for place, salt in enumerate(salts))
        self._submit()
        self._fill()

    def fault(self, message: Fault) -> None:
        """The session subscribes again when it is time."""
        self.faults += 1

    def history_lost(self, stream: StreamId, reason: str) -> None:
        """It listens to nothing."""
        self.wrong.append(reason)
