"""Whether what one record costs grows with what is there already: with the length of its stream, and with its audience.

`append_cpu_10m_vs_10k`: processor time of the relay and of Postgres for one appended record, in a stream of 10,000,000
records and in one of 10,000. Both streams are of one vault of one relay; a fresh small one is measured in each round,
and both are warmed up alike. They are filled through the store, past the relay. Single records of 32 bytes are pushed
by 16 devices, eight unanswered each.

`deliver_cpu_5000_vs_50`: processor time of the relay's process for one delivery of a record of 200 bytes, with 5,000
subscribers and with 50: 1,000 members with five connections each, as a vault has 2,000 members at most. A push follows
on the verdict on the one before, so that each commit has one record. What the commit costs is part of it, and is shared
by fewer where there are few subscribers, which flatters the ratio: `deliver_cpu_5000_vs_50_without_commit` is of what
is left when that is taken off which a commit takes that nobody listens to. Every device acknowledges after the same
number of deliveries, and a measurement ends when the relay has taken in all of that.

The yardstick is C with epoll, which only sends, with as many listeners: by how much its deliveries cost more is the
kernel's and the processor's doing.
"""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import uvloop

from bench.harness.devices import BenchVault, at_once, fleet, found
from bench.harness.fanning import Fan, peer_fan
from bench.harness.fill import database_of, fill
from bench.harness.load import Counts, Receiver, receiving
from bench.harness.ours import WITHOUT_PAUSE
from bench.harness.processes import pinned, places
from bench.harness.pushing import Pusher
from bench.harness.relay import BenchRelay, relay, settings_of
from bench.harness.result import Bars, Result
from bench.harness.rounds import ROUNDS, ROUNDS_SHORT, Spread, neat
from bench.peers.fanners import c_epoll
from bench.peers.fanners import settings as fanner_settings
from sealwire_protocol import codec
from sealwire_protocol.ids import START, StreamId
from sealwire_protocol.limits import PUSH_WINDOW
from sealwire_protocol.messages import Deliver, StreamKind
from sealwire_protocol.segment import encode_record
from tests.support.device import Device, record, stream_id

APPEND_UNITS: Final = 2
"""32 bytes of ciphertext."""
DELIVER_UNITS: Final = 10
"""Of 16 bytes of ciphertext: a sealed record of 213 bytes, its seq included."""

PUSHERS: Final = 16
WARM_APPENDS: Final = 1_000
CALM_S: Final = 1.0
CALM_SHARE: Final = 0.05
"""Of a core: a relay that takes less for so long has nothing left to do but to look after idle devices."""
DELIVERED_S_MAX: Final = 60.0
LOOK_S: Final = 0.05
"""How often it is looked whether everything has arrived."""

YARDSTICK: Final = "c_epoll"


class Plan(NamedTuple):
    """How much of everything."""

    short_stream: int
    long_stream: int
    appends: int
    members: int
    connections_each: int
    few: int
    deliveries: int
    deliveries_an_ack: int
    yardstick_s: float
    rounds: int

    @property
    def subscribers(self) -> int:
        """Where there are many."""
        return self.members * self.connections_each

    def commits(self, subscribers: int) -> int:
        """For a measurement: as many deliveries for few subscribers as for many, and every one acknowledged."""
        return self.deliveries // max(subscribers, self.few)


LONG: Final = Plan(10_000, 10_000_000, 8_000, 1_000, 5, 50, 100_000, 20, 1.0, ROUNDS)
SHORT: Final = Plan(1_000, 100_000, 500, 20, 5, 10, 1_000, 10, 0.2, ROUNDS_SHORT)

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
    options: dict[str, object] = {**WITHOUT_PAUSE, "connections_max": 20_000}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        running = stack.enter_context(relay(folder, options))
        stack.enter_context(pinned(places().load))
        runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        fans = {
            listeners: stack.enter_context(peer_fan(runner, *c_epoll(1), listeners, folder))
            for listeners in (plan.few, plan.subscribers)
        }
        result = runner.run(_measure(running, fans, folder, plan))
    result.settings["sealwire"] = {**settings_of(options), **plan._asdict(), "pushers": PUSHERS}
    return result


