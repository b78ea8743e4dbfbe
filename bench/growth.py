"""Whether what one record costs grows with what is there already: with the length of its stream, and with its audience.

`append_cpu_10m_vs_10k`: processor time of the relay and of Postgres for one appended record, in a stream of 10,000,000
records and in one of 10,000. Both streams are of one vault of one relay; a fresh small one is measured in each round.
They are filled through the store, past the relay. Single records of 32 bytes are pushed by 16 devices, eight unanswered
each.

`deliver_cpu_5000_vs_50`: processor time of the relay's process for one delivery of a record of 200 bytes, with 5,000
subscribers and with 50: 1,000 members with five connections each, as a vault has 2,000 members at most. A push follows
on the verdict on the one before, so that each commit has one record. What the commit itself costs is part of it, and is
shared by fewer where there are few subscribers; what it costs where there are none is told beside.
"""

import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import uvloop

from bench.harness.devices import BenchVault, at_once, fleet, found
from bench.harness.fill import database_of, fill
from bench.harness.load import Counts, Opened, Receiver, receiving
from bench.harness.processes import pinned, places
from bench.harness.pushing import Pusher
from bench.harness.relay import BenchRelay, relay, settings_of
from bench.harness.result import Bars, Result
from bench.harness.rounds import ROUNDS, ROUNDS_SHORT, Spread, neat
from sealwire_protocol.ids import StreamId
from sealwire_protocol.limits import PUSH_WINDOW
from sealwire_protocol.messages import StreamKind
from tests.support.device import Device, stream_id

APPEND_UNITS: Final = 2
"""32 bytes of ciphertext."""
DELIVER_UNITS: Final = 10
"""Of 16 bytes of ciphertext: a sealed record of 213 bytes, its seq included."""

PUSHERS: Final = 16
WARM_APPENDS: Final = 1_000
CALM_S: Final = 1.0
"""Before a part begins: what the one before it has left to be done is done."""
DELIVERED_S_MAX: Final = 60.0
LOOK_S: Final = 0.05
"""How often it is looked whether everything has arrived."""


class Plan(NamedTuple):
    """How much of everything."""

    short_stream: int
    long_stream: int
    appends: int
    members: int
    connections_each: int
    few: int
    deliveries: int
    rounds: int


LONG: Final = Plan(10_000, 10_000_000, 8_000, 1_000, 5, 50, 100_000, ROUNDS)
SHORT: Final = Plan(1_000, 100_000, 500, 20, 5, 10, 1_000, ROUNDS_SHORT)

LONG_STREAM: Final = stream_id(2)
FIRST_SHORT_STREAM: Final = 100


class Cpu(NamedTuple):
    """Microseconds of processor time of one thing done."""

    relay: float
    postgres: float

    @property
    def both(self) -> float:
        """Together."""
        return self.relay + self.postgres


def run(short: bool) -> Result:
    """Measure in a temporary folder."""
    plan = SHORT if short else LONG
    # A cleaner would read all that was filled in, which no append does; the pushers are to be as fast as they can.
    unlimited = {f"{who}_pushes_per_second_max": 0 for who in ("device", "vault")}
    options: dict[str, object] = {"clean_seconds": 0, "connections_max": 20_000, **unlimited}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with relay(folder, options) as running, pinned(places().load):
            result = uvloop.run(_measure(running, folder, plan))
    result.settings = {"sealwire": {**settings_of(options), **plan._asdict(), "pushers": PUSHERS}}
    return result


async def _measure(running: BenchRelay, folder: Path, plan: Plan) -> Result:
    vault = await found(running.port, 1, plan.members)
    short, long, filled_s = await _appending(running, folder, vault, plan)
    few, many, alone, counted = await _delivering(running, folder, vault, plan)
    appends = long.median / short.median
    deliveries = many.median / few.median
    subscribers = plan.members * plan.connections_each
    return Result(
        ours={
            "append_us_short_stream": short.told(),
            "append_us_long_stream": long.told(),
            "long_stream_filled_s": neat(filled_s),
            "deliver_us_few": few.told(),
            "deliver_us_many": many.told(),
            "commit_us_without_subscribers": alone.told(),
            "receiver_cpu_share": neat(max(one.cpu_share for one in counted)),
        },
        ratios={"append_cpu_10m_vs_10k": neat(appends), "deliver_cpu_5000_vs_50": neat(deliveries)},
        bars=Bars(
            "Processor time of one record, by what is there already",
            "µs of processor time",
            {
                f"append, stream of {plan.short_stream:,}": short.median,
                f"append, stream of {plan.long_stream:,}": long.median,
                f"deliver, {plan.few:,} subscribers": few.median,
                f"deliver, {subscribers:,} subscribers": many.median,
            },
            ours="",
        ),
    )


