"""The relay's own Postgres hangs, and is killed, under load: pushers are slowed down, and nobody is sent away.

Devices push more than the relay may keep, and others listen to it. Again and again all processes of Postgres are
stopped (SIGSTOP) for a while and go on, or are killed with -9, upon which the relay starts it again. Meanwhile its
memory must stay bounded, all connections stay, and nobody be refused. Afterwards every push is answered, stands once
at its place, and was heard by who listens.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, cast

import trio

from demo.news import News
from demo.processes import StoryError
from demo.relay import Relay
from sealwire_client.identity import DeviceIdentity
from sealwire_client.link import Link, LinkState
from sealwire_protocol.events import Listen
from sealwire_protocol.ids import START, Position, StreamId
from sealwire_protocol.messages import Deliver, Fault, Pushed, Subscribed, Wanted
from sealwire_protocol.segment import read_segment
from sealwire_relay.embedded.datafolder import DataFolder
from tests.acceptance.pushing import STEP_S_MAX, STREAM, Compared, Pusher, answered, compared, end_of, reached
from tests.faults.site import metrics
from tests.support.postgres import kill_all, stopped

LIMIT_S = 600
LIMIT_SHORT_S = 240

PUSHERS: Final = 40
WINDOW: Final = 8
RECORDS: Final = 16
UNITS: Final = 1_000
"""Of a record: 16 KB. So a push has a quarter of a megabyte, and all of them that are under way have eighty."""

WAITING_BYTES: Final = 16_777_216
"""What the relay may keep of it, all in all."""

GROWTH_MIB_MAX: Final = 48.0
"""What its memory may grow by meanwhile: that, what was read of each device before it was held back, and a commit."""

VERDICTS: Final = 3
"""Pushes of each device that are answered before and after each outage."""

HANGS_S: Final = (3.0, 35.0)
"""How long Postgres is stopped: as a disk may be, and for longer than the relay waits for a commit's outcome."""

HANGS_SHORT_S: Final = (3.0,)

LOOK_S: Final = 0.1
MIB: Final = 1_048_576


class Listener:
    """The same device once more: it hears all that is pushed. The pusher's news are told of that too."""

    def __init__(self, origin: str, pusher: Pusher) -> None:
        self.link = Link(origin, cast(DeviceIdentity, pusher.keys))
        self._pusher = pusher
        self.heard: dict[bytes, int] = {}
        """By the salt of each record its seq."""
        self.wrong: list[str] = []

    def begin(self) -> None:
        """Listen from the beginning."""
        self.link.follow(self._pusher.vault, self)

    def online(self) -> None:
        """Listen."""
        self.link.handle(Listen(self._pusher.vault, (Wanted(STREAM, START, START),)))

    def offline(self) -> None:
        """Nothing is to be done."""

    def subscribed(self, message: Subscribed) -> None:
        """Nothing is to be done."""

    async def apply(self, delivers: Sequence[Deliver]) -> list[tuple[StreamId, Position]]:
        """Note what came."""
        for deliver in delivers:
            for seq, one in read_segment(deliver.segment, deliver.prev):
                if one.salt in self.heard or seq <= len(self.heard):
                    self.wrong.append(f"seq {seq} was heard twice")
                self.heard[one.salt] = seq
        self._pusher.news.tell()
        return [(deliver.stream, Position(deliver.term, deliver.last)) for deliver in delivers]

    def pushed(self, message: Pushed) -> None:
        """Never asked for."""

    def fault(self, message: Fault) -> None:
        """The session subscribes again when it is time."""

    def history_lost(self, stream: StreamId, reason: str) -> None:
        """Postgres lost nothing that it had committed."""
        self.wrong.append(reason)


