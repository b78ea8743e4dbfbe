"""How long a fleet takes to come back: the relay is killed with -9 while 5,000 devices are live, and started again.

Each device is a member with its own key (five vaults of 1,000, as a vault has 2,000 at most), logs in with its
signature, and returns as the client does (by its own function): it notices at once that it was cut off, and waits for a
random part of FIRST_RETRY_SECONDS_MAX, or of as long as it has been away, up to RETRY_SECONDS_MAX. As soon as the relay
answers, MISSED records are pushed to each vault, so that whoever comes later has missed something and catches up: from
what the relay keeps of late commits, where that has it (`recent_pages`), else from Postgres (`pages`). A device is live
when it has been sent all that was there when it subscribed; at the end one more record has to reach all of them. The
time is counted from the kill, so that it contains the end of the old Postgres and the start of the new one. All
settings of the relay are their defaults.
"""

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

import asyncpg  # type: ignore[import-untyped]
import uvloop

from bench.harness.devices import STREAM, BenchVault, DeviceWire, Member, at_once, found, heads
from bench.harness.fill import database_of
from bench.harness.processes import pinned, places
from bench.harness.pushing import Pusher
from bench.harness.relay import BenchRelay, relay, settings_of
from bench.harness.result import Bars, Result
from bench.harness.rounds import ROUNDS, ROUNDS_SHORT, Spread, neat
from sealwire_client.link import FIRST_RETRY_SECONDS_MAX, RETRY_SECONDS_MAX, retry_pause
from sealwire_protocol import codec
from sealwire_protocol.ids import MEMBERSHIP, START, Position, StreamId
from sealwire_protocol.messages import Ack, Acked, Deliver, Subscribed, Wanted

MISSED: Final = 100
UNITS: Final = 2
LIVE_S_MAX: Final = 180.0
LOOK_S: Final = 0.05
"""How often it is looked whether all are live; when each came to be so, it notes itself."""
STREAMS: Final = (MEMBERSHIP, STREAM)


class Plan(NamedTuple):
    """How many of everything."""

    vaults: int
    members: int
    rounds: int


LONG: Final = Plan(5, 1_000, ROUNDS)
SHORT: Final = Plan(2, 50, ROUNDS_SHORT)


class Returner:
    """A device that stays connected, and returns when it was cut off."""

    def __init__(self, port: int, vault: BenchVault, member: Member, ends: dict[StreamId, Position]) -> None:
        self._port, self.vault, self._member = port, vault, member
        self._reached = dict(ends)
        self._aims: dict[StreamId, int] = {}
        self._moved = asyncio.Event()
        self._away_since = time.perf_counter()
        self.live_at = 0.0
        """When it came to be live; 0: it is not."""
        self._dialled = False
        self.failures = 0
        """Attempts that have failed since it was last live."""

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                await self._converse()
            except OSError:
                self.failures += self._dialled
            await asyncio.sleep(retry_pause(time.perf_counter() - self._away_since))

    def lost(self) -> None:
        """The relay is killed now."""
        self.live_at, self.failures, self._dialled = 0.0, 0, False
        self._away_since = time.perf_counter()

    async def until(self, seq: int) -> None:
        """Wait until everything of STREAM up to this seq has come."""
        while self._reached[STREAM].seq < seq:
            self._moved.clear()
            await self._moved.wait()

    async def _converse(self) -> None:
        self._dialled = True
        wire = await DeviceWire.login(self._port, self._member.identity)
        try:
            wanted = (Wanted(stream, self._reached[stream], START) for stream in STREAMS)
            told = await wire.subscribe(self.vault.id, *wanted)
            self._told(told)
            while True:
                _, data = await wire.receive()
                message = codec.decode(data)
                if isinstance(message, Deliver):
                    self._take(message)
                    at = Acked(message.vault, message.stream, self._reached[message.stream])
                    await wire.say(Ack(len(data), (at,)))
                elif isinstance(message, Subscribed):
                    self._told(message)
        finally:
            wire.close()

    def _told(self, told: Subscribed) -> None:
        self._aims = {state.stream: state.head for state in told.streams}
        self._look()

    def _take(self, deliver: Deliver) -> None:
        if deliver.prev > self._reached[deliver.stream].seq:
            raise ConnectionError("a delivery leaves a gap")
        self._reached[deliver.stream] = Position(deliver.term, deliver.last)
        self._look()

    def _look(self) -> None:
        self._moved.set()
        if not self.live_at and all(self._reached[stream].seq >= head for stream, head in self._aims.items()):
            self.live_at = time.perf_counter()


