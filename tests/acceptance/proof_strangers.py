"""Fifty thousand sockets that never log in leave the relay as it was, its database alone, and its devices in peace.

They come in waves from several addresses of this machine, and through a proxy that the relay trusts. Meanwhile two
devices go on syncing and a third one joins. Sockets without a login stay capped, the relay's memory bounded, and
Postgres carries out no more transactions than it does without them, and for what the devices edit.
"""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

from demo import inside
from demo.processes import StoryError, kill_tree, last_words, spawn
from demo.relay import Relay
from sealwire_client import Collection, Device, Vault, latest
from sealwire_client.nursery import open_nursery
from tests.acceptance.strangers import PROXY
from tests.acceptance.writer import COLLECTION, VAULT, Number
from tests.faults.devices import join, stay_online
from tests.faults.site import metrics

LIMIT_S = 900
LIMIT_SHORT_S = 240

STRANGERS: Final = 50_000
STRANGERS_SHORT: Final = 5_000

HANDSHAKES_MAX: Final = 256
"""The relay's default."""

CONNECTIONS_MAX: Final = 2 * HANDSHAKES_MAX
"""At any moment: those without a login, and those that were told to go and have two seconds for that."""

GROWTH_BYTES_MAX: Final = 32 << 20
"""Of the relay's memory, by 256 strangers at a time."""

IDLE_S: Final = 3.0
"""A look at what Postgres does for a relay that nobody troubles: pings, sweeps, cleaning."""

TRANSACTIONS_PER_EDIT_MAX: Final = 4
"""An edit is pushed, and acknowledged by both."""

TRANSACTIONS_SPARE: Final = 100
"""For joining, for what is done once in a while, and a second's worth of what Postgres counts late."""

EDIT_S: Final = 0.25
"""Between two edits."""

EDITS_MIN: Final = 6
"""Strangers go on coming until there were so many."""

STRANGERS_PER_EDIT_MIN: Final = 100
"""On a slow machine too, what edits may cost is less than a query for each tenth stranger."""

SYNC_S_MAX: Final = 60.0
JOIN_S_MAX: Final = 100.0
"""Strangers go on coming so long for a device to join amid them, and others to edit."""

SAMPLE_S: Final = 0.2
GONE_S_MAX: Final = 60.0


@dataclass
class Seen:
    """What was seen while the strangers were there."""

    handshakes: float = 0.0
    connections: float = 0.0
    bytes: float = 0.0
    samples: int = 0
    edits: list[float] = field(default_factory=list)
    """Seconds from an edit until the other device had it."""
    edited: trio.Event = field(default_factory=trio.Event)
    """There were EDITS_MIN."""
    joined_s: float | None = None
    crowded: trio.Event = field(default_factory=trio.Event)
    """Set when strangers take the places of those without a login."""
    joined: trio.Event = field(default_factory=trio.Event)


async def sample(relay: Relay, seen: Seen) -> None:
    """Look at the relay's metrics until cancelled."""
    while True:
        told = await trio.to_thread.run_sync(metrics, relay.control)
        seen.handshakes = max(seen.handshakes, told["sealwire_handshakes"])
        seen.connections = max(seen.connections, told["sealwire_connections"])
        seen.bytes = max(seen.bytes, told["process_resident_memory_bytes"])
        seen.samples += 1
        if seen.handshakes >= HANDSHAKES_MAX / 2:
            seen.crowded.set()
        await trio.sleep(SAMPLE_S)


async def edit(first: Collection[Number], second: Collection[Number], seen: Seen, count: int) -> None:
    """Edit on one device, and wait for the other to have it, so often, or until cancelled."""
    for value in range(1, count + 1):
        began = time.perf_counter()
        await first.put("edited", Number(value))
        with trio.fail_after(SYNC_S_MAX), second.changes() as changes:
            while (held := second.get("edited")) is None or held.value < value:
                await anext(changes)
        seen.edits.append(time.perf_counter() - began)
        if len(seen.edits) == EDITS_MIN:
            seen.edited.set()
        await trio.sleep(EDIT_S)


async def another(folder: Path, vault: Vault, origin: str, seen: Seen) -> None:
    """Once strangers take the places of those without a login, one more device joins, as its person would: it tries
    again until it is in."""
    await seen.crowded.wait()
    began = time.perf_counter()
    async with Device.open(folder / "third") as device, open_nursery() as nursery:
        nursery.start_soon(stay_online, device, origin)
        joined = await join(vault, device)
        with trio.fail_after(SYNC_S_MAX):
            await joined.synced()
        seen.joined_s = time.perf_counter() - began
        seen.joined.set()
        nursery.cancel_scope.cancel()


