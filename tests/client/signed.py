"""Devices that share a signed collection, and someone who seals for it what an honest device would not."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from sealwire_client import sealing
from sealwire_client.policies import Policy, latest
from sealwire_client.replica import Replica
from sealwire_client.sealing import Draft, Reason
from sealwire_client.signing import Signer
from sealwire_client.stream import StreamSync
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_client.vault import Vault
from sealwire_protocol.ids import StreamId
from sealwire_protocol.segment import Record
from tests.client.party import Guest, Note, Notes, in_step, party
from tests.support.virtual import pass_time

LEDGER, BEGUN = "ledger", "begun"


async def ledger_of(vault: Vault, policy: Policy | None = None) -> Notes:
    """The signed collection of these tests."""
    return await vault.collection(LEDGER, Note, policy=policy or latest(), signed=True)


async def signing_guest(guest: Guest, policy: Policy | None = None) -> Guest:
    """The same guest, whose notes are signed ones."""
    return guest._replace(notes=await ledger_of(guest.vault, policy))


@asynccontextmanager
async def signed_party(
    open_device: OpenDevice, guests: int = 2, policy: Policy | None = None
) -> AsyncIterator[list[Guest]]:
    """Devices in one vault that share a signed collection, all in step."""
    async with party(open_device, guests) as found:
        signing = [await signing_guest(guest, policy) for guest in found]
        await signing[0].notes.put(BEGUN, Note(""))  # so that the relay has the stream
        await in_step(signing)
        await signing[0].notes.delete(BEGUN)
        await in_step(signing)
        yield signing


def stream_of(guest: Guest) -> StreamSync:
    """A guest's signed collection on its way."""
    return guest.vault._sync._streams[guest.notes.held.stream]


def ledger_log(relay: MemoryRelay, guest: Guest) -> list[Record]:
    """The records that the relay has of the signed collection, but the two by which it was begun."""
    log = relay.log.vaults[guest.vault.id].streams[guest.notes.held.stream]
    return [placed.record for placed in log.records()][2:]


class Forger(NamedTuple):
    """All that a member has to seal records with, kept for later."""

    stream: StreamId
    sealer: sealing.Sealer
    signer: Signer

    @classmethod
    def of(cls, guest: Guest) -> "Forger":
        """A guest who means harm, from now on or later."""
        sync = stream_of(guest)
        assert sync.signer is not None
        return cls(guest.notes.held.stream, sync.sealer, sync.signer)

    def draft(self, guest: Guest, key: str, text: str, version: int = 1_000) -> Draft:
        """A note, not signed."""
        return Draft(key, guest.notes._schema.encode(Note(text)), version)

    def signed(self, draft: Draft) -> bytes:
        """It as a record, signed as it should be."""
        return self.sealer.seal_many(self.signer.signed([draft]))[0].encoded

    def unsigned(self, draft: Draft) -> bytes:
        """It as a record without a signature."""
        return self.sealer.seal_many([draft])[0].encoded


def forge(relay: MemoryRelay, guest: Guest, record: bytes) -> None:
    """Let the relay take in, and send to all, what no honest one would."""
    relay.offer(relay.log.forge(guest.vault.id, guest.notes.held.stream, record))


async def reasons(guest: Guest) -> list[str]:
    """Why this device has set records of the signed collection aside."""

    def look(replica: Replica) -> list[str]:
        found = replica.database.connection.execute(
            "SELECT reason FROM _quarantine WHERE collection = ? ORDER BY id", (guest.notes.held.number,)
        )
        return [reason for (reason,) in found]

    return await guest.vault._writer.run(look)


async def set_aside(guest: Guest, *why: Reason) -> None:
    """Wait until a device has set these records of the signed collection aside, and no others."""
    for _ in range(100):
        if await reasons(guest) == [reason.value for reason in why]:
            assert (await guest.vault.status()).unreadable == len(why)
            return
        await pass_time(1)
    raise AssertionError(f"set aside is {await reasons(guest)}")
