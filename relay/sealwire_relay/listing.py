"""The work of `sealwire-relay vaults`: says what each vault stores, of how much it may. Never what is in it."""

from collections.abc import Callable

from sealwire_relay.borrowed import store_of
from sealwire_relay.ending import ExitCode, asked_to_end, before, ending, told
from sealwire_relay.quota import ListedVault, listed
from sealwire_relay.settings import Settings
from sealwire_relay.store.interface import Store

VAULTS_AT_ONCE = 500
"""Vaults asked for in one query: a look at the heads of each."""


async def list_vaults(settings: Settings, tell: Callable[[ListedVault], None]) -> ExitCode:
    """Tell of every vault of the database of the settings, and end; a relay may run on it. Raises RelayError."""
    with asked_to_end() as asked, told():
        done = await before(asked, _list(settings, tell))
        return ending(asked.result(), before_ready=True) if done is None else ExitCode.DONE


async def _list(settings: Settings, tell: Callable[[ListedVault], None]) -> bool:
    async with store_of(settings) as store:
        await _each(store, settings.quota_bytes, tell)
    return True


async def _each(store: Store, default: int, tell: Callable[[ListedVault], None]) -> None:
    after = None
    while page := await store.vaults(after, VAULTS_AT_ONCE):
        for found in page:
            tell(listed(found, default))
        after = page[-1].vault
