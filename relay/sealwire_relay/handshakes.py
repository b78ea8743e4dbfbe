"""Sockets that have not logged in yet: how many there may be, of all and of one address, and which of them make place.

Whoever is on this machine is not counted by address: it can do worse, and a proxy brings all devices from there.
"""

import ipaddress
from typing import Final

from sealwire_protocol.errors import CloseCode
from sealwire_relay.peer import Peer
from sealwire_relay.settings import is_loopback

GRACE_SECONDS: Final = 3.0
"""A login takes three round trips. When there are too many handshakes, one that is older makes place for a new one:
so sockets that never log in cannot keep devices out, and a fleet that returns at once is not thrown out by itself."""

SITE_BITS: Final = 64
"""Of an IPv6 address: whoever has one has all that share these."""


class Handshakes:
    """Knows the sockets of a relay that have not logged in, the oldest first, each with its site and since when."""

    def __init__(self, most: int, most_of_a_site: int) -> None:
        self._most, self._most_of_a_site = most, most_of_a_site
        self._open: dict[Peer, tuple[str, float]] = {}

    def admit(self, peer: Peer, address: str, now: float) -> bool:
        """Count a socket that was accepted just now. False: there are too many. One that dawdles is closed for it."""
        site = site_of(address)
        rivals = [other for other, (of, _) in self._open.items() if of == site] if site else []
        if len(rivals) < self._most_of_a_site:
            rivals = list(self._open) if len(self._open) >= self._most else []
        if rivals:
            oldest = rivals[0]
            if now - self._open[oldest][1] < GRACE_SECONDS:
                return False
            del self._open[oldest]
            oldest.close(CloseCode.OVERLOADED, "others are waiting to log in; come back")
        self._open[peer] = site, now
        return True

    def forget(self, peer: Peer) -> None:
        """A socket has logged in, or is gone."""
        self._open.pop(peer, None)


def site_of(address: str) -> str:
    """What is counted as one: an IPv4 address, the network of an IPv6 one; nothing for this machine."""
    if is_loopback(address):
        return ""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    return str(found.ipv4_mapped or ipaddress.ip_network((found, SITE_BITS), strict=False))
