"""The FAULTs that several parts of a relay tell: each in one sentence, and with what the device is to do.

`request`, or `batch`, is what it answers; without either it is about the vault as a whole, whose unanswered pushes it
voids.
"""

from sealwire_protocol.errors import Action, FaultCode
from sealwire_protocol.events import Refuse
from sealwire_protocol.ids import VaultId
from sealwire_protocol.messages import NO_REQUEST


def no_such_vault(vault: VaultId, batch: int | None = None, request: int = NO_REQUEST) -> Refuse:
    """The one answer for vaults that do not exist and vaults of which the device is no member."""
    why = "there is no such vault here for this device"
    return Refuse(FaultCode.NO_SUCH_VAULT, Action.STOP, why, request=request, vault=vault, batch=batch)


def vault_deleted(vault: VaultId, batch: int | None = None, request: int = NO_REQUEST) -> Refuse:
    """The answer to members of a vault that was deleted, whatever they ask for but its membership log."""
    why = "the vault was deleted by an admin of it; what this device holds stays on it"
    return Refuse(FaultCode.VAULT_DELETED, Action.STOP, why, request=request, vault=vault, batch=batch)


def moved_away(vault: VaultId, relay: str | None, request: int) -> Refuse:
    """The refusal of a request about a vault that is at another relay now."""
    why = f"the vault is at another relay now, {relay}" if relay else "the vault is at another relay now"
    return Refuse(FaultCode.MOVED, Action.STOP, f"{why}; nothing was done here", request, vault)


def term_changed(vault: VaultId, batch: int | None = None) -> Refuse:
    """The refusal that tells a device to subscribe again, since the relay's history has a new term."""
    why = "the relay's history has begun a new term; subscribe again"
    return Refuse(FaultCode.TERM_CHANGED, Action.RESUBSCRIBE, why, vault=vault, batch=batch)


def another_member(vault: VaultId, batch: int) -> Refuse:
    """The refusal of what was sealed as another member of the vault: the device's number has changed with the end of
    the membership log (R15), which it learns when it subscribes again."""
    why = "this was sealed as another member of the vault than this device is now; subscribe again"
    return Refuse(FaultCode.TERM_CHANGED, Action.RESUBSCRIBE, why, vault=vault, batch=batch)
