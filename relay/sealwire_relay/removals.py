"""Whoever listens to a vault and is no member of it any more is told so, on whichever relay it was removed.

Nothing is asked on the way of an append: who is still a member is looked up where links have come since the last look.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Final

from sealwire_protocol.errors import CloseCode
from sealwire_protocol.faults import no_such_vault
from sealwire_protocol.ids import Position, VaultId
from sealwire_relay.fanout import Fanout
from sealwire_relay.peer import Peer
from sealwire_relay.store.interface import Store, StoreError

VAULTS_AT_ONCE: Final = 100
"""Vaults whose members are asked for in one query: a thousand devices in each are some 5 MB."""


class Removals:
    """Knows up to which link of each vault those who listen to it here are members of it."""

    def __init__(self, store: Store, fanout: Fanout) -> None:
        self._store, self._fanout = store, fanout
        self._looked: dict[VaultId, Position] = {}

    async def compare(self, heads: Mapping[VaultId, Position]) -> None:
        """The heads of the membership logs of all vaults that are listened to here, as the database has them, each with
        the newest term written there: another end of equal length has another one. Raises StoreError."""
        self._looked = {vault: head for vault, head in self._looked.items() if vault in heads}
        changed = [vault for vault, head in heads.items() if self._looked.get(vault) != head]
        for at in range(0, len(changed), VAULTS_AT_ONCE):
            certain = await self._look(changed[at : at + VAULTS_AT_ONCE])
            self._looked.update((vault, heads[vault]) for vault in certain)

    async def changed(self, vault: VaultId) -> None:
        """Members of a vault may have gone just now. If the database cannot say who, that is left to `compare`."""
        self._looked.pop(vault, None)
        with contextlib.suppress(StoreError):
            await self._look([vault])

    async def _look(self, vaults: Sequence[VaultId]) -> list[VaultId]:
        """Dismiss those who are no members. Returns the vaults of which no other listens.

        A connection whose SUBSCRIBE is under way is left alone: it may be told of an older membership than this, or of
        a newer one.
        """
        before = self._fanout.connections(vaults)
        members = await self._store.members(vaults)
        after = self._fanout.connections(vaults)
        certain = []
        for vault in vaults:
            strange = [peer for peer in before.get(vault, {}) if peer.device not in members[vault]]
            settled = {peer for peer in strange if before[vault][peer] and after.get(vault, {}).get(peer)}
            for peer in settled:
                _dismiss(peer, vault)
            if len(settled) == len(strange):
                certain.append(vault)
        return certain


def _dismiss(peer: Peer, vault: VaultId) -> None:
    """It listens to nothing of this vault any more; if that was all, its connection ends."""
    peer.handle(no_such_vault(vault))
    if not peer.session.listeners:
        peer.close(CloseCode.REMOVED, "this device was removed from the vault")
