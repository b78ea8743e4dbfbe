"""Am I in sync? What a vault's replica is to its relay and to the other devices, in one look.

What is counted is counted when it is asked for. Two things are remembered across runs: when everything was last sent
and applied, and when each device was last heard. Both are times of this device's clock, and for people alone: nothing
is decided by them.
"""

import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

import trio

from sealwire_client.keyring import KeyringError
from sealwire_client.link import LinkState
from sealwire_client.replica import (
    Dispute,
    Replica,
    ReplicaError,
    ReplicaFullError,
    ReplicaUnreadableError,
    Runner,
    Waiting,
)
from sealwire_client.sync import VaultSync
from sealwire_protocol.ids import Author, DeviceKey
from sealwire_protocol.membership import Member

LOOK_SECONDS_MIN: Final = 0.5
"""Between two looks at whether everything is sent and applied: a look takes a turn of the writer."""

KEEP_SECONDS: Final = 600.0
"""A device that stays in step notes so often that it does: so much of "last synced" a crash can take."""


class State(StrEnum):
    """What a vault is doing. The first that applies."""

    OFFLINE = "offline"
    """There is no connection to the relay: see `last_error`. What is wrong can lie here, as a full disk does: a device
    that cannot note what came of a write gives up the connection, and tries again."""
    CONNECTING = "connecting"
    """A connection is being made, and nothing has gone wrong yet."""
    REFUSED = "refused"
    """The relay will not have this device: see `last_error`."""
    RENEWING = "renewing"
    """This device is taking new keys, for its old ones were used elsewhere, or their numbering is in doubt."""
    RECONCILING = "reconciling"
    """The relay's history is another one than this device has followed: both are compared."""
    CATCHING_UP = "catching_up"
    """What the relay has is being fetched."""
    SENDING = "sending"
    """Everything is here; writes wait to be sent, confirmed, or delivered."""
    SYNCED = "synced"
    """Everything was sent and confirmed, everything that the relay is known to have is here."""


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """A device of the vault, as this one knows it. One that has taken new keys is still the same one."""

    name: str
    """What it was called when it was added; empty if that cannot be read."""
    key: DeviceKey
    is_this: bool
    last_heard: datetime | None
    """When a record of it was last applied here; None: never, or it is this very device."""


@dataclass(frozen=True, slots=True)
class Disputed:
    """A signed statement of another device that cannot be true beside what this one holds, or beside what it said
    itself before: the relay shows its devices different histories, or has dropped a record."""

    collection: str
    device: str
    """What that device is called; empty if that cannot be read."""
    key: DeviceKey
    """The key that it has signed with."""
    seq: int
    """The place in the collection's log up to which it states what it holds."""
    back: bool
    """It states less than it has stated before; else, something else than this device holds there."""
    since: datetime
    held: bytes
    """The signed statement held against it: this device's own, or that one's former."""
    theirs: bytes
    """Its signed statement."""

    def __str__(self) -> str:
        who = self.device or self.key.hex()[:8]
        said = "less than it has stated before" if self.back else "something else than this device holds"
        return f"{who} states of {self.collection}, up to {self.seq:,}, {said}"


@dataclass(frozen=True, slots=True)
class Status:
    """How a vault's replica stands to the relay."""

    state: State
    pending: int
    """Writes not yet confirmed by the relay, or not yet delivered."""
    behind: int
    """Records that the relay is known to have and that are not applied here yet."""
    stuck: int
    """Writes that the relay refused for good, kept here."""
    unreadable: int
    """Records that could not be opened, kept here."""
    members: int
    """Devices of the vault."""
    last_error: str | None
    last_synced: datetime | None
    """When everything was last sent and applied (now, if it is); None: never yet."""
    devices: tuple[DeviceStatus, ...]
    """The devices of the vault, in the order in which they were added."""
    disputed: tuple[Disputed, ...]
    """What shows that the relay lies, until it is dismissed. No strict write is made meanwhile."""


