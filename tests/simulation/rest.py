"""How a run ends: nothing goes wrong any more, everything comes to rest, and all must agree."""

import itertools
import math
from collections.abc import Awaitable, Callable, Iterable
from random import Random
from typing import TYPE_CHECKING, Any, Final

import trio

from sealwire_client import disputing
from sealwire_client.sealing import Opener, stream_keys
from sealwire_client.statements import STATEMENTS
from sealwire_client.status import Status
from sealwire_protocol.ids import StreamId
from sealwire_protocol.limits import ACK_DELAY_SECONDS
from sealwire_protocol.relay_session import RelayState
from tests.simulation import faults
from tests.simulation.checker import Checker, Ended, Logged, read
from tests.simulation.cleaned import check_cleaned
from tests.simulation.ending import Ending
from tests.simulation.guarded import check_guarded
from tests.simulation.history import Key, Violation
from tests.simulation.past import Name
from tests.simulation.things import KINDS, SCHEMAS, Note
from tests.simulation.work import Work

if TYPE_CHECKING:
    from tests.simulation.device import SimDevice
    from tests.simulation.world import World

NAMES: Final = (*KINDS, STATEMENTS)
"""All collections, with the one that no app knows of."""

REST_SECONDS_MAX: Final = 600.0
"""Virtual time after the last fault within which everything must have come to rest."""