async def _measure(running: BenchRelay, fans: Mapping[int, Fan], folder: Path, plan: Plan) -> Result:
    vault = await found(running.port, 1, plan.members)
    short, long, filled_s = await _appending(running, folder, vault, plan)
    result = await _delivering(running, fans, folder, vault, plan)
    result.ours |= {
        "append_us_short_stream": short.told(),
        "append_us_long_stream": long.told(),
        "long_stream_filled_s": neat(filled_s),
    }
    result.ratios["append_cpu_10m_vs_10k"] = neat(long.median / short.median)
    assert result.bars is not None
    appends = {
        f"append, stream of {plan.short_stream:,}": short.median,
        f"append, stream of {plan.long_stream:,}": long.median,
    }
    result.bars.bars = {**appends, **result.bars.bars}
    return result


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
    spent: dict[bool, list[float]] = {False: [], True: []}
    for turn, stream in enumerate(short_streams):
        for is_long in (True, False) if turn % 2 else (False, True):
            await _append(running, pushers, LONG_STREAM if is_long else stream, WARM_APPENDS)
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
    running: BenchRelay, fans: Mapping[int, Fan], folder: Path, vault: BenchVault, plan: Plan
) -> Result:
    """What a delivery takes with few subscribers and with many, beside C, and a commit that nobody listens to."""
    streams = {plan.few: stream_id(3), plan.subscribers: stream_id(4), 0: stream_id(5)}
    async with await Device.open(running.port, vault.admin.identity) as admin:
        for stream in streams.values():
            await admin.create_stream(vault.id, stream, StreamKind.OPEN)
    members = {
        plan.few: vault.members[: plan.few],
        plan.subscribers: [member for member in vault.members for _ in range(plan.connections_each)],
    }
    spent: dict[int, list[float]] = {subscribers: [] for subscribers in streams}
    counted: list[Counts] = []
    log = folder / "receive.log"
    with contextlib.ExitStack() as stack:
        receivers: dict[int, Receiver] = {}
        for subscribers, some in members.items():
            opened = await fleet(running.port, vault, some, streams[subscribers])
            listening = receiving(opened, "sealwire", places().load, log, ack_bytes=_ack_bytes(vault, plan))
            receivers[subscribers] = stack.enter_context(listening)
        sent: dict[int, list[float]] = {listeners: [] for listeners in fans}
        pusher = stack.enter_context(contextlib.closing(await Pusher.open(running.port, vault, vault.admin)))
        for turn in range(plan.rounds + 1):
            for subscribers in sorted(streams, reverse=bool(turn % 2)):
                before = await _at_rest(running)
                receiver = receivers.get(subscribers)
                if receiver is not None:
                    receiver.zero()
                await pusher.push(streams[subscribers], plan.commits(subscribers), DELIVER_UNITS, 1)
                if receiver is not None:
                    counted.append(await _all_received(receiver, plan.commits(subscribers) * subscribers))
                cpu = await _at_rest(running) - before
                if turn:  # the first one warms up
                    spent[subscribers].append(1e6 * cpu / plan.commits(subscribers))
            for listeners, fan in fans.items():
                found = await fan.measure(1, plan.yardstick_s)
                if turn:
                    sent[listeners].append(1e6 / found.deliveries_per_cpu_s)
    return told(plan, spent, sent, counted)


def told(
    plan: Plan,
    spent: dict[int, list[float]],
    sent: dict[int, list[float]],
    counted: Sequence[Counts],
) -> Result:
    """The result, as far as it is about deliveries: of microseconds a commit with so many subscribers, round by round,
    and a delivery by C."""
    few, many = plan.few, plan.subscribers
    whole = {n: Spread(tuple(us / n for us in spent[n])) for n in (few, many)}
    rest = {n: Spread(tuple((us - alone) / n for us, alone in zip(spent[n], spent[0], strict=True))) for n in whole}
    by_c = {n: Spread(tuple(us)) for n, us in sent.items()}
    ours: dict[str, Any] = {
        "deliver_us_few": whole[few].told(),
        "deliver_us_many": whole[many].told(),
        "deliver_us_few_without_commit": rest[few].told(),
        "deliver_us_many_without_commit": rest[many].told(),
        "commit_us_without_subscribers": Spread(tuple(spent[0])).told(),
        "receiver_cpu_share": neat(max(one.cpu_share for one in counted)),
    }
    return Result(
        ours=ours,
        yardsticks={
            YARDSTICK: {
                "deliver_us_few": by_c[few].told(),
                "deliver_us_many": by_c[many].told(),
                "many_vs_few": neat(by_c[many].median / by_c[few].median),
            }
        },
        settings={YARDSTICK: fanner_settings()[YARDSTICK]},
        ratios={
            "deliver_cpu_5000_vs_50": neat(whole[many].median / whole[few].median),
            "deliver_cpu_5000_vs_50_without_commit": neat(rest[many].median / rest[few].median),
        },
        bars=Bars(
            "Processor time of one record, by what is there already",
            "µs of processor time",
            {
                f"deliver, {few:,} subscribers": whole[few].median,
                "… without the commit": rest[few].median,
                f"deliver, {many:,} subscribers": whole[many].median,
                "… without its commit": rest[many].median,
            },
            ours="",
        ),
    )


def _ack_bytes(vault: BenchVault, plan: Plan) -> int:
    """What a device has been sent when it acknowledges: half a delivery less than so many, as their sizes differ by a
    few bytes."""
    segment = encode_record(record(units=DELIVER_UNITS))
    one = len(codec.encode(Deliver(vault.id, LONG_STREAM, START.term, 0, 0, 0, 0, 0, 1, segment)))
    return plan.deliveries_an_ack * one - one // 2


async def _all_received(receiver: Receiver, records: int) -> Counts:
    """What was counted, once everything has arrived. Raises RuntimeError if it does not."""
    until = time.monotonic() + DELIVERED_S_MAX
    while (counts := receiver.look()).records < records:
        if time.monotonic() > until:
            raise RuntimeError(f"only {counts.records} of {records} deliveries have arrived")
        await asyncio.sleep(LOOK_S)
    return counts


async def _at_rest(running: BenchRelay) -> float:
    """Processor seconds of the relay's process when all is done that was to be done. Raises TimeoutError."""
    async with asyncio.timeout(DELIVERED_S_MAX):
        before = running.cpu_seconds()
        while True:
            await asyncio.sleep(CALM_S)
            after = running.cpu_seconds()
            if after - before < CALM_SHARE * CALM_S:
                return after
            before = after
