"""Vaults that this device was let into, fetched from their relays one beside the other, now and after a restart."""

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import trio

from sealwire_client.invites import InviteError, Promise
from sealwire_client.keyring import KeyringError
from sealwire_client.replica import Replica, Runner
from sealwire_protocol.ids import VaultId

FETCH_AGAIN_SECONDS_MIN: Final = 60.0
FETCH_AGAIN_SECONDS_MAX: Final = 3_600.0
"""How long after its relay has shown no such vault, or another one, it is asked again: each time twice as long."""

_log = logging.getLogger("sealwire.joining")


class Awaiting:
    """What was promised to this device and is not here yet. `fetch` gets one vault, and returns when it is held; it
    raises InviteError or KeyringError if that cannot be done now."""

    def __init__(
        self, writer: Runner[Replica], nursery: trio.Nursery, fetch: Callable[[Promise], Awaitable[None]]
    ) -> None:
        self._writer, self._nursery, self._fetch = writer, nursery, fetch
        self._promises: dict[VaultId, Promise] = {}
        self._failed: dict[VaultId, str] = {}
        self._fetching: dict[VaultId, trio.CancelScope] = {}
        self._moved = trio.Event()

    @property
    def vaults(self) -> dict[Promise, str | None]:
        """What is still to come, and why the last attempt has failed; None: it is on its way."""
        return {promise: self._failed.get(vault) for vault, promise in self._promises.items()}

    async def go_on(self) -> None:
        """Fetch what was promised to an earlier run."""
        self._start(Promise(*each) for each in await self._writer.run(lambda replica: replica.awaited.all()))

    async def expect(self, promises: Iterable[Promise]) -> None:
        """Fetch these vaults from now on, also after a restart: durable when it returns."""
        wanted = list(promises)
        with trio.CancelScope(shield=True):  # what is durable is fetched
            await self._writer.run(lambda replica: replica.awaited.add(wanted))
            self._start(wanted)

    async def came(self, vault: VaultId) -> None:
        """Wait until a vault is no longer awaited. Raises InviteError if an attempt fails by then."""
        while vault in self._promises:
            if vault in self._failed:
                raise InviteError(self._failed[vault])
            await self._moved.wait()

    async def another(self) -> None:
        """Wait until a vault less is awaited than now; return at once if none is."""
        before = len(self._promises)
        while before and len(self._promises) >= before:
            await self._moved.wait()

    def arrived(self, vault: VaultId) -> None:
        """It is held, by whatever way."""
        self._promises.pop(vault, None)
        self._failed.pop(vault, None)
        self._stir()

    def stop(self, vault: VaultId) -> None:
        """Fetch a vault no longer in this run: it is joined in another way."""
        fetching = self._fetching.pop(vault, None)
        if fetching is not None:
            fetching.cancel()

    def _start(self, promises: Iterable[Promise]) -> None:
        for promise in promises:
            self.stop(promise.vault)
            self._promises[promise.vault] = promise
            self._failed.pop(promise.vault, None)
            self._fetching[promise.vault] = scope = trio.CancelScope()
            self._nursery.start_soon(self._run, promise, scope)

    async def _run(self, promise: Promise, scope: trio.CancelScope) -> None:
        pause = FETCH_AGAIN_SECONDS_MIN
        with scope:
            while True:
                try:
                    await self._fetch(promise)
                    return
                except (InviteError, KeyringError) as error:
                    self._failed[promise.vault] = str(error)
                    _log.warning("a vault of %s that this device was let into: %s", promise.origin, error)
                    self._stir()
                await trio.sleep(pause)
                pause = min(2 * pause, FETCH_AGAIN_SECONDS_MAX)

    def _stir(self) -> None:
        self._moved.set()
        self._moved = trio.Event()
