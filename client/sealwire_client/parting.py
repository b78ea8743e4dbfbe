"""Leaving a vault, and deleting one: the links that say so, and what is made sure of before."""

from typing import Final

import trio

from sealwire_client import linkmaking
from sealwire_client.belonging import check_belongs
from sealwire_client.keyring import KeyringError
from sealwire_client.link import RelayRefusedError
from sealwire_client.membering import LINK_ATTEMPTS_MAX, ask_for_link, request_link
from sealwire_client.replica import Leaving, Replica, Runner, UnsentError
from sealwire_client.sync import VaultSync
from sealwire_protocol.errors import FaultCode

ISSUING_SECONDS_MAX: Final = 60.0
"""How long who leaves makes up first for what a relay has lost of the membership log: nobody else may know of it."""

_OTHERS: Final = "other devices keep changing the vault's members; try again"


async def leave(sync: VaultSync, writer: Runner[Replica], *, discard: bool) -> None:
    """Make this device a member no more. From when the relay is asked on it goes on with the next run, if this one is
    cancelled or ends.

    Waits for the relay. Raises UnsentError if something is not sent and not to be discarded, KeyringError if no admin
    would be left, and RelayRefusedError; nothing was done then.
    """
    number = sync.held.number
    unsent = await writer.run(lambda replica: replica.parting.unsent(number)) + sync.strict_under_way
    if unsent and not discard:
        raise UnsentError(unsent)
    intended = await writer.run(lambda replica: replica.parting.intended(number))
    try:
        if intended is not None and await _is_out(sync, intended.link):
            return
        for _ in range(LINK_ATTEMPTS_MAX):
            await sync.until(lambda sync: sync.may_sign or sync.over is not None or sync.is_strange)
            if sync.over is not None or sync.is_strange:
                return
            await _issued(sync, writer)
            async with sync.members.appending:
                known = sync.membership.last_hash
                raw = linkmaking.leave_link(sync.identity, sync.membership)
                await writer.run(lambda replica, raw=raw: replica.parting.intend(number, Leaving(raw, discard)))  # type: ignore[misc]
                if await _is_out(sync, raw):
                    return
            await sync.until(lambda sync, known=known: sync.membership.last_hash != known or sync.is_strange)  # type: ignore[misc]
        raise KeyringError(_OTHERS)
    except (KeyringError, RelayRefusedError):
        await writer.run(lambda replica: replica.parting.intend(number, None))
        raise


async def _issued(sync: VaultSync, writer: Runner[Replica]) -> None:
    """Wait until this device has added and removed again whom an end of the log that went had (R15), for a while."""
    with trio.move_on_after(ISSUING_SECONDS_MAX):
        while True:
            moved = sync.moved  # before the look: what happens during it must not be missed
            if not await writer.run(lambda replica: replica.vaults.unissued(sync.held.number)):
                return
            await moved.wait()


async def _is_out(sync: VaultSync, raw: bytes) -> bool:
    """Ask for the link by which this device leaves. False: another link came first, or the relay knows no such vault,
    and maybe gets it back."""
    try:
        await request_link(sync, raw)
    except RelayRefusedError as error:
        if error.fault.code in (FaultCode.LINK_CONFLICT, FaultCode.NO_SUCH_VAULT):
            return False
        raise
    return True


async def end(sync: VaultSync) -> None:
    """Delete the vault, for all. Waits for the relay. Raises KeyringError if this device may not, RelayRefusedError."""
    for _ in range(LINK_ATTEMPTS_MAX):
        await sync.until(lambda sync: sync.may_sign or sync.over is not None)
        if sync.membership.ended:
            return
        check_belongs(sync)
        async with sync.members.appending:
            await ask_for_link(sync, linkmaking.end_link(sync.identity, sync.membership))
    raise KeyringError(_OTHERS)
