"""A vault that a device holds, and the tasks that work for it as long as it does."""

import trio

from sealwire_client.membering import begin_owed_epochs
from sealwire_client.nursery import open_nursery
from sealwire_client.sync import VaultSync
from sealwire_client.vault import Vault


class Kept:
    """A vault, its sync, and their tasks."""

    def __init__(self, vault: Vault, sync: VaultSync) -> None:
        self.vault, self.sync = vault, sync
        self._scope, self._ended = trio.CancelScope(), trio.Event()

    def start(self, nursery: trio.Nursery) -> None:
        """Work for it, and hear of it."""
        self._scope, self._ended = trio.CancelScope(), trio.Event()
        self.sync.gone = False
        self.sync.link.follow(self.sync.held.id, self.sync)
        nursery.start_soon(self._work)

    async def _work(self) -> None:
        with self._scope:
            async with open_nursery() as nursery:
                nursery.start_soon(self.sync.run)
                nursery.start_soon(self.vault.keep_status)
                nursery.start_soon(begin_owed_epochs, self.sync)
        self._ended.set()

    async def stop(self) -> None:
        """Do nothing for it any more. When it returns, nothing is under way."""
        self.sync.link.unfollow(self.sync.held.id)
        self._scope.cancel()
        await self._ended.wait()
        await self.sync.stop()
