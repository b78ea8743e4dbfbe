"""From where connections come: what counts as one place, how many each has, and how many it begins. Pure."""

import ipaddress
from typing import Final

from sealwire_relay.buckets import Buckets, Rate
from sealwire_relay.forwarded import plain
from sealwire_relay.settings import is_loopback

SITE_BITS: Final = 64
"""Of an IPv6 address: whoever has one has all that share these."""


def site_of(address: str) -> str:
    """What is counted as one: an IPv4 address, the network of an IPv6 one; nothing for this machine, which is not
    counted: whoever is on it can do worse."""
    try:
        found = plain(address)
    except ValueError:
        return address
    if is_loopback(str(found)):
        return ""
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    return str(ipaddress.ip_network((found, SITE_BITS), strict=False))


class Sites:
    """Counts the connections of each site: `most` at once, of which no more than `per_second` (0: any number) begin in
    the long run. Remembers nothing of those that have none and began none of late."""

    def __init__(self, most: int, per_second: float) -> None:
        self._most = most
        self._begun = Buckets[str]("site", Rate(per_second, 0))
        self._counts: dict[str, int] = {}

    def enter(self, site: str, now: float) -> bool:
        """Count one more, which begins now. False: there are too many, or were of late, and it is not counted."""
        if not site:
            return True
        count = self._counts.get(site, 0)
        if count >= self._most or self._begun.limited(site, 0, now) is not None:
            return False
        self._begun.take(site, 0, now)
        self._counts[site] = count + 1
        return True

    def leave(self, site: str) -> None:
        """One that was counted is gone."""
        if not site:
            return
        count = self._counts.pop(site) - 1
        if count:
            self._counts[site] = count
