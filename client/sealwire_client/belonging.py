"""Waiting for what only a device that belongs to a vault comes to: to be in step, to sign a link, to have a new key."""

from sealwire_client.keyring import VaultOverError
from sealwire_client.sync import VaultSync


def check_belongs(sync: VaultSync) -> None:
    """Raises VaultOverError if the vault is over for this device, and VaultGoneError if it is on it no more.

    A device that was removed and let in again hears of both, one after the other: it belongs to the vault."""
    sync.check_here()
    known = sync.members.told is None or sync.members.complete
    comes_back = sync.membership.by_device(sync.identity.device_key) is not None and not sync.membership.ended
    if sync.over is not None and known and not comes_back:
        raise VaultOverError(sync.over)


async def until_may_sign(sync: VaultSync) -> None:
    """Wait until this device may sign a link of the vault's log. Raises VaultOverError, VaultGoneError."""

    def may_sign(sync: VaultSync) -> bool:
        check_belongs(sync)
        return sync.may_sign

    await sync.until(may_sign)


async def synced(sync: VaultSync) -> None:
    """Wait until everything made before this call is sent and confirmed, and everything known is applied. Raises
    VaultOverError, VaultGoneError."""
    while True:
        moved = sync.moved  # before the look: what happens during it must not be missed
        check_belongs(sync)
        if sync.is_synced(await sync.waiting()):
            return
        await moved.wait()


async def added_again(sync: VaultSync, seq: int) -> None:
    """Wait until the link with this number has made this device, which was removed, a member again."""
    sync.ask_again()
    await sync.until(lambda sync: sync.membership.head >= seq and sync.members.is_one and not sync.is_refused)


async def has_keys_of(sync: VaultSync, epoch: int) -> None:
    """Wait until this device has the keys of an epoch, and seals under none of an older one."""
    await sync.until(lambda sync: sync.keys.current.number >= epoch)


async def another_log_than(sync: VaultSync, last_hash: bytes) -> None:
    """Wait until the membership log here is another one than that which ends with this link."""
    await sync.until(lambda sync: sync.membership.last_hash != last_hash)