async def invaded(
    relay: Relay, folder: Path, count: int, meanwhile: Callable[[], Any], *enough: trio.Event
) -> dict[str, Any]:
    """What the strangers tell when so many have been there, and it is enough; `meanwhile` begins when they do."""
    log = folder / "strangers.log"
    process = spawn("tests.acceptance.strangers", str(relay.port), str(count), log=log)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        meanwhile()
        with trio.move_on_after(JOIN_S_MAX):
            for each in enough:
                await each.wait()
        process.stdin.close()
        await trio.lowlevel.wait_readable(process.stdout.fileno())
        line = process.stdout.readline()
        if not line:
            raise StoryError(f"The strangers failed:{last_words(log)}")
        told: dict[str, Any] = json.loads(line)
        return told
    finally:
        kill_tree(process)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


async def idle_rate(relay: Relay) -> float:
    """Transactions a second that the relay makes by itself."""
    before = await trio.to_thread.run_sync(inside.transactions, relay.folder)
    began = time.perf_counter()
    await trio.sleep(IDLE_S)
    after = await trio.to_thread.run_sync(inside.transactions, relay.folder)
    return (after - before) / (time.perf_counter() - began)


async def gone(relay: Relay) -> float:
    """Seconds until the relay has nobody left that has not logged in."""
    began = time.perf_counter()
    with trio.fail_after(GONE_S_MAX):
        while (await trio.to_thread.run_sync(metrics, relay.control))["sealwire_handshakes"]:  # noqa: ASYNC110
            await trio.sleep(SAMPLE_S)
    return time.perf_counter() - began


async def prove(folder: Path, count: int) -> dict[str, object]:
    """Let them come, and compare."""
    relay = Relay(folder, "--trusted-proxy", PROXY)
    await relay.start()
    seen = Seen()
    try:
        async with Device.open(folder / "first", relay=relay.origin) as one, Device.open(folder / "second") as two:
            vault = await one.create_vault(VAULT)
            first = await vault.collection(COLLECTION, Number, policy=latest())
            same = await join(vault, two)
            second = await same.collection(COLLECTION, Number, policy=latest())
            await vault.synced()
            await same.synced()
            rate = await idle_rate(relay)
            calm = await trio.to_thread.run_sync(metrics, relay.control)
            before = await trio.to_thread.run_sync(inside.transactions, relay.folder)
            began = time.perf_counter()
            async with open_nursery() as nursery:

                def meanwhile() -> None:
                    nursery.start_soon(sample, relay, seen)
                    nursery.start_soon(edit, first, second, seen, count // STRANGERS_PER_EDIT_MIN)
                    nursery.start_soon(another, folder, vault, relay.origin, seen)

                told = await invaded(relay, folder, count, meanwhile, seen.edited, seen.joined)
                seconds = time.perf_counter() - began
                during = seen.joined_s is not None
                nursery.cancel_scope.cancel()
            after = await trio.to_thread.run_sync(inside.transactions, relay.folder)
            gone_s = await gone(relay)
    finally:
        relay.abandon()
    extra = after - before - rate * (time.perf_counter() - began)
    return judged(count, told, seen, {
        "attack_s": round(seconds, 1),
        "joined_meanwhile": during,
        "idle_transactions_per_s": round(rate, 2),
        "extra_transactions": round(extra),
        "grown_bytes": round(seen.bytes - calm["process_resident_memory_bytes"]),
        "gone_s": round(gone_s, 1),
    })  # fmt: skip


def judged(count: int, told: dict[str, Any], seen: Seen, figures: dict[str, Any]) -> dict[str, object]:
    """All figures, and what is wrong with them."""
    edits = sorted(seen.edits)
    spare = min(TRANSACTIONS_PER_EDIT_MAX * len(edits) + TRANSACTIONS_SPARE, count / 10)
    right = {
        "they all came": told["came"] >= count and not told["met"].get("not accepted"),
        "many were refused": told["met"].get("cut", 0) > count / 10,
        "addresses behind the proxy are capped": told["met"].get("answered 503", 0) > 0,
        "sockets without a login are capped": HANDSHAKES_MAX / 2 <= seen.handshakes <= HANDSHAKES_MAX,
        "sockets are capped": seen.connections <= CONNECTIONS_MAX,
        "no query for strangers": figures["extra_transactions"] <= spare,
        "memory is bounded": figures["grown_bytes"] <= GROWTH_BYTES_MAX,
        "devices went on": len(edits) >= EDITS_MIN,
        "a device logged in meanwhile": figures["joined_meanwhile"],
    }
    return {
        "ok": all(right.values()),
        "wrong": [what for what, holds in right.items() if not holds],
        "strangers": told["came"],
        "met": told["met"],
        "handshakes_max": seen.handshakes,
        "connections_max": seen.connections,
        "samples": seen.samples,
        "edits": len(edits),
        "edit_p50_ms": round(edits[len(edits) // 2] * 1000, 1) if edits else None,
        "edit_max_ms": round(edits[-1] * 1000, 1) if edits else None,
        "joined_s": None if seen.joined_s is None else round(seen.joined_s, 1),
        **figures,
    }


def run(short: bool) -> dict[str, object]:
    """The proof: ok if strangers cost nothing that counts."""
    with tempfile.TemporaryDirectory(prefix="strangers-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)
        return trio.run(prove, Path(name), STRANGERS_SHORT if short else STRANGERS)
