"""From where connections come: what counts as one place, how many each has, and how many it begins. Pure."""

import ipaddress
from typing import Final

from sealwire_relay.forwarded import plain
from sealwire_relay.settings import is_loopback

SITE_BITS: Final = 64
"""Of an IPv6 address: whoever has one has all that share these."""

BURST_SECONDS: Final = 4.0
"""So many seconds' worth of its rate a site may begin at one moment: all that share it may come back at once."""

SWEEP_SIZE_MIN: Final = 1_024
"""Sites at which it is looked for those that have begun none of late, and again whenever there are twice as many as
were left."""


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
        self._seconds_each = 1 / per_second if per_second else 0.0
        self._counts: dict[str, int] = {}
        self._rested_at: dict[str, float] = {}
        """When all of a burst may begin again."""
        self._sweep_size = SWEEP_SIZE_MIN

    def enter(self, site: str, now: float) -> bool:
        """Count one more, which begins now. False: there are too many, or were of late, and it is not counted."""
        if not site:
            return True
        count = self._counts.get(site, 0)
        if count >= self._most or not self._begins(site, now):
            return False
        self._counts[site] = count + 1
        return True

    def _begins(self, site: str, now: float) -> bool:
        if not self._seconds_each:
            return True
        rested_at = max(self._rested_at.get(site, now), now) + self._seconds_each
        if rested_at - now > max(BURST_SECONDS, self._seconds_each):
            return False
        self._rested_at[site] = rested_at
        if len(self._rested_at) >= self._sweep_size:
            self._rested_at = {site: at for site, at in self._rested_at.items() if at > now}
            self._sweep_size = max(SWEEP_SIZE_MIN, 2 * len(self._rested_at))
        return True

    def leave(self, site: str) -> None:
        """One that was counted is gone."""
        if not site:
            return
        count = self._counts.pop(site) - 1
        if count:
            self._counts[site] = count
