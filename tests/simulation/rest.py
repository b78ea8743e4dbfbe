"""How a run ends: nothing goes wrong any more, everything comes to rest, and all must agree."""

from collections.abc import Iterable
from random import Random
from typing import TYPE_CHECKING, Any, Final

import trio

from sealwire_client.sealing import Opener
from sealwire_client.status import Status
from sealwire_protocol.ids import MEMBERSHIP, StreamId
from sealwire_protocol.relay_session import RelayState
from tests.simulation import faults
from tests.simulation.checker import Checker, Ended, Logged, read
from tests.simulation.cleaned import check_cleaned
from tests.simulation.guarded import check_guarded
from tests.simulation.history import Key, Violation
from tests.simulation.past import Name
from tests.simulation.things import ACCOUNTS, KINDS, SCHEMAS, Note
from tests.simulation.work import Work

if TYPE_CHECKING:
    from tests.simulation.device import SimDevice
    from tests.simulation.world import World

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
            for device in world.devices:
                world.faults.arm(device.name, faults.TWICE, 0)
            world.did(world.host, "put")
            await Work(world, world.host, Random(0)).edit_notes([("last", Note("the last one"))])
            why = await self._until_rest()
        if world.history.broken:
            raise Violation(world.history.broken)
        if why is not None:
            raise Violation(f"everything comes to rest: {why}")
        checker = self._checker()
        checker.check()
        check_guarded(checker)
        for name in KINDS:
            self._replicas_agree(checker, name)
        await trio.sleep(5)  # acknowledgements are kept back for a second
        self._credit_came_home()

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

    async def _until_rest(self) -> str | None:
        """Wait for it. Returns why it has not come."""
        why: str | None = "nothing was looked at"
        with trio.move_on_after(REST_SECONDS_MAX):
            while why is not None:
                await trio.sleep(5)
                why = await self._restless()
        return why

    async def _restless(self) -> str | None:
        """Why it is not at rest yet, or None."""
        for device in self._world.devices:
            if not device.ready or device.vault is None:
                return f"{device.name} is not up"
            for name in KINDS.keys() - device.open.keys():
                await device.during(lambda device=device, name=name: device.open_collection(name))  # type: ignore[misc]
            status = await device.during(device.vault.status)
            if status is not None and status.stuck:
                await self._discard_strict(device)
            if status is None or status.state != "synced" or status.behind or status.stuck or status.unreadable:
                return f"{device.name} stands at {None if status is None else _told(status)}"
        heads = {self._world.host.stream(name): (name, 0) for name in KINDS}
        for kept in self._world.past.database.vaults.values():
            heads |= {stream: (heads[stream][0], log.head) for stream, log in kept.streams.items() if stream in heads}
        for stream, (name, head) in heads.items():
            for device in self._world.devices:
                if device.vault is not None and device.vault._sync._streams[stream].cursor != head:
                    return f"{device.name} has not all of {name}"
        for kept in self._world.past.database.vaults.values():
            for stream, log in kept.streams.items():
                if stream != MEMBERSHIP and log.compacted < log.head:
                    return f"{heads[stream][0]} is cleaned up to {log.compacted} of {log.head} only"
        return None

    @staticmethod
    async def _discard_strict(device: "SimDevice") -> None:
        """An app that has died over a strict write is told in the end that it was refused, and lets go of it."""
        vault = device.vault
        assert vault is not None
        for write in await device.during(vault.stuck) or ():
            if write.collection == ACCOUNTS:
                await device.during(lambda key=write.key: vault.discard(ACCOUNTS, key))  # type: ignore[misc]

    # --- looking

    def _checker(self) -> Checker:
        world = self._world
        vault = world.host.vault
        if vault is None:
            raise Violation("everything comes to rest: the host is not up")
        keys = vault._sync.keys
        openers = {
            (vault.id, stream): Opener(keys.stream(stream), [keys.stream_keys(stream, e) for e in keys.epochs])
            for stream in map(world.host.stream, KINDS)
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
        return Checker(world.history, logs, {world.host.stream(name): name for name in KINDS}, ended)

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

    def _replicas_agree(self, checker: Checker, name: str) -> None:
        """All replicas hold the same rows: ranks, flags and every column; and what they show is what the log says."""
        stream = self._world.host.stream(name)
        must = checker.shown(stream)
        winners = {key: record.rank for (of, key), record in checker.winners.items() if of == stream}
        purged = {key for of, key in checker.ended.forgotten if of == stream}
        first: list[Any] | None = None
        for device in self._world.devices:
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


def _told(status: Status) -> str:
    counts = f"{status.pending} pending, {status.behind} behind, {status.stuck} stuck, {status.unreadable} unreadable"
    return f"{status.state.value}, {counts}: {status.last_error}"


_NUMBERS: Final = ("_term",)
"""Columns with local numbers."""

_PLACES: Final = (*_NUMBERS, "_seq")
"""The same, and where a record was met: one that was there when two histories were compared is held as of then."""


def _rows(device: "SimDevice", name: str, but: tuple[str, ...]) -> list[dict[str, Any]]:
    assert device.replica is not None
    held = device.open[name].held
    found = device.replica.database.connection.execute(f"SELECT * FROM {held.table.name} ORDER BY key")
    columns = [column[0] for column in found.description]
    rows = [dict(zip(columns, row, strict=True)) for row in found]
    return [{k: v for k, v in row.items() if k not in but} for row in rows]
