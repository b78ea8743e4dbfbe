"""What tests of the relay's requests have in common: devices, and asking for something."""

from collections.abc import Callable

from sealwire_protocol.errors import FaultCode
from sealwire_protocol.ids import VaultId
from sealwire_protocol.messages import Done, Fault, Message
from tests.support.device import Device, Identity
from tests.support.relay import Relay

ANNA, BERT, CARL = Identity(1), Identity(2), Identity(3)


async def ask(device: Device, kind: Callable[..., Message], *fields: object) -> Done | Fault:
    """Make a request of a kind and wait for its answer."""
    return await device.request(lambda number: kind(number, *fields))


async def refused(device: Device, kind: Callable[..., Message], *fields: object) -> FaultCode:
    """Why a request is refused."""
    answer = await ask(device, kind, *fields)
    assert isinstance(answer, Fault), answer
    return answer.code


async def done(device: Device, kind: Callable[..., Message], *fields: object) -> None:
    """Make a request that must succeed."""
    answer = await ask(device, kind, *fields)
    assert isinstance(answer, Done), answer


async def inviter(relay: Relay) -> tuple[Device, VaultId]:
    """Anna, who has a vault."""
    anna = await Device.open(relay.port, ANNA)
    vault, _ = await anna.create_vault()
    return anna, vault
