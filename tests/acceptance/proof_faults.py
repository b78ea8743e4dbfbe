"""Relays, Postgres and devices are killed with -9 in turn, under load: nothing acknowledged is lost, nothing doubled.

Three devices write to an open and two guarded collections as fast as the relay takes it, and note each record that it
acknowledges. In every round something is killed in the middle of it and started again, and connections to Postgres
break while it commits, so that the relay does not know the outcome. In the second half two relays serve one database,
and devices come back through the other one. In the end the log must hold each acknowledged record once, at its place;
all replicas, and one made from nothing, must be equal, and hold every edit that was durable on its device.
"""

import random
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from demo.processes import StoryError, until
from sealwire_client import Device
from tests.faults import acks
from tests.faults.devices import DeviceProcess, join
from tests.faults.editor import DEVICES, VAULT, Collections, rounds_durable
from tests.faults.site import Site, site
from tests.faults.verdict import Verdict, judge
from tests.support.vaults import all_have_read

LIMIT_S = 600
LIMIT_SHORT_S = 360

SEED: Final = 11
STEP_S_MAX: Final = 120.0
"""For so much progress as ends a round, on a busy machine."""

CATCH_UP_S_MAX: Final = 120.0
"""For a device that gets everything from the relay."""

CUT_S_MAX: Final = 2.0
"""For a commit to be met: under load there is one every few milliseconds."""

LOOK_S: Final = 0.05


@dataclass(frozen=True)
class Plan:
    """How much is to be done."""

    rounds: int
    acked_min: int
    unknown_min: int


LONG: Final = Plan(20, 200_000, 20)
SHORT_PLAN: Final = Plan(5, 12_000, 5)

OUTCOMES_A_ROUND: Final = 2
"""Outcomes that are lost in a round: twice as many as must be, in case one that nobody has read is killed."""

NOTED_PERCENT: Final = 115
"""Verdicts that are waited for, of the records that must be acknowledged: some tell of a conflict, or tell it again."""


