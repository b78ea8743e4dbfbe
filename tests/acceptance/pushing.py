"""Devices that push without pause, each to a vault of its own, by the real link and session but without a replica.

So there can be many of them in one process. What they push is noise; what was acknowledged is remembered, and held
against the log in the end.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, cast

from demo import inside
from demo.news import News
from demo.processes import StoryError
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
from sealwire_protocol.segment import read_segment
from tests.support.device import Identity, genesis, group, record, stream_id

STREAM: Final = stream_id(1)

STEP_S_MAX: Final = 150.0
"""For what many of them do together, on a busy machine."""


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
    """One device. `window` pushes of `records` records of `units` each are under way at all times while it is
    `eager`. `news` are told of each answer to a push; several may share them."""

    def __init__(
        self, origin: str, number: int, *, window: int, records: int, units: int = 1, news: News | None = None
    ) -> None:
        self.keys, self.link = linked(origin, number)
        self.news = news or News()
        self._window, self._records, self._units = window, records, units
        link = genesis(self.keys, number)
        self._genesis, self.vault = link, vault_id_of(link)
        self._batch = 0
        self._unanswered: dict[int, tuple[Group, list[bytes]]] = {}
        self.eager = True
        self.verdicts = 0
        """Pushes that were answered."""
        self.acked: dict[bytes, int] = {}
        """By the salt of each acknowledged record its seq."""
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

    async def idle(self) -> None:
        """Wait until every push has its verdict. Raises StoryError if they do not get it within STEP_S_MAX."""
        await reached(self.news, lambda: self.is_idle, "all pushes answered")

    def push(self) -> None:
        """One more batch, now if the connection takes it, else as soon as it does."""
        self._batch += 1
        self._unanswered[self._batch] = self._make(self._batch)
        self._submit()

    def begin(self) -> None:
        """Push without pause from now on."""
        self.eager = True
        self._fill()

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
        self.news.tell()
        if message.outcome is not Outcome.DONE or message.refused:
            self.wrong.append(f"batch {message.batch}: {message.outcome.name}")
            return
        self.verdicts += 1
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


def answered(pushers: Sequence[Pusher], more: int) -> Callable[[], bool]:
    """Whether each of them has had so many verdicts more than now."""
    then = [pusher.verdicts + more for pusher in pushers]
    return lambda: all(pusher.verdicts >= count for pusher, count in zip(pushers, then, strict=True))


async def reached(news: News, holds: Callable[[], bool], what: str) -> None:
    """Wait until something holds of which the news are told. Raises StoryError if it does not within STEP_S_MAX."""
    if not await news.until(holds, STEP_S_MAX):
        raise StoryError(f"Not reached within {STEP_S_MAX:.0f} s: {what}.")


async def end_of(pushers: Sequence[Pusher]) -> None:
    """Push no more, and wait until everything is answered."""
    for pusher in pushers:
        pusher.eager = False
    for pusher in pushers:
        await pusher.idle()


class Compared(NamedTuple):
    """What became of all that was pushed."""

    acked: int
    stored: int
    """Records that were acknowledged, and records that stand in the log."""
    lost: int
    """Acknowledged ones that are not where they should be."""
    doubled: int
    """Ones that stand there twice."""
    wrong: list[str]
    """What no honest device should be told."""

    @property
    def is_right(self) -> bool:
        """True if everything that was acknowledged stands once, at its place, and nothing else."""
        return not (self.lost or self.doubled or self.wrong) and self.acked == self.stored

    def figures(self) -> dict[str, object]:
        """For the result of a proof: all of them, but few of what is wrong."""
        return {**self._asdict(), "wrong": self.wrong[:5]}


def compared(folder: Path, pushers: Sequence[Pusher]) -> Compared:
    """Hold what was acknowledged against the log of the relay in this folder, which runs. Blocks."""
    held: dict[bytes, dict[bytes, int]] = {}
    doubled = stored = 0
    for vault, _, prev, _, body in inside.segments(folder):
        seqs = held.setdefault(vault.bytes, {})
        for seq, one in read_segment(body, prev):
            doubled += one.salt in seqs
            seqs[one.salt] = seq
            stored += 1
    lost = sum(held.get(pusher.vault, {}).get(salt) != seq for pusher in pushers for salt, seq in pusher.acked.items())
    acked = sum(len(pusher.acked) for pusher in pushers)
    return Compared(acked, stored, lost, doubled, [why for pusher in pushers for why in pusher.wrong])
