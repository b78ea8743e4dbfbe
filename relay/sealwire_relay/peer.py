"""What the parts below the gateway see of a connected device, and what a connection sees of its gateway."""

from collections.abc import Iterator
from typing import Protocol

from sealwire_protocol.errors import CloseCode
from sealwire_protocol.events import RelayEvent
from sealwire_protocol.ids import DeviceKey, VaultId
from sealwire_protocol.limits import Limits
from sealwire_protocol.membership import Verify
from sealwire_protocol.messages import Acked, Message
from sealwire_protocol.relay_session import RelaySession
from sealwire_relay.forwarded import Proxies
from sealwire_relay.metrics import Metrics
from sealwire_relay.settings import Settings
from sealwire_relay.tls import Certificate


class Peer(Protocol):
    """A connected device."""

    @property
    def session(self) -> RelaySession:
        """Its end of the conversation."""

    @property
    def device(self) -> DeviceKey | None:
        """The device that has logged in, if any has."""

    def handle(self, event: RelayEvent) -> None:
        """Give an event to the session and carry out its effects; does nothing after the end."""

    def send_frame(self, frame: bytes) -> None:
        """Send an encoded WebSocket frame."""

    def flush(self) -> None:
        """Hand what was sent to the transport."""

    def close(self, code: CloseCode, reason: str) -> None:
        """End the connection."""

    def on_turn(self) -> None:
        """It is its turn to go on with what has come in."""

    def hold_back(self) -> None:
        """Read nothing more from it until `go_on`; it is not given up for that."""

    def go_on(self) -> None:
        """Read from it again."""

    def abort(self) -> None:
        """Cut the socket at once."""


class Host(Protocol):
    """What a connection asks of the gateway."""

    settings: Settings
    metrics: Metrics
    origins: frozenset[str]
    verify: Verify
    granted: Limits
    proxies: Proxies
    certificate: Certificate | None
    written: list[Peer]
    """Those to which something was sent in this turn of the event loop. The first one calls `flush_soon`."""

    def accepted(self, peer: Peer) -> None:
        """A socket was accepted; it may be refused by aborting it."""

    def came_from(self, peer: Peer, address: str) -> bool:
        """A trusted proxy has connected for this address, which is counted from now on. False: it has too many
        connections, and this one is to be ended."""

    def lost(self, peer: Peer) -> None:
        """A socket is gone."""

    def logged_in(self, peer: Peer) -> None:
        """A device has proved who it is."""

    def misused(self, token: bytes, address: str, asked: str) -> None:
        """An admin token was shown here, whose hash this is; whoever did it is sent away."""

    def do(self, peer: Peer, message: Message) -> Iterator[None] | None:
        """A device asks for this. What it returns is to be gone on with, a step in each turn of the device's, before
        anything else that it says is looked at."""

    def noted(self, peer: Peer, positions: tuple[Acked, ...]) -> None:
        """A device has durably applied these positions."""

    def left(self, peer: Peer, vault: VaultId) -> None:
        """A device is told that there is no such vault for it: it listens to nothing of it any more."""

    def pump(self, peer: Peer) -> None:
        """A device lags and has credit."""

    def flush_soon(self) -> None:
        """Call `flush` of all that are `written` when this turn of the event loop is over."""

    def turn_soon(self, peer: Peer) -> None:
        """Call `on_turn` when all that asked before have had their turn: one in each turn of the event loop."""