class Storm(NamedTuple):
    """One storm. Seconds are counted from the kill; `pages` and `transactions` are what Postgres was asked from the
    start of the relay on, and `recent_pages` what it was not; `refused` are attempts that failed although it ran, and
    shares are of one core."""

    relay_ready_s: float
    half_live_s: float
    all_live_s: float
    pages: float
    recent_pages: float
    transactions: int
    refused: int
    load_share: float
    relay_share: float


def run(short: bool) -> Result:
    """Measure in a temporary folder."""
    plan = SHORT if short else LONG
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with relay(folder) as running, pinned(places().load):
            storms = uvloop.run(_measure(running, folder, plan))
    figures = {field: Spread(tuple(float(getattr(storm, field)) for storm in storms)) for field in Storm._fields}
    devices = plan.vaults * plan.members
    return Result(
        ours={"devices": devices, **{name: spread.told() for name, spread in figures.items()}},
        ratios={"seconds_to_live": neat(figures["all_live_s"].median)},
        settings={
            "sealwire": {
                **settings_of(),
                **plan._asdict(),
                "first_retry_seconds_max": FIRST_RETRY_SECONDS_MAX,
                "retry_seconds_max": RETRY_SECONDS_MAX,
                "missed_records": MISSED,
            }
        },
        bars=Bars(
            f"{devices:,} devices return to a relay that was killed",
            "seconds since the kill",
            {
                "the relay serves again": figures["relay_ready_s"].median,
                "half of the devices are live": figures["half_live_s"].median,
                "all of them are": figures["all_live_s"].median,
            },
            ours="all",
        ),
    )


async def _measure(running: BenchRelay, folder: Path, plan: Plan) -> list[Storm]:
    vaults = await at_once(lambda n: found(running.port, 1 + n * plan.members, plan.members), range(plan.vaults))
    devices: list[Returner] = []
    for vault in vaults:
        ends = await heads(running.port, vault, *STREAMS)
        devices += [Returner(running.port, vault, member, ends) for member in vault.members]
    tasks = [asyncio.create_task(device.run()) for device in devices]
    try:
        await _all_live(devices, tasks)
        return [await _storm(running, folder, vaults, devices, tasks) for _ in range(plan.rounds)]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _storm(
    running: BenchRelay,
    folder: Path,
    vaults: list[BenchVault],
    devices: list[Returner],
    tasks: list[asyncio.Task[None]],
) -> Storm:
    """Kill the relay, start it again, and wait until all are live; then see that they are."""
    begun, cpu = time.perf_counter(), time.process_time()
    for device in devices:
        device.lost()
    running.kill()
    await asyncio.get_running_loop().run_in_executor(None, running.start)
    ready, early = time.perf_counter(), sum(device.failures for device in devices)
    database = database_of(folder)
    transactions = await _transactions(database)
    for vault in vaults:
        await _push(running.port, vault, MISSED)
    await _all_live(devices, tasks)
    live, now, metrics = sorted(device.live_at for device in devices), time.perf_counter(), running.metrics()
    storm = Storm(
        relay_ready_s=ready - begun,
        half_live_s=live[len(live) // 2] - begun,
        all_live_s=live[-1] - begun,
        pages=metrics["sealwire_pages_total"],
        recent_pages=metrics["sealwire_recent_pages_total"],
        transactions=await _transactions(database) - transactions,
        refused=sum(device.failures for device in devices) - early,
        load_share=(time.process_time() - cpu) / (now - begun),
        relay_share=running.cpu_seconds() / (now - ready),
    )
    async with asyncio.timeout(LIVE_S_MAX):
        for vault in vaults:
            await _push(running.port, vault, 1)
            end = (await heads(running.port, vault, STREAM))[STREAM].seq
            await asyncio.gather(*(device.until(end) for device in devices if device.vault is vault))
    return storm


async def _all_live(devices: list[Returner], tasks: list[asyncio.Task[None]]) -> None:
    """Wait until every device is live. Raises TimeoutError, and what a device has failed with."""
    async with asyncio.timeout(LIVE_S_MAX):
        for device, task in zip(devices, tasks, strict=True):
            while not device.live_at:
                if task.done():
                    task.result()
                await asyncio.sleep(LOOK_S)


async def _push(port: int, vault: BenchVault, records: int) -> None:
    """So many records to STREAM in one push, by a device that is let in among all the others."""
    while True:
        try:
            pusher = await Pusher.open(port, vault, vault.admin)
            break
        except OSError:
            await asyncio.sleep(LOOK_S)
    await pusher.push(STREAM, 1, UNITS, 1, records)
    pusher.close()


async def _transactions(database: str) -> int:
    """How many transactions the relay's Postgres has counted, reads and commits alike."""
    connection = await asyncpg.connect(database)
    try:
        count: int = await connection.fetchval(
            "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
        )
    finally:
        await connection.close()
    return count
