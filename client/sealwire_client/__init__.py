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
    from sealwire_client.declaring import indexed, searchable
    from sealwire_client.device import Device
    from sealwire_client.differences import Deleted, Difference, Inserted, Moved, Updated
    from sealwire_client.encoding import EncodingError, numbered
    from sealwire_client.findings import Findings, Verdict
    from sealwire_client.forks import ForkedError
    from sealwire_client.inviting import InviteExpiredError, InviteRefusedError, NewMember, PendingInvite
    from sealwire_client.keyring import KeyringError, VaultOverError
    from sealwire_client.link import RelayRefusedError
    from sealwire_client.live import Live
    from sealwire_client.merging import MergeError, fields, last, union
    from sealwire_client.moving import MoveError
    from sealwire_client.policies import Policy, document, latest, merge, strict
    from sealwire_client.recovery import RecoveryError, RecoveryWords
    from sealwire_client.replica.errors import (
        ColumnsChangedError,
        NeedsNewerAppError,
        NoSearchError,
        QueryError,
        ReplicaClosedError,
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
    from sealwire_client.watching import Watched
    from sealwire_client.writes import Place, Standing, Write
    from sealwire_protocol.links import Role

_ROOMS: Final = {
    "Changes": "collection",
    "Collection": "collection",
    "ColumnsChangedError": "replica.errors",
    "ConflictError": "sending",
    "Counters": "counters",
    "Deleted": "differences",
    "Device": "device",
    "DeviceStatus": "status",
    "Difference": "differences",
    "Disputed": "status",
    "EncodingError": "encoding",
    "Findings": "findings",
    "ForkedError": "forks",
    "Inserted": "differences",
    "InviteExpiredError": "inviting",
    "InviteRefusedError": "inviting",
    "KeyringError": "keyring",
    "Live": "live",
    "MergeError": "merging",
    "MoveError": "moving",
    "Moved": "differences",
    "NeedsNewerAppError": "replica.errors",
    "NewMember": "inviting",
    "NoSearchError": "replica.errors",
    "OfflineError": "sending",
    "PendingInvite": "inviting",
    "Place": "writes",
    "Policy": "policies",
    "QueryError": "replica.errors",
    "RecoveryError": "recovery",
    "RecoveryWords": "recovery",
    "RelayRefusedError": "link",
    "ReplicaClosedError": "replica.errors",
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
    "Updated": "differences",
    "ValueTooLargeError": "sealing",
    "Vault": "vault",
    "VaultGoneError": "replica.errors",
    "VaultOverError": "keyring",
    "Verdict": "findings",
    "Watched": "watching",
    "Write": "writes",
    "document": "policies",
    "fields": "merging",
    "indexed": "declaring",
    "last": "merging",
    "latest": "policies",
    "merge": "policies",
    "numbered": "encoding",
    "searchable": "declaring",
    "strict": "policies",
    "union": "merging",
}

__all__ = [
    "Changes",
    "Collection",
    "ColumnsChangedError",
    "ConflictError",
    "Counters",
    "Deleted",
    "Device",
    "DeviceStatus",
    "Difference",
    "Disputed",
    "EncodingError",
    "Findings",
    "ForkedError",
    "Inserted",
    "InviteExpiredError",
    "InviteRefusedError",
    "KeyringError",
    "Live",
    "MergeError",
    "MoveError",
    "Moved",
    "NeedsNewerAppError",
    "NewMember",
    "NoSearchError",
    "OfflineError",
    "PendingInvite",
    "Place",
    "Policy",
    "QueryError",
    "RecoveryError",
    "RecoveryWords",
    "RelayRefusedError",
    "ReplicaClosedError",
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
    "Updated",
    "ValueTooLargeError",
    "Vault",
    "VaultGoneError",
    "VaultOverError",
    "Verdict",
    "Watched",
    "Write",
    "document",
    "fields",
    "indexed",
    "last",
    "latest",
    "merge",
    "numbered",
    "searchable",
    "strict",
    "union",
]


def __getattr__(name: str) -> object:
    room = _ROOMS.get(name)
    if room is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{room}"), name)
