"""One vault's membership log on this device: what is held of it, verified, and what the relay has told of it."""

from copy import copy

import trio

from sealwire_client import cipher
from sealwire_client.link import Link
from sealwire_client.replica import Replica, Runner
from sealwire_protocol.ids import START, Position, VaultId
from sealwire_protocol.membership import LinkError, Membership, decode_links, link_hash, vault_id_of
from sealwire_protocol.messages import NO_REQUEST, AppendLink, CreateVault, Deliver


class MemberLog:
    """The log of the vault that the replica knows by `vault`. `at`: where to listen on from.

    `told`: how long it is, as far as the relay has told on this connection; None: nothing yet.
    """

    def __init__(self, vault: int, membership: Membership, writer: Runner[Replica]) -> None:
        self.membership = membership
        self.at: Position = START
        self.told: int | None = None
        self.appending = trio.Lock()
        """Held by whoever asks for a link: two at once would both be of the same place."""
        self._vault, self._writer = vault, writer
        self._taking = trio.Lock()

    @property
    def complete(self) -> bool:
        """True if all that the relay has told of is here."""
        return self.told is not None and self.membership.head >= self.told

    @property
    def is_longer(self) -> bool:
        """True if the log here is longer than the relay has told of."""
        return self.told is not None and self.membership.head > self.told

    async def links(self) -> list[bytes]:
        """All links that are held here, in order."""
        return await self._writer.run(lambda replica: replica.vaults.links(self._vault))

    async def present(self, relay: Link, vault: VaultId, after: int) -> None:
        """Give the relay the links behind the first `after`, which it never had, or has lost (R15); then the whole log
        is to be listened to. Raises RelayRefusedError."""
        for raw in (await self.links())[after:]:
            first = vault_id_of(raw) == vault
            await relay.request(CreateVault(NO_REQUEST, raw) if first else AppendLink(NO_REQUEST, vault, raw))
        self.at = START

    async def hash_of_link(self, seq: int) -> bytes:
        """The hash of a link that is held here."""
        return link_hash((await self.links())[seq - 1])

    async def take(self, deliver: Deliver) -> str | None:
        """Verify links and keep them, durably. Returns why links were not taken in, if any were not.

        A log that does not verify is not taken in; what is here stays as it is.
        """
        async with self._taking:  # a former connection may still be at it
            try:
                return await self._take(deliver.prev, decode_links(deliver.segment))
            except LinkError as error:
                return str(error)
            finally:
                # A link that was not accepted is asked for again on the next connection.
                self.at = Position(deliver.term, min(deliver.last, self.membership.head))

    async def _take(self, prev: int, links: list[bytes]) -> str | None:
        fresh = links[max(0, self.membership.head - prev) :]
        known = await self.links()
        if links[: len(links) - len(fresh)] != known[prev : prev + len(links) - len(fresh)]:
            return "the relay shows another membership log than the one that this device holds"
        first, why = self.membership.head + 1, None
        grown = copy(self.membership)
        grown.members = dict(grown.members)
        try:
            for raw in fresh:
                grown.apply(raw, cipher.verify)
        except LinkError as error:
            why = str(error)
        taken = fresh[: grown.head + 1 - first]
        if taken:
            await self._writer.run(lambda replica: replica.vaults.add_links(self._vault, first, taken))
            self.membership = grown
        return why
