"""A device's connections to relays: one for each relay and each of its keys, up for as long as it is needed."""

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from sealwire_client.enrolment import Identities
from sealwire_client.identity import DeviceIdentity
from sealwire_client.link import Dialler, Link
from sealwire_protocol.ids import DeviceKey


class Connections:
    """All of one device. `home` is where new vaults go: the connection to it stays, though no vault is there."""

    def __init__(self, home: str | None, identities: Identities, dial: Dialler, nursery: trio.Nursery) -> None:
        self._home, self._identities = home, identities
        self._dial, self._nursery = dial, nursery
        self._links: dict[tuple[str, DeviceKey], Link] = {}
        self._suspended = False

    def to(self, origin: str, identity: DeviceIdentity) -> Link:
        """The connection to a relay under these keys, kept up from the first call on."""
        name = origin, identity.device_key
        link = self._links.get(name)
        if link is None:
            link = self._links[name] = Link(origin, identity, self._dial)
            if self._suspended:
                link.suspend()
            self._nursery.start_soon(link.run)
        return link

    def known(self, origin: str) -> Link | None:
        """A connection to a relay that there is, under the newest keys first."""
        links = (self._links.get((origin, identity.device_key)) for identity in self._identities)
        return next((link for link in links if link is not None), None)

    @contextmanager
    def used(self, origin: str, identity: DeviceIdentity) -> Iterator[Link]:
        """A connection for something that ends; it stays, as long as these keys are the device's."""
        link = self.to(origin, identity)
        try:
            yield link
        finally:
            self.retire(link, identity)

    @contextmanager
    def visited(self, origin: str, identity: DeviceIdentity) -> Iterator[Link]:
        """A connection to a relay that is asked something, and at which no vault may be."""
        link = self.to(origin, identity)
        try:
            yield link
        finally:
            self.let_go(link)

    def retire(self, link: Link, identity: DeviceIdentity) -> None:
        """Give up a connection under earlier keys, if nobody needs it any more."""
        if identity is not self._identities.present:
            self.end(link)

    def let_go(self, link: Link) -> None:
        """Give up a connection to a relay at which no vault is, unless new vaults go there."""
        if link.origin != self._home:
            self.end(link)

    def end(self, link: Link) -> None:
        """Give up a connection, if nobody needs it any more."""
        if link.idle:
            link.stop()
            self._links = {name: kept for name, kept in self._links.items() if kept is not link}

    def wake(self) -> None:
        """Try to reach the relays at once."""
        for link in self._links.values():
            link.wake()

    def network_changed(self) -> None:
        """See that the connections that stand are alive, and make the others at once."""
        for link in self._links.values():
            link.network_changed()

    async def suspend(self) -> None:
        """End all connections in good order, and make none until `resume`. Returns when they have ended."""
        self._suspended = True
        links = list(self._links.values())
        for link in links:
            link.suspend()
        for link in links:
            await link.suspended()

    def resume(self) -> None:
        """Make connections again, at once."""
        self._suspended = False
        for link in self._links.values():
            link.resume()
