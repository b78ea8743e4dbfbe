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
    from sealwire_client.inviting import InviteRefusedError
    from sealwire_client.keyring import KeyringError, VaultOverError
    from sealwire_client.link import RelayRefusedError
    from sealwire_client.merging import MergeError, fields, last, union
    from sealwire_client.moving import MoveError
    from sealwire_client.policies import Policy, document, latest, merge, strict
    from sealwire_client.recovery import RecoveryError, RecoveryWords
    from sealwire_client.replica.errors import (
        ColumnsChangedError,
        NeedsNewerAppError,
        ReplicaCorruptError,
        ReplicaFullError,
        ReplicaMisuse,
        UnsentError,
        VaultGoneError,
    )
    from sealwire_client.sealing import ValueTooLargeError
    from sealwire_client.sending import ConflictError, OfflineError, StrictError
    from sealwire_client.status import DeviceStatus, Disputed, State, Status
    from sealwire_client.transactions import Transaction, TransactionError
    from sealwire_client.vault import StuckWrite, Vault
    from sealwire_client.writes import Place, Standing, Write
    from sealwire_protocol.links import Role

_ROOMS: Final = {
    "Changes": "collection",
    "Collection": "collection",
    "ColumnsChangedError": "replica.errors",
    "ConflictError": "sending",
    "Counters": "counters",
    "Device": "device",
    "DeviceStatus": "status",
    "Disputed": "status",
    "EncodingError": "encoding",
    "Findings": "findings",
    "InviteRefusedError": "inviting",
    "KeyringError": "keyring",
    "MergeError": "merging",
    "MoveError": "moving",
    "NeedsNewerAppError": "replica.errors",
    "OfflineError": "sending",
    "Place": "writes",
    "Policy": "policies",
    "RecoveryError": "recovery",
    "RecoveryWords": "recovery",
    "RelayRefusedError": "link",
    "ReplicaCorruptError": "replica.errors",
    "ReplicaFullError": "replica.errors",
    "ReplicaMisuse": "replica.errors",
    "Role": "inviting",
    "Standing": "writes",
    "State": "status",
    "Status": "status",
    "StrictError": "sending",
    "StuckWrite": "vault",
    "Transaction": "transactions",
    "TransactionError": "transactions",
    "UnsentError": "replica.errors",
    "ValueTooLargeError": "sealing",
    "Vault": "vault",
    "VaultGoneError": "replica.errors",
    "VaultOverError": "keyring",
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
    "ColumnsChangedError",
    "ConflictError",
    "Counters",
    "Device",
    "DeviceStatus",
    "Disputed",
    "EncodingError",
    "Findings",
    "InviteRefusedError",
    "KeyringError",
    "MergeError",
    "MoveError",
    "NeedsNewerAppError",
    "OfflineError",
    "Place",
    "Policy",
    "RecoveryError",
    "RecoveryWords",
    "RelayRefusedError",
    "ReplicaCorruptError",
    "ReplicaFullError",
    "ReplicaMisuse",
    "Role",
    "Standing",
    "State",
    "Status",
    "StrictError",
    "StuckWrite",
    "Transaction",
    "TransactionError",
    "UnsentError",
    "ValueTooLargeError",
    "Vault",
    "VaultGoneError",
    "VaultOverError",
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