class Outage:
    """The story of one run."""

    def __init__(self, folder: Path) -> None:
        self._relay = Relay(folder, "--waiting-bytes-max", str(WAITING_BYTES), "--clean-seconds", "0")
        origin = self._relay.origin
        self._news = News()
        self.pushers = [
            Pusher(origin, number + 1, window=WINDOW, records=RECORDS, units=UNITS, news=self._news)
            for number in range(PUSHERS)
        ]
        self.listeners = [Listener(origin, pusher) for pusher in self.pushers]
        self._links = [pusher.link for pusher in self.pushers] + [listener.link for listener in self.listeners]
        self.growth_mib: list[float] = []
        self.held_back: list[int] = []
        self.away_s: list[float] = []
        self.refused = self.unknown_outcomes = 0
        self.cut: list[str] = []
        """Why connections ended."""

    async def tell(self, hangs_s: Sequence[float]) -> Compared:
        """Start, hurt Postgres in both ways in turn, and compare."""
        try:
            await self._relay.start()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._relay.watch)
                for link in self._links:
                    nursery.start_soon(link.run)
                for pusher, listener in zip(self.pushers, self.listeners, strict=True):
                    pusher.eager = False
                    await pusher.found()
                    listener.begin()
                for pusher in self.pushers:
                    pusher.begin()
                nursery.start_soon(self._notice_cuts)
                for hang_s in hangs_s:
                    await self._work()
                    faults = sum(pusher.faults for pusher in self.pushers)
                    await self._hang(hang_s)
                    await self._work()
                    self.refused += sum(pusher.faults for pusher in self.pushers) - faults
                    await self._kill()
                await self._work()
                await end_of(self.pushers)
                await reached(self._news, self._all_heard, "all that was acknowledged was heard")
                self.unknown_outcomes = int((await self._metrics())["sealwire_unknown_outcomes_total"])
                nursery.cancel_scope.cancel()
            return await trio.to_thread.run_sync(compared, self._relay.folder, self.pushers)
        finally:
            self._relay.abandon()

    async def _hang(self, seconds: float) -> None:
        """Stop Postgres until pushers are held back, and for so long."""
        before = await self._metrics()
        with stopped(self._postgres):
            began = time.monotonic()
            await self._watch(before, lambda held: held > 0 and time.monotonic() - began >= seconds)

    async def _kill(self) -> None:
        """Kill Postgres, and wait until the relay has started it again."""
        before, began = await self._metrics(), time.monotonic()
        await trio.to_thread.run_sync(kill_all, self._postgres)
        # One verdict more than were under way: of a push that was made since.
        is_over = answered(self.pushers, WINDOW + 1)
        await self._watch(before, lambda _: is_over())
        self.away_s.append(round(time.monotonic() - began, 1))

    async def _watch(self, before: dict[str, float], is_over: Callable[[int], bool]) -> None:
        """Look at the relay until it is over, given how many are held back now."""
        most = most_held = 0.0
        end = trio.current_time() + STEP_S_MAX
        while True:
            now = await self._metrics()
            most = max(most, now["process_resident_memory_bytes"] - before["process_resident_memory_bytes"])
            held = now["sealwire_held_back_connections"]
            most_held = max(most_held, held)
            if is_over(int(held)):
                break
            if trio.current_time() > end:
                raise StoryError(f"Not over within {STEP_S_MAX:.0f} s; {held:.0f} connections are held back.")
            await trio.sleep(LOOK_S)
        self.growth_mib.append(round(most / MIB, 1))
        self.held_back.append(int(most_held))

    async def _notice_cuts(self) -> None:
        """Count connections that end, until cancelled."""
        async with trio.open_nursery() as nursery:
            for link in self._links:
                nursery.start_soon(self._notice_cut, link)

    async def _notice_cut(self, link: Link) -> None:
        while True:
            await link.until(lambda link: link.state is LinkState.ONLINE)
            await link.until(lambda link: link.state is not LinkState.ONLINE)
            self.cut.append(link.last_error or "")

    async def _work(self) -> None:
        """Until each device has so many verdicts more."""
        await reached(self._news, answered(self.pushers, VERDICTS), "all pushers had verdicts")

    def _all_heard(self) -> bool:
        return all(
            len(listener.heard) >= len(pusher.acked)
            for pusher, listener in zip(self.pushers, self.listeners, strict=True)
        )

    async def _metrics(self) -> dict[str, float]:
        return await trio.to_thread.run_sync(metrics, self._relay.control)

    @property
    def _postgres(self) -> Path:
        return DataFolder(self._relay.folder).cluster

    def figures(self, found: Compared) -> dict[str, object]:
        """What came of it."""
        misheard = [why for listener in self.listeners for why in listener.wrong]
        unheard = sum(
            listener.heard.get(salt) != seq
            for pusher, listener in zip(self.pushers, self.listeners, strict=True)
            for salt, seq in pusher.acked.items()
        )
        bad = unheard or self.cut or self.refused or misheard
        return {
            "ok": found.is_right and not bad and max(self.growth_mib) <= GROWTH_MIB_MAX,
            "outages": len(self.growth_mib),
            "offered_mib": round(PUSHERS * WINDOW * RECORDS * UNITS * 16 / MIB),
            "growth_mib": self.growth_mib,
            "growth_mib_max": GROWTH_MIB_MAX,
            "held_back_connections": self.held_back,
            "away_s_after_kill": self.away_s,
            **found.figures(),
            "unheard": unheard,
            "misheard": misheard[:5],
            "connections_cut": len(self.cut),
            "why_cut": sorted(set(self.cut))[:5],
            "refused_while_it_hung": self.refused,
            "unknown_outcomes": self.unknown_outcomes,
        }


def run(short: bool) -> dict[str, object]:
    """The proof: ok if nothing is lost or doubled, nobody is cut or refused, and the relay's memory stays bounded."""
    with tempfile.TemporaryDirectory(prefix="outage-", ignore_cleanup_errors=True) as name:
        outage = Outage(Path(name))
        return outage.figures(trio.run(outage.tell, HANGS_SHORT_S if short else HANGS_S))
