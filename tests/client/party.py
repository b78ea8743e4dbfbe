"""Devices with a vault and a collection in common, and what a test asks of them."""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import trio
import trio.testing

from sealwire_client.collection import Collection
from sealwire_client.device import Device
from sealwire_client.policies import latest
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.relay import Alter
from sealwire_client.vault import Vault
from sealwire_protocol.ids import MEMBERSHIP, StreamId
from sealwire_protocol.links import Role
from sealwire_protocol.messages import Message
from tests.support.virtual import pass_time

Open = Callable[[str], AbstractAsyncContextManager[Device]]
"""Opens devices by name, each time the same."""


@dataclass(frozen=True)
class Note:
    """What the tests keep."""

    text: str
    count: int = 0


Notes = Collection[Note]
NAME = "notes"
M = TypeVar("M")


class Guest(NamedTuple):
    """One device at a party."""

    device: Device
    vault: Vault
    notes: Notes

    def dump(self) -> dict[str, str]:
        """What it shows: texts by key."""
        return {key: note.text for key, note in self.notes.items()}


async def notes_of(vault: Vault, name: str = NAME) -> Notes:
    """A collection of notes."""
    return await vault.collection(name, Note, policy=latest())


async def founded(device: Device, name: str = "home") -> Guest:
    """A device with a vault of its own."""
    vault = await device.create_vault(name)
    return Guest(device, vault, await notes_of(vault))


async def joined(device: Device, host: Vault, role: Role = Role.WRITER) -> Guest:
    """A device that has joined a vault by invite."""
    invite = await host.invite(role=role)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(invite.joined)
        vault = await device.join(invite.link)
    return Guest(device, vault, await notes_of(vault))


async def with_admin(open_device: Open, stack: AsyncExitStack, name: str, host: Guest) -> Guest:
    """A device that has joined as an admin."""
    device = await stack.enter_async_context(open_device(name))
    return await joined(device, host.vault, Role.ADMIN)


async def returned(device: Device) -> Guest:
    """A device that holds its vault already."""
    vault = device.vaults[0]
    return Guest(device, vault, await notes_of(vault))


@asynccontextmanager
async def party(open_device: Open, guests: int = 2, admin: str | None = None) -> AsyncIterator[list[Guest]]:
    """Devices in one vault, all in step; the first one is an admin, and so is one more of the name `admin`. Called
    again, without that one: the same ones, come back."""
    async with AsyncExitStack() as stack:
        devices = [await stack.enter_async_context(open_device(f"device {number}")) for number in range(guests)]
        if devices[0].vaults:
            yield [await returned(device) for device in devices]
            return
        host = await founded(devices[0])
        await host.vault.synced()
        found = [host, *[await joined(device, host.vault) for device in devices[1:]]]
        if admin is not None:
            found.append(await with_admin(open_device, stack, admin, host))
        await in_step(found)
        yield found


async def all_synced(vaults: Sequence[Vault]) -> None:
    """Wait until all devices of a vault, each given as that device has it, have sent and received everything."""
    while True:
        for vault in vaults:
            await vault.synced()
        first = await vaults[0].status()
        await trio.testing.wait_all_tasks_blocked()
        if first.state == "synced" and {(await vault.status()).state for vault in vaults} == {"synced"}:
            return


async def in_step(guests: Sequence[Guest]) -> None:
    """Wait until all devices have sent and received everything. They show the same then."""
    await all_synced([guest.vault for guest in guests])
    dumps = [guest.dump() for guest in guests]
    assert all(dump == dumps[0] for dump in dumps)


def appended_twice(relay: MemoryRelay) -> list[object]:
    """Records of the relay's log with the same stream, tag and rank: there must be none."""
    seen = Counter(
        (vault, stream, placed.record.tag, placed.record.rank)
        for vault, kept in relay.log.vaults.items()
        for stream, log in kept.streams.items()
        if stream != MEMBERSHIP
        for placed in log.records()
    )
    return [name for name, times in seen.items() if times > 1]


def records(relay: MemoryRelay, vault: Vault) -> int:
    """Records that the relay has taken in, all streams together."""
    return sum(log.head for stream, log in relay.log.vaults[vault.id].streams.items() if stream != MEMBERSHIP)


def stream_of(relay: MemoryRelay, vault: Vault) -> StreamId:
    """The one stream of a vault with one collection."""
    (stream,) = [stream for stream in relay.log.vaults[vault.id].streams if stream != MEMBERSHIP]
    return stream


async def comes(holds: Callable[[], bool]) -> None:
    """Wait until something holds that nobody announces. For tests with a virtual clock."""
    for _ in range(3_600):
        if holds():
            return
        await pass_time(1)
    raise AssertionError("what was waited for did not come about in an hour")


async def told(guest: Guest, text: str) -> None:
    """Wait until a device's status tells of something."""
    error: str | None = None
    for _ in range(3_600):
        error = (await guest.vault.status()).last_error
        if text in (error or ""):
            return
        await pass_time(1)
    raise AssertionError(f"{text!r} was not told in an hour, but {error!r}")


@contextmanager
def sent_by(relay: MemoryRelay) -> Iterator[list[Message]]:
    """What the relay sends to devices in the block."""
    sent: list[Message] = []

    def note(message: Message) -> list[Message]:
        sent.append(message)
        return [message]

    relay.alter = note
    try:
        yield sent
    finally:
        relay.alter = None


@contextmanager
def asked_of(relay: MemoryRelay, kind: type[M], *, swallowed: bool = False) -> Iterator[list[M]]:
    """What of this kind devices ask of the relay in the block. `swallowed`: none of it arrives."""
    asked: list[M] = []

    def note(message: Message) -> list[Message]:
        if not isinstance(message, kind):
            return [message]
        asked.append(message)
        return [] if swallowed else [message]

    relay.mishear = note
    try:
        yield asked
    finally:
        relay.mishear = None


@asynccontextmanager
async def cut_off(relay: MemoryRelay) -> AsyncIterator[None]:
    """For the length of the block the relay cannot be reached, and every device knows it."""
    relay.stop()
    await trio.testing.wait_all_tasks_blocked()
    try:
        yield
    finally:
        relay.start()


async def put_many(guest: Guest, prefix: str, count: int) -> None:
    """So many new notes."""
    await guest.notes.put_many([(f"{prefix}{number}", Note(prefix)) for number in range(count)])


@contextmanager
def lying(relay: MemoryRelay, alter: Alter) -> Iterator[None]:
    """For the length of the block the relay sends what `alter` makes of its messages."""
    relay.alter = alter
    try:
        yield
    finally:
        relay.alter = None
