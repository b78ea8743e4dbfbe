"""One vault, as several devices have it."""

from collections.abc import Sequence
from functools import partial

from sealwire_client.sync import VaultSync
from sealwire_client.vault import Vault
from sealwire_protocol.ids import StreamId


async def all_have_read(vaults: Sequence[Vault]) -> None:
    """Wait until each device of a vault has applied what any of them has, of the collections that all have open. What
    one has sent may still be on its way to those that were in step before."""
    for stream in set[StreamId].intersection(*(set(vault._sync._streams) for vault in vaults)):
        head = max(vault._sync._streams[stream].cursor for vault in vaults)
        for vault in vaults:
            await vault._sync.until(partial(VaultSync.reached, stream=stream, seq=head))