class Rest:
    """The end of a run."""

    def __init__(self, world: "World") -> None:
        self._world = world

    async def come(self) -> None:
        """Heal everything, wait for rest, and look. Raises Violation."""
        world = self._world
        self._heal()
        why = await self._until_rest()
        if why is None:
            # One more edit, delivered twice to all, on connections that then stay: what they leak shows.
            for device in self._present():
                world.faults.arm(device.place, faults.TWICE, 0)
            world.did(world.host, "put")
            await Work(world, world.host, Random(0)).edit_notes([("last", Note("the last one"))])
            why = await self._until_rest()
        if world.history.broken:
            raise Violation(world.history.broken)
        if why is not None:
            raise Violation(f"everything comes to rest: {why}")
        self._members_are_who_they_should_be()
        checker = self._checker()
        checker.check()
        check_guarded(checker)
        for name in KINDS:
            self._replicas_agree(checker, name)
            self._sums_agree(name)
        vars(disputing).update(STATED_RECORDS=1 << 62, STATED_SECONDS=math.inf)
        await trio.sleep(2 * ACK_DELAY_SECONDS)
        self._credit_came_home()

    async def come_to_an_end(self, ending: Ending) -> None:
        """Let the vault end, and look again, also after all devices were restarted. Raises Violation."""
        step, before = self._world.history.step, ending.shown()
        await ending.run()
        self._heal()
        for again in (False, True):
            if again:
                for device in self._world.devices:
                    device.die()
            why = await self._until_rest(ending.restless)
            if self._world.history.broken:
                raise Violation(self._world.history.broken)
            if why is not None:
                raise Violation(f"everything comes to rest: {why}")
            ending.check_kept(before, step)
            checker = self._checker()
            checker.check()
            check_guarded(checker)

    def _present(self) -> "list[SimDevice]":
        """The devices that belong to the vault now."""
        return [device for device in self._world.devices if self._is_present(device)]

    def _is_present(self, device: "SimDevice") -> bool:
        members = self._world.members
        if members.log.ended or device.is_out or device.device is None:
            return False
        return members.member(device.device.key) is not None

    def _heal(self) -> None:
        world = self._world
        world.healed = True
        world.faults.disarm()
        for relay in world.relays:
            relay.healed = True
            for wire in [wire for wire in relay.wires if wire.silent or wire.slow]:
                wire.cut()
        for device in world.devices:
            device.names.update(KINDS)
            device.offline = False

    async def _until_rest(self, restless: Callable[[], Awaitable[str | None]] | None = None) -> str | None:
        """Wait for it. Returns why it has not come."""
        restless = restless or self._restless
        why: str | None = "nothing was looked at"
        with trio.move_on_after(REST_SECONDS_MAX):
            while why is not None and not self._world.history.broken:
                await trio.sleep(5)
                why = await restless()
        return why

    async def _restless(self) -> str | None:
        """Why it is not at rest yet, or None."""
        if self._world.members.log.owes_epoch:
            return "nobody has changed the key that who has left still has"
        for device in self._world.devices:
            if device.is_out:
                continue
            if not device.ready or device.vault is None:
                return f"{device.name} is not up"
            for name in KINDS.keys() - device.open.keys():
                await device.during(lambda device=device, name=name: device.open_collection(name))  # type: ignore[misc]
            status = await device.during(device.vault.status)
            if not self._is_present(device):
                if status is None or status.state != "refused":
                    return f"{device.name} was removed, and stands at {None if status is None else _told(status)}"
                continue
            if status is not None and status.stuck:
                await device.discard_strict()
            if status is None or status.state != "synced" or status.behind or status.stuck or status.unreadable:
                return f"{device.name} stands at {None if status is None else _told(status)}"
        for device, name in itertools.product(self._present(), KINDS):
            if device.vault is not None and _is_old(device, name):
                return f"{device.name} has entries of {name} under an older key"
        heads = {self._world.host.stream(name): (name, 0) for name in KINDS}
        for kept in self._world.past.database.vaults.values():
            heads |= {stream: (heads[stream][0], log.head) for stream, log in kept.streams.items() if stream in heads}
        for stream, (name, head) in heads.items():
            for device in self._present():
                if device.vault is not None and device.vault._sync._streams[stream].cursor != head:
                    return f"{device.name} has not all of {name}"
        for kept in self._world.past.database.vaults.values():
            for stream, log in kept.streams.items():
                if stream in heads and log.compacted < log.head:
                    return f"{heads[stream][0]} is cleaned up to {log.compacted} of {log.head} only"
        return None

    # --- looking

    def _members_are_who_they_should_be(self) -> None:
        """Who was removed is no member, and has no key of what began without it; all others are members."""
        for device in self._world.devices:
            assert device.device is not None
            if device.is_out:
                self._has_nothing_of_it(device)
                continue
            assert device.vault is not None
            if self._is_present(device):
                if device.surely_removed:
                    raise Violation(f"who was removed stays so: {device.name} is a member")
                continue
            again = self._world.history.restores and device.device.key in self._world.members.left
            if not device.removed and not again:  # what a restore took is made up for, also if it has come again since
                raise Violation(f"who was not removed is a member: {device.name} is none")
            held = list(device.vault._sync.keys.epochs.values())
            for key in self._world.members.never_handed(device.device.key, held):
                raise Violation(f"who was removed reads nothing more: {device.name} has key {key.number}")

    def _has_nothing_of_it(self, device: "SimDevice") -> None:
        """Who has left is no member, and what began since is closed to the keys that it had."""
        assert device.device is not None
        members, key = self._world.members, device.device.key
        if members.member(key) is not None and key in members.left:
            raise Violation(f"who has left is out: {device.name} is a member")
        for epoch in members.never_handed(key, device.keys_left):
            raise Violation(f"who has left reads nothing more: {device.name} has key {epoch.number}")

    def _checker(self) -> Checker:
        world = self._world
        vault = world.host.vault
        if vault is None:
            raise Violation("everything comes to rest: the host is not up")
        keys = vault._sync.keys
        held = [
            key
            for each in world.devices
            if each.vault
            for keys_of in (each.vault._sync.keys.epochs, each.vault._sync.keys.others)
            for key in keys_of.values()
        ]
        known = {key[:2]: key for key in (*world.members.keys.values(), *held)}
        openers = {
            (vault.id, stream): Opener(
                keys.stream(stream),
                [stream_keys(key.secret, key.number, key.key_id, vault.id, stream) for key in known.values()],
            )
            for stream in map(world.host.stream, NAMES)
        }
        logs: dict[StreamId, list[Logged]] = {}
        lost: dict[StreamId, list[Logged]] = {}
        for name, opener in openers.items():
            whole, stream = world.past.whole[name], name[1]
            logs[stream] = list(read(opener, whole))
            lost[stream] = [
                record
                for ended in world.past.ended
                if ended.stream == stream
                for record in read(opener, ended.segments, ended.segments[0].prev)
            ]
            log = world.past.database.vaults[vault.id].streams.get(stream)
            if log is None:
                continue
            if len(logs[stream]) != log.head:
                raise Violation(f"seqs have no gaps: {len(logs[stream])} records, and the head is {log.head}")
            check_cleaned(whole, log.segments, log.compacted, world.past.forgotten[name])
        ended = Ended(lost, *self._forgotten(openers, (*logs.items(), *lost.items())))
        return Checker(world.history, logs, {world.host.stream(name): name for name in NAMES}, ended, self._gone())

    def _gone(self) -> dict[str, dict[Key, bytes | None]]:
        """The devices that are no members, and what each shows of keys of which it has something unsent."""
        gone: dict[str, dict[Key, bytes | None]] = {name: {} for name in self._world.departed}
        for device in self._world.devices:
            if self._is_present(device):
                continue
            kept = gone[device.name] = {}
            for name, opened in device.open.items():
                shows = {key: SCHEMAS[name].encode(value) for key, value in opened.items()}
                kept.update({(opened.held.stream, key): shows.get(key) for key in _claimed(device, name)})
        return gone

    def _forgotten(
        self, names: Iterable[Name], logs: Iterable[tuple[StreamId, list[Logged]]]
    ) -> tuple[dict[Key, int], set[Key]]:
        """The keys that were purged, with the head then, and those that may be back all the same."""
        past = self._world.past
        keys = {(stream, record.tag): record.key for stream, log in logs for record in log}
        forgotten = {
            (name[1], keys[name[1], tag]): grave.head for name in names for tag, grave in past.forgotten[name].items()
        }
        return forgotten, {(stream, keys[stream, tag]) for (_, stream), tag in past.late}

    def _sums_agree(self, name: str) -> None:
        """All replicas have the same sum of a collection, and it is that of their rows."""
        sums = set[int | None]()
        for device in self._present():
            assert device.replica is not None
            held = device.open[name].held
            sums.add(device.replica.sums.of(held.number))
            if not device.replica.sums.is_right(held.table):
                raise Violation(f"a sum is of what is there: that of {name} at {device.name} is not")
        if len(sums) != 1:
            raise Violation(f"replicas converge: the sums of {name} are {len(sums)}")

    def _replicas_agree(self, checker: Checker, name: str) -> None:
        """All replicas hold the same rows: ranks, flags and every column; and what they show is what the log says."""
        stream = self._world.host.stream(name)
        must = checker.shown(stream)
        winners = {key: record.rank for (of, key), record in checker.winners.items() if of == stream}
        purged = {key for of, key in checker.ended.forgotten if of == stream}
        first: list[Any] | None = None
        for device in self._present():
            shows = {key: SCHEMAS[name].encode(value) for key, value in device.open[name].items()}
            if shows != must:
                keys = sorted(key for key in {*shows, *must} if shows.get(key) != must.get(key))
                raise Violation(f"replicas converge: {device.name} differs in {name} at {keys}")
            # A replica drops a tombstone that was purged when it next hears of the floor, which it may not have yet.
            rows = _rows(device, name, _PLACES if self._world.history.restores or purged else _NUMBERS)
            rows = [row for row in rows if row["_live"] or row["key"] not in purged - winners.keys()]
            first = rows if first is None else first
            if rows != first or {row["key"]: row["_rank"] for row in rows} != winners:
                raise Violation(f"replicas converge: the rows of {name} at {device.name} are others")

    def _credit_came_home(self) -> None:
        for relay in self._world.relays:
            for wire in relay.wires:
                session = wire.protocol.session
                if session.state is RelayState.READY and session.credit != session.limits.credit_bytes:
                    missing = session.limits.credit_bytes - session.credit
                    raise Violation(f"credit comes home: {missing} bytes of {wire.place} are missing")


