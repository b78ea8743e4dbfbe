"""Pushes that are not answered yet, counted in bytes, and who is held back for them: backpressure.

A database that is slow, or away, makes pushes wait. Who has many waiting is not read from until most of them are
answered: its own queue, the kernel's and the network's, is where the rest waits. Nothing is refused for it.
"""

from dataclasses import dataclass
from typing import Final

from sealwire_relay.peer import Peer

PUSH_BYTES: Final = 1_024
"""What a push counts for beside its records: the objects around them, measured."""

RESUME_SHARE: Final = 0.5
"""Share of a limit below which reading goes on: well below, so that it is not switched at every push."""

OVERRUN: Final = 2
"""At so many times the limit in all a connection is ended instead. Held back, each has still brought the push at which
that was noticed: only hundreds that begin to push at once, all with large pushes, come to this."""


@dataclass(slots=True)
class _Share:
    """What one connection has waiting."""

    bytes: int = 0
    held: bool = False


class Backlog:
    """All that waits. `bytes` are of all connections, `pushes` their number; `held`: how many are held back."""

    def __init__(self, bytes_max: int, bytes_per_connection_max: int) -> None:
        self.bytes = self.pushes = self.held = 0
        self._bytes_max, self._share_max = bytes_max, bytes_per_connection_max
        self._full = False
        self._shares: dict[Peer, _Share] = {}

    def add(self, peer: Peer, size: int) -> bool:
        """A push of so many record bytes waits from now on. False: it does not, as there is too much even so."""
        counted = size + PUSH_BYTES
        if self.bytes + counted > OVERRUN * self._bytes_max:
            return False
        self.bytes += counted
        self.pushes += 1
        share = self._shares.get(peer)
        if share is None:
            share = self._shares[peer] = _Share()
        share.bytes += counted
        self._full = self._full or self.bytes > self._bytes_max
        if not share.held and (self._full or share.bytes > self._share_max):
            share.held = True
            self.held += 1
            peer.hold_back()
        return True

    def done(self, peer: Peer, size: int) -> None:
        """It is answered, or its connection ended."""
        counted = size + PUSH_BYTES
        self.bytes -= counted
        self.pushes -= 1
        share = self._shares[peer]
        share.bytes -= counted
        if self._full and self.bytes <= RESUME_SHARE * self._bytes_max:
            self._full = False
            for other, its in list(self._shares.items()):
                self._settle(other, its)
        self._settle(peer, share)

    def _settle(self, peer: Peer, share: _Share) -> None:
        if share.held and not self._full and share.bytes <= RESUME_SHARE * self._share_max:
            share.held = False
            self.held -= 1
            peer.go_on()
        if not share.bytes and not share.held:
            self._shares.pop(peer, None)