async def _appending(running: BenchRelay, folder: Path, vault: BenchVault, plan: Plan) -> tuple[Spread, Spread, float]:
    """Microseconds an append in short streams and in the long one, and how long that took to fill."""
    database = database_of(folder)
    short_streams = [stream_id(FIRST_SHORT_STREAM + turn) for turn in range(plan.rounds)]
    async with await Device.open(running.port, vault.admin.identity) as admin:
        for stream in (LONG_STREAM, *short_streams):
            await admin.create_stream(vault.id, stream, StreamKind.OPEN)
    begun = time.perf_counter()
    await fill(database, vault, LONG_STREAM, plan.long_stream, APPEND_UNITS)
    filled_s = time.perf_counter() - begun
    for stream in short_streams:
        await fill(database, vault, stream, plan.short_stream, APPEND_UNITS)
    pushers = await at_once(lambda member: Pusher.open(running.port, vault, member), vault.members[:PUSHERS])
    await _append(running, pushers, LONG_STREAM, WARM_APPENDS)
    await asyncio.sleep(CALM_S)
    spent: dict[bool, list[float]] = {False: [], True: []}
    for turn, stream in enumerate(short_streams):
        for is_long in (True, False) if turn % 2 else (False, True):
            cpu = await _append(running, pushers, LONG_STREAM if is_long else stream, plan.appends)
            spent[is_long].append(cpu.both)
    for pusher in pushers:
        pusher.close()
    return Spread(tuple(spent[False])), Spread(tuple(spent[True])), filled_s


async def _append(running: BenchRelay, pushers: Sequence[Pusher], stream: StreamId, records: int) -> Cpu:
    """What one of so many appends takes."""
    before = running.cpu_seconds(), running.postgres_cpu_seconds()
    each = records // len(pushers)
    await asyncio.gather(*(pusher.push(stream, each, APPEND_UNITS, PUSH_WINDOW) for pusher in pushers))
    spent = running.cpu_seconds() - before[0], running.postgres_cpu_seconds() - before[1]
    return Cpu(*(1e6 * seconds / (each * len(pushers)) for seconds in spent))


async def _delivering(
    running: BenchRelay, folder: Path, vault: BenchVault, plan: Plan
) -> tuple[Spread, Spread, Spread, list[Counts]]:
    """Microseconds a delivery with few subscribers and with many, and those of a commit that nobody listens to."""
    streams = {"few": stream_id(3), "many": stream_id(4), "alone": stream_id(5)}
    async with await Device.open(running.port, vault.admin.identity) as admin:
        for stream in streams.values():
            await admin.create_stream(vault.id, stream, StreamKind.OPEN)
    many = [member for member in vault.members for _ in range(plan.connections_each)]
    opened: dict[str, list[Opened]] = {
        "few": await fleet(running.port, vault, vault.members[: plan.few], streams["few"]),
        "many": await fleet(running.port, vault, many, streams["many"]),
        "alone": [],
    }
    spent: dict[str, list[float]] = {name: [] for name in streams}
    counted: list[Counts] = []
    pusher = await Pusher.open(running.port, vault, vault.admin)
    log = folder / "receive.log"
    with (
        receiving(opened["few"], "sealwire", places().load, log) as few,
        receiving(opened["many"], "sealwire", places().load, log) as all_of_them,
    ):
        receivers = {"few": few, "many": all_of_them, "alone": None}
        sizes = {"few": plan.few, "many": len(many), "alone": 1}
        for turn in range(plan.rounds + 1):
            for name in sorted(streams, reverse=bool(turn % 2)):
                commits = max(1, plan.deliveries // max(sizes[name], plan.few))
                await asyncio.sleep(CALM_S if name == "many" else 0)
                before = running.cpu_seconds()
                receiver = receivers[name]
                if receiver is not None:
                    receiver.zero()
                await pusher.push(streams[name], commits, DELIVER_UNITS, 1)
                if receiver is not None:
                    counted.append(await _all_received(receiver, commits * sizes[name]))
                if turn:  # the first one warms up
                    spent[name].append(1e6 * (running.cpu_seconds() - before) / (commits * sizes[name]))
    pusher.close()
    few_us, many_us, alone_us = (Spread(tuple(spent[name])) for name in ("few", "many", "alone"))
    return few_us, many_us, alone_us, counted


async def _all_received(receiver: Receiver, records: int) -> Counts:
    """What was counted, once everything has arrived. Raises RuntimeError if it does not."""
    until = time.monotonic() + DELIVERED_S_MAX
    while (counts := receiver.look()).records < records:
        if time.monotonic() > until:
            raise RuntimeError(f"only {counts.records} of {records} deliveries have arrived")
        await asyncio.sleep(LOOK_S)
    return counts
