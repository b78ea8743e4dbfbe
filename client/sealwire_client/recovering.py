"""From 24 words and a relay to a member of the vault: what a paper device does in its short life."""

from typing import Final

from sealwire_client import cipher, keyring, linkmaking
from sealwire_client.identity import DeviceIdentity
from sealwire_client.link import Link, RelayRefusedError
from sealwire_client.logreader import reading
from sealwire_client.recovery import RecoveryError, RecoveryWords
from sealwire_protocol.errors import FaultCode
from sealwire_protocol.links import LinkError, Role, vault_id_of
from sealwire_protocol.membership import Membership, membership_of
from sealwire_protocol.messages import NO_REQUEST, AppendLink

LINK_ATTEMPTS_MAX: Final = 5
"""Times that the link is signed anew because another admin's came first."""


async def admitted_by(words: RecoveryWords, link: Link, device: DeviceIdentity, name: str) -> list[bytes]:
    """Make `device` an admin of the words' vault, in the name of the paper; returns the membership log that says so.

    `link` is a connection under the paper's keys. Waits for the relay. A repeat goes on where it stopped. Raises
    RecoveryError, RelayRefusedError, KeyringError, NameTooLongError.
    """
    for _ in range(LINK_ATTEMPTS_MAX):
        with reading(words.vault, link) as reader:
            links = await reader.read()
        membership = _members(words, links)
        if membership.relay not in (None, link.origin):
            raise RecoveryError(f"the vault was moved to {membership.relay}: name that relay; nothing was done here")
        if links is not None and membership.by_device(device.device_key) is not None:
            return links
        keys = keyring.keys_from_log(words.identity, membership)
        raw = linkmaking.add_device_link(
            words.identity, membership, keys, device.device_key, device.box_key, Role.ADMIN, name
        )
        try:
            await link.request(AppendLink(NO_REQUEST, words.vault, raw))
        except RelayRefusedError as error:
            if error.fault.code is not FaultCode.LINK_CONFLICT:
                raise
    raise RecoveryError("other devices keep changing the vault's members; try again")


def _members(words: RecoveryWords, links: list[bytes] | None) -> Membership:
    """The members of the vault that the words name, whatever the relay shows."""
    if not links:
        raise RecoveryError(
            "this relay knows no vault to which these words belong: they are another relay's, or the paper was removed"
            " from the vault; name the relay that the vault is at"
        )
    if vault_id_of(links[0]) != words.vault:
        raise RecoveryError("the relay shows another vault than the words name; nothing was recovered from it")
    try:
        return membership_of(links, cipher.verify)
    except LinkError as error:
        raise RecoveryError(
            f"the vault's membership log does not verify ({error}); nothing was recovered from this relay"
        ) from error
