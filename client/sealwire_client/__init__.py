"""Sealwire for apps: a full local replica on every device, sealed before anything leaves it.

    async with Device.open("~/.myapp", relay="wss://relay.example.org") as device:
        vault = await device.create_vault("home")
        todos = await vault.collection("todos", Todo, policy=latest())

Names are imported when they are first used, so that a program pays only for what it needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sealwire_client.collection import Changes, Collection
    from sealwire_client.device import Device
    from sealwire_client.encoding import EncodingError, numbered
    from sealwire_client.link import RelayRefusedError
    from sealwire_client.policies import Policy, latest
    from sealwire_client.sealing import ValueTooLargeError
    from sealwire_client.vault import Status, Vault

_ROOMS: Final = {
    "Changes": "collection",
    "Collection": "collection",
    "Device": "device",
    "EncodingError": "encoding",
    "Policy": "policies",
    "RelayRefusedError": "link",
    "Status": "vault",
    "ValueTooLargeError": "sealing",
    "Vault": "vault",
    "latest": "policies",
    "numbered": "encoding",
}

__all__ = [
    "Changes",
    "Collection",
    "Device",
    "EncodingError",
    "Policy",
    "RelayRefusedError",
    "Status",
    "ValueTooLargeError",
    "Vault",
    "latest",
    "numbered",
]


def __getattr__(name: str) -> object:
    room = _ROOMS.get(name)
    if room is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{room}"), name)