class VaultStatus:
    """One vault's state, and its memory of when it was in step. Used on the trio loop."""

    def __init__(self, sync: VaultSync, writer: Runner[Replica]) -> None:
        self._sync, self._writer = sync, writer
        self._in_step, self._in_step_at = False, sync.held.synced_at
        self._kept_at = -KEEP_SECONDS
        self._names: dict[DeviceKey, str] = {}

    async def look(self) -> Status:
        """How things stand now."""
        sync = self._sync
        waiting, heard, disputes = await self._writer.run(_counted, sync.held.number)
        state = _state(sync, waiting)
        if state is State.SYNCED:
            self._in_step_at = _now()
        last_error = sync.link.last_error or sync.over or sync.progress.last_error
        if last_error is None and state not in (State.OFFLINE, State.CONNECTING):  # there it would seem the reason
            last_error = await sync.aside.why()
        devices = self._devices(heard)
        return Status(
            state,
            waiting.pending + waiting.answered,
            sync.behind,
            waiting.stuck,
            waiting.quarantined,
            len(devices),
            last_error,
            _time(self._in_step_at),
            devices,
            tuple(map(self._disputed, disputes)),
        )

    def _disputed(self, dispute: Dispute) -> Disputed:
        collection, _, author, position, back, held, theirs, at = dispute
        maker = self._sync.membership.members.get(author)
        return Disputed(
            collection,
            self._name(maker) if maker else "",
            maker.device if maker else DeviceKey(b""),
            position.seq,
            back,
            datetime.fromtimestamp(at / 1000, UTC),
            held,
            theirs,
        )

    def _devices(self, heard: dict[Author, int]) -> tuple[DeviceStatus, ...]:
        sync, members = self._sync, self._sync.membership.members
        at = dict[Author, int]()
        for member in members.values():
            at[member.lineage] = max(at.get(member.lineage, 0), heard.get(member.author, 0))
        return tuple(
            DeviceStatus(
                self._name(member),
                member.device,
                member.author == sync.held.author,
                None if member.author == sync.held.author else _time(at[member.lineage] or None),
            )
            for member in members.values()
            if member.is_present
        )

    def _name(self, member: Member) -> str:
        if member.device not in self._names:
            try:
                self._names[member.device] = self._sync.keys.names(member).device
            except KeyringError:
                return ""
        return self._names[member.device]

    async def run(self) -> None:
        """Notice when everything is sent and applied, and remember it, until cancelled."""
        while True:
            moved = self._sync.moved  # before the look: what happens during it must not be missed
            await self._notice()
            if self._in_step and trio.current_time() - self._kept_at >= KEEP_SECONDS:
                await self._keep()
            with trio.move_on_after(KEEP_SECONDS if self._in_step else float("inf")):
                await moved.wait()
            await trio.sleep(LOOK_SECONDS_MIN if moved.is_set() else 0)

    async def close(self) -> None:
        """Remember it for the next run. Durable when it returns; a replica that cannot be written forgets it."""
        with suppress(ReplicaError):
            await self._notice()
            await self._keep()

    async def _notice(self) -> None:
        sync, was = self._sync, self._in_step
        self._in_step = sync.behind == 0 and sync.knows_members and not await self._any_waits()
        self._in_step = self._in_step and sync.is_synced(NOTHING_WAITS)
        if was or self._in_step:
            self._in_step_at = _now()  # it was so until now

    async def _any_waits(self) -> bool:
        return await self._writer.run(lambda replica: replica.outbox.any_wait(self._sync.held.number))

    async def _keep(self) -> None:
        at = self._in_step_at
        if at is not None and at != self._sync.held.synced_at:
            self._kept_at = trio.current_time()
            with suppress(ReplicaFullError, ReplicaUnreadableError):  # who only wants to read may go on
                await self._writer.run(lambda replica: replica.vaults.in_step(self._sync.held.number, at))


NOTHING_WAITS: Final = Waiting(0, 0, 0, 0, 0)


def _state(sync: VaultSync, waiting: Waiting) -> State:
    link = sync.link
    if link.state is LinkState.REFUSED:
        return State.REFUSED
    if link.state is not LinkState.ONLINE:
        return State.CONNECTING if link.last_error is None else State.OFFLINE
    if sync.refused or sync.over is not None:
        return State.REFUSED
    if sync.is_synced(waiting):
        return State.SYNCED
    if sync.enrolment.why is not None:
        return State.RENEWING
    if any(stream.lost is not None for stream in sync.streams):
        return State.RECONCILING
    if sync.knows_members and all(stream.caught_up for stream in sync.streams):
        return State.SENDING
    return State.CATCHING_UP


def _counted(replica: Replica, vault: int) -> tuple[Waiting, dict[Author, int], list[Dispute]]:
    return replica.outbox.waiting(vault), replica.vaults.last_heard(vault), replica.disputes.of_vault(vault)


def _now() -> int:
    """This device's clock, in Unix milliseconds."""
    return int(time.time() * 1000)


def _time(at: int | None) -> datetime | None:
    return None if at is None else datetime.fromtimestamp(at / 1000, UTC)
