"""What a device takes the relay's answers to its SUBSCRIBEs for."""

from collections.abc import Sequence

import trio

from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_protocol.messages import Message, Subscribe
from tests.client.party import notes_of
from tests.support.virtual import virtual


@virtual
async def test_a_refusal_from_before_the_relay_was_given_a_new_vault_is_no_refusal_of_it(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    """The membership log is subscribed to first, and refused, whereupon the vault is made there. Meanwhile a collection
    is opened, and asked for."""
    memory_relay.delay = 0.05
    heard: list[Message] = []
    asked = trio.Event()

    def hear(message: Message) -> Sequence[Message]:
        heard.append(message)
        if isinstance(message, Subscribe):
            asked.set()
        return [message]

    async with open_device("a") as device:
        memory_relay.mishear = hear
        vault = await device.create_vault("home")
        await asked.wait()
        await notes_of(vault)
        assert await vault.known()
        await vault.synced()
        assert len([message for message in heard if isinstance(message, Subscribe)]) == 3