def _claimed(device: "SimDevice", name: str) -> list[str]:
    """Keys of which something is unsent."""
    assert device.replica is not None
    number = device.open[name].held.number
    execute = device.replica.database.connection.execute
    return [
        key
        for table in ("_edit", "_sent", "_stuck")
        for (key,) in execute(f"SELECT key FROM {table} WHERE collection = ?", (number,))
    ]


def _told(status: Status) -> str:
    counts = f"{status.pending} pending, {status.behind} behind, {status.stuck} stuck, {status.unreadable} unreadable"
    return f"{status.state.value}, {counts}: {status.last_error}"


_NUMBERS: Final = ("_term",)
"""Columns with local numbers."""

_PLACES: Final = (*_NUMBERS, "_seq")
"""The same, and where a record was met: one that was there when two histories were compared is held as of then."""


def _is_old(device: "SimDevice", name: str) -> bool:
    """True if a device has an entry of a collection that was sealed before the vault's present epoch began."""
    assert device.vault is not None and device.replica is not None
    epoch, table = device.vault._sync.keys.current.number, device.open[name].held.table.name
    (found,) = device.replica.database.connection.execute(
        f"SELECT EXISTS (SELECT 1 FROM {table} WHERE _live AND substr(_rank, 9, 2) < ?)", (epoch.to_bytes(2, "big"),)
    ).fetchone()
    return bool(found)


def _rows(device: "SimDevice", name: str, but: tuple[str, ...]) -> list[dict[str, Any]]:
    assert device.replica is not None
    held = device.open[name].held
    found = device.replica.database.connection.execute(f"SELECT * FROM {held.table.name} ORDER BY key")
    columns = [column[0] for column in found.description]
    rows = [dict(zip(columns, row, strict=True)) for row in found]
    return [{k: v for k, v in row.items() if k not in but} for row in rows]
