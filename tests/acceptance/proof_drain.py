"""A relay is stopped in good order under full load, again and again: nothing acknowledged is lost, nothing is doubled.

Some devices push without pause, many others are just there. Each time the relay is asked to end it must say to all when
to come back, answer what was pushed, and close their connections with 1012, in waves. It is started again, and all come
back by themselves. In the end the log must hold each acknowledged record once, at its place.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import trio

from demo.news import News
from demo.processes import StoryError
from demo.relay import Relay
from sealwire_client.link import Link, LinkState
from sealwire_protocol.errors import CloseCode
from sealwire_relay.waves import plan
from tests.acceptance.pushing import Compared, Pusher, answered, compared, end_of, linked, reached

LIMIT_S = 600
LIMIT_SHORT_S = 400

ROUNDS: Final = 10
ROUNDS_SHORT: Final = 2
PUSHERS: Final = 40
DEVICES: Final = 200
"""In all: four waves."""

WINDOW: Final = 8
RECORDS: Final = 4
VERDICTS: Final = 20
"""Pushes of each device that are answered between two ends."""

DRAIN_S: Final = 40
"""So long that nothing is cut on a busy machine."""

RETURN_S: Final = 4
"""A relay with a Postgres of its own takes some seconds to start again on a busy machine."""


class Watched:
    """When a device went, how, and when it was back. `tell` is called for both."""

    def __init__(self, link: Link, tell: Callable[[], None]) -> None:
        self.link, self._tell = link, tell
        self.gone_at = self.back_at = 0.0
        self.why = ""

    @property
    def is_there(self) -> bool:
        """True from its return until it goes, both as noted."""
        return self.back_at > self.gone_at

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            await self.link.until(lambda link: link.state is LinkState.ONLINE)
            self.back_at = time.monotonic()
            self._tell()
            await self.link.until(lambda link: link.state is not LinkState.ONLINE)
            self.gone_at, self.why = time.monotonic(), self.link.last_error or ""
            self._tell()


class Crowd:
    """Devices that are just there, in a thread of their own: when they notice something depends on nobody's pushes."""

    def __init__(self, links: Iterable[Link], news: News) -> None:
        self._news = news
        self.watched = [Watched(link, self._tell) for link in links]
        self._begun = trio.Event()
        self._scope = trio.CancelScope()
        self._here: trio.lowlevel.TrioToken | None = None
        self._there: trio.lowlevel.TrioToken | None = None

    async def run(self) -> None:
        """Until cancelled."""
        self._here = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, trio.run, self._live)
            with trio.CancelScope(shield=True):
                await self._begun.wait()
            try:
                await trio.sleep_forever()
            finally:
                assert self._there is not None
                self._there.run_sync_soon(self._scope.cancel)

    async def _live(self) -> None:
        assert self._here is not None
        self._there = trio.lowlevel.current_trio_token()
        self._here.run_sync_soon(self._begun.set)
        with self._scope:
            async with trio.open_nursery() as nursery:
                for watched in self.watched:
                    nursery.start_soon(watched.link.run)
                    nursery.start_soon(watched.watch)

    def _tell(self) -> None:
        assert self._here is not None
        self._here.run_sync_soon(self._news.tell, idempotent=True)


class Drain:
    """The story of one run."""

    def __init__(self, folder: Path) -> None:
        self._relay = Relay(folder, "--drain-seconds", str(DRAIN_S), "--drain-return-seconds", str(RETURN_S))
        origin = self._relay.origin
        self._news = News()
        self.pushers = [
            Pusher(origin, number + 1, window=WINDOW, records=RECORDS, news=self._news) for number in range(PUSHERS)
        ]
        others = [linked(origin, number + 1)[1] for number in range(PUSHERS, DEVICES)]
        self._crowd = Crowd(others, self._news)
        self._watched = [*(Watched(pusher.link, self._news.tell) for pusher in self.pushers), *self._crowd.watched]
        self.spreads: list[float] = []
        self.away: list[float] = []
        self.not_told = self.unanswered = 0

    async def tell(self, rounds: int) -> Compared:
        """Start, stop and start again, and compare."""
        try:
            await self._relay.start()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._crowd.run)
                for watched in self._watched[:PUSHERS]:
                    nursery.start_soon(watched.link.run)
                    nursery.start_soon(watched.watch)
                for pusher in self.pushers:
                    await pusher.found()
                for _ in range(rounds):
                    await self._work()
                    await self._stop()
                    await self._relay.start()
                    await self._all_online()
                await self._work()
                await end_of(self.pushers)
                nursery.cancel_scope.cancel()
            return await trio.to_thread.run_sync(compared, self._relay.folder, self.pushers)
        finally:
            self._relay.abandon()

    async def _work(self) -> None:
        """Until each device has so many verdicts more."""
        await reached(self._news, answered(self.pushers, VERDICTS), "all pushers had verdicts")

    async def _reached(self, holds: Callable[[Watched], bool], what: str) -> None:
        await reached(self._news, lambda: all(map(holds, self._watched)), what)

    async def _all_online(self) -> None:
        await self._reached(lambda watched: watched.is_there, "all devices were back")
        self.away += [watched.back_at - watched.gone_at for watched in self._watched]

    async def _stop(self) -> None:
        await self._reached(lambda watched: watched.is_there, "all devices were there")
        asked = time.monotonic()
        if (status := await self._relay.end()) != 0:
            raise StoryError(f"The relay ended with {status}.")
        await self._reached(lambda watched: watched.gone_at >= asked, "all devices noticed the end")
        self.not_told += sum(f"({CloseCode.RESTARTING:d})" not in watched.why for watched in self._watched)
        gone = [watched.gone_at for watched in self._crowd.watched]
        self.spreads.append(max(gone) - min(gone))
        self.unanswered += sum(not pusher.is_idle for pusher in self.pushers)

    def figures(self, found: Compared) -> dict[str, object]:
        """What came of it."""
        span = plan(DEVICES, DRAIN_S).span
        # A busy machine may notice late that some have gone, but not each time all at one moment.
        return {
            "ok": found.is_right and not self.not_told and max(self.spreads) >= span / 2,
            "rounds": len(self.spreads),
            "devices": DEVICES,
            **found.figures(),
            "not_told": self.not_told,
            "pushers_with_something_to_send_again": self.unanswered,
            "waves_span_s": round(span, 2),
            "left_within_s": [round(spread, 2) for spread in self.spreads],
            "away_s_median": round(statistics.median(self.away), 2),
            "away_s_max": round(max(self.away), 2),
        }


def run(short: bool) -> dict[str, object]:
    """The proof: ok if nothing is lost, nothing stands twice, and all were told to come back, in waves."""
    with tempfile.TemporaryDirectory(prefix="drain-", ignore_cleanup_errors=True) as name:
        drain = Drain(Path(name))
        return drain.figures(trio.run(drain.tell, ROUNDS_SHORT if short else ROUNDS))