class Faults:
    """The story of one run."""

    def __init__(self, folder: Path, place: Site, plan: Plan) -> None:
        self.place, self.plan = place, plan
        self.editors = [DeviceProcess("tests.faults.editor", folder, number) for number in range(DEVICES)]
        self.killed = dict.fromkeys(("relay", "backend", "device", "postgres", "all"), 0)
        self.fresh = folder / "fresh"
        self._chance = random.Random(SEED)
        self._began = time.monotonic()

    def acked(self) -> int:
        """Verdicts that devices have noted."""
        return sum(acks.count(editor.folder / "acks") for editor in self.editors)

    async def tell(self) -> None:
        """Set up, edit under faults, compare."""
        place, plan = self.place, self.plan
        await place.start(place.relays[0])
        await self._members()
        for editor in self.editors:
            editor.start(place.origin)
        victims = (self._relay, self._backend, self._device, self._postgres, self._all)
        for number in range(plan.rounds):
            if number == plan.rounds // 2:
                await place.start(place.relays[1])
                place.front.cut()
            await self._progress((number + 1) / plan.rounds)
            await self._lose_outcomes(OUTCOMES_A_ROUND * (number + 1))
            await victims[number % len(victims)]()
            self._say(f"round {number + 1} of {plan.rounds}, {victims[number % len(victims)].__name__[1:]} killed")
        await self._progress(1 + 1 / plan.rounds)

    async def _members(self) -> None:
        """One vault, whose members all devices are."""
        origin = self.place.origin
        async with Device.open(self.editors[0].folder / "device", relay=origin) as first:
            vault = await first.create_vault(VAULT)
            await Collections.open(vault)
            for folder in (*(editor.folder / "device" for editor in self.editors[1:]), self.fresh):
                async with Device.open(folder) as other:
                    await join(vault, other)

    async def _progress(self, part: float) -> None:
        """Wait for such a part of all verdicts."""
        acked = round(part * self.plan.acked_min * NOTED_PERCENT / 100)

        def is_reached() -> bool:
            for editor in self.editors:
                editor.done()
            return self.acked() >= acked

        if not await until(is_reached, STEP_S_MAX):
            raise StoryError(f"Only {self.acked()} of {acked} records were acknowledged within {STEP_S_MAX:.0f} s.")

    async def _lose_outcomes(self, wanted: int) -> None:
        """Break connections to Postgres while the relay commits, until so many outcomes are unknown in all."""
        with trio.move_on_after(STEP_S_MAX):
            while True:
                await self.place.look()
                if self.place.counted("unknown_outcomes") >= wanted:
                    return
                arrives = self._chance.random() < 0.75
                await self.place.back.cut_asking(arrives=arrives, limit_s=CUT_S_MAX)
                await trio.sleep(LOOK_S)

    # --- victims

    async def _relay(self) -> None:
        """A relay; where there are two, devices go on through the other one meanwhile."""
        relay = self._chance.choice([relay for relay in self.place.relays if relay.runs])
        await self.place.kill(relay)
        self.killed["relay"] += 1
        await self.place.start(relay)

    async def _backend(self) -> None:
        """The process of Postgres that commits; Postgres ends all others then."""
        self.killed["backend"] += await self.place.kill_appender(STEP_S_MAX)

    async def _device(self) -> None:
        editor = self._chance.choice(self.editors)
        editor.kill()
        self.killed["device"] += 1
        editor.start(self.place.origin)

    async def _postgres(self) -> None:
        """All of Postgres."""
        self.killed["postgres"] += 1
        await self.place.kill_postgres()

    async def _all(self) -> None:
        """Relays, Postgres and devices at one moment."""
        self.killed["all"] += 1
        running = [relay for relay in self.place.relays if relay.runs]
        await self.place.look()
        for relay in running:
            relay.kill()
        for editor in self.editors:
            editor.kill()
        await self.place.kill_postgres()
        await self.place.start(*running)
        for editor in self.editors:
            editor.start(self.place.origin)

    # --- the end

    async def verdict(self) -> Verdict:
        """Compare the log, the notes of all devices, all replicas and what they must hold."""
        for editor in self.editors:
            editor.kill()
        await self.place.look()
        self._say("all devices are killed; what they hold is sent and compared")
        notes = [editor.folder / "acks" for editor in self.editors]
        diallers = [acks.noting(path) for path in notes]
        async with AsyncExitStack() as stack:
            devices = [
                await stack.enter_async_context(Device.open(editor.folder / "device", dialler=dialler))
                for editor, dialler in zip(self.editors, diallers, strict=True)
            ]
            devices.append(await stack.enter_async_context(Device.open(self.fresh)))
            opened = [await Collections.open(device.vaults[0]) for device in devices]
            with trio.fail_after(CATCH_UP_S_MAX):
                for device in devices:
                    await device.vaults[0].synced()
            # What the last one had to send comes to the others a moment later; if it does not, they differ.
            with trio.move_on_after(STEP_S_MAX):
                await all_have_read([device.vaults[0] for device in devices])
            replicas = [collections.everything() for collections in opened]
            stuck = sum([len(await device.vaults[0].stuck()) for device in devices])
        durable = [rounds_durable(editor.folder) for editor in self.editors]
        segments = await self.place.with_database(_segments)
        return await trio.to_thread.run_sync(judge, segments, notes, durable, replicas, opened[0].streams(), stuck)

    def kill(self) -> None:
        """Leave no device behind."""
        for editor in self.editors:
            editor.kill()

    def _say(self, what: str) -> None:
        acked, unknown = self.acked(), self.place.counted("unknown_outcomes")
        seconds = time.monotonic() - self._began
        print(f"{seconds:6.1f} s: {what}; {acked:,} acknowledged, {unknown} outcomes unknown", flush=True)


async def _segments(database: Any) -> list[Any]:
    rows: list[Any] = await database.fetch(
        "SELECT stream, prev, last, body FROM sealwire.segment WHERE stream <> 0 ORDER BY vault_id, stream, last"
    )
    return rows


async def prove(folder: Path, plan: Plan) -> dict[str, object]:
    """Edit under faults; the figures."""
    async with site(relays=2) as place:
        faults = Faults(folder, place, plan)
        try:
            await faults.tell()
            verdict = await faults.verdict()
        finally:
            faults.kill()
        unknown = place.counted("unknown_outcomes")
        enough = verdict.acked >= plan.acked_min and unknown >= plan.unknown_min and all(faults.killed.values())
        return {
            "ok": enough and verdict.right,
            "rounds": plan.rounds,
            "killed": faults.killed,
            "unknown_outcomes": unknown,
            "commits": place.counted("commits"),
            "relay_store_errors": place.counted("store_errors"),
            **verdict.figures,
        }


def run(short: bool) -> dict[str, object]:
    """The proof: ok if all numbers are reached, and nothing was lost, doubled or different."""
    with tempfile.TemporaryDirectory(prefix="edits-", ignore_cleanup_errors=True) as name:
        return trio.run(prove, Path(name), SHORT_PLAN if short else LONG)
