"""Sockets that have not logged in yet: how many there may be, of all and of one site, and which of them make place."""

from collections.abc import Iterable
from typing import Final

from sealwire_protocol.errors import CloseCode
from sealwire_relay.peer import Peer

GRACE_SECONDS: Final = 3.0
"""A login takes three round trips. When there are too many handshakes, one that is older makes place for a new one:
so sockets that never log in cannot keep devices out, and a fleet that returns at once is not thrown out by itself."""


class Handshakes:
    """Knows the sockets of a relay that have not logged in, the oldest first, each with its site and since when."""

    def __init__(self, most: int, most_of_a_site: int) -> None:
        self._most, self._most_of_a_site = most, most_of_a_site
        self._open: dict[Peer, tuple[str, float]] = {}
        self._sites: dict[str, dict[Peer, None]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, peer: Peer, site: str, now: float) -> bool:
        """Count a socket that was accepted just now. False: there are too many. One that dawdles is closed for it."""
        rivals = self._rivals(site)
        if not rivals and len(self._open) >= self._most:
            rivals = self._open
        if rivals and not self._make_place(rivals, now):
            return False
        self._open[peer] = site, now
        self._sites.setdefault(site, {})[peer] = None
        return True

    def move(self, peer: Peer, site: str, now: float) -> bool:
        """A socket turns out to be of another site. False: that has too many, and nothing has changed."""
        rivals = self._rivals(site)
        if rivals and not self._make_place(rivals, now):
            return False
        _, since = self._open[peer]
        self._leave(peer)
        self._open[peer] = site, since
        self._sites.setdefault(site, {})[peer] = None
        return True

    def forget(self, peer: Peer) -> None:
        """A socket has logged in, or is gone."""
        if peer in self._open:
            self._leave(peer)
            del self._open[peer]

    def _rivals(self, site: str) -> Iterable[Peer]:
        """The sockets of a site that has no place for another one; nothing if it has."""
        open_ = self._sites.get(site, {}) if site else {}
        return open_ if len(open_) >= self._most_of_a_site else ()

    def _make_place(self, rivals: Iterable[Peer], now: float) -> bool:
        oldest = next(iter(rivals))
        if now - self._open[oldest][1] < GRACE_SECONDS:
            return False
        self.forget(oldest)
        oldest.close(CloseCode.OVERLOADED, "others are waiting to log in; come back")
        return True

    def _leave(self, peer: Peer) -> None:
        site, _ = self._open[peer]
        del self._sites[site][peer]
        if not self._sites[site]:
            del self._sites[site]
