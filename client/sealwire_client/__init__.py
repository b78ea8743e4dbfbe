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
    from sealwire_client.counters import Counters
    from sealwire_client.device import Device
    from sealwire_client.encoding import EncodingError, numbered
    from sealwire_client.findings import Findings, Verdict
    from sealwire_client.link import RelayRefusedError
    from sealwire_client.merging import MergeError, fields, last, union
    from sealwire_client.policies import Policy, document, latest, merge, strict
    from sealwire_client.replica.errors import NeedsNewerAppError
    from sealwire_client.sealing import ValueTooLargeError
    from sealwire_client.sending import ConflictError, OfflineError, StrictError
    from sealwire_client.status import DeviceStatus, State, Status
    from sealwire_client.transactions import Transaction, TransactionError
    from sealwire_client.vault import StuckWrite, Vault
    from sealwire_client.writes import Place, Standing, Write

_ROOMS: Final = {
    "Changes": "collection",
    "Collection": "collection",
    "ConflictError": "sending",
    "Counters": "counters",
    "Device": "device",
    "DeviceStatus": "status",
    "EncodingError": "encoding",
    "Findings": "findings",
    "MergeError": "merging",
    "NeedsNewerAppError": "replica.errors",
    "OfflineError": "sending",
    "Place": "writes",
    "Policy": "policies",
    "RelayRefusedError": "link",
    "Standing": "writes",
    "State": "status",
    "Status": "status",
    "StrictError": "sending",
    "StuckWrite": "vault",
    "Transaction": "transactions",
    "TransactionError": "transactions",
    "ValueTooLargeError": "sealing",
    "Vault": "vault",
    "Verdict": "findings",
    "Write": "writes",
    "document": "policies",
    "fields": "merging",
    "last": "merging",
    "latest": "policies",
    "merge": "policies",
    "numbered": "encoding",
    "strict": "policies",
    "union": "merging",
}

__all__ = [
    "Changes",
    "Collection",
    "ConflictError",
    "Counters",
    "Device",
    "DeviceStatus",
    "EncodingError",
    "Findings",
    "MergeError",
    "NeedsNewerAppError",
    "OfflineError",
    "Place",
    "Policy",
    "RelayRefusedError",
    "Standing",
    "State",
    "Status",
    "StrictError",
    "StuckWrite",
    "Transaction",
    "TransactionError",
    "ValueTooLargeError",
    "Vault",
    "Verdict",
    "Write",
    "document",
    "fields",
    "last",
    "latest",
    "merge",
    "numbered",
    "strict",
    "union",
]


def __getattr__(name: str) -> object:
    room = _ROOMS.get(name)
    if room is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{room}"), name)
