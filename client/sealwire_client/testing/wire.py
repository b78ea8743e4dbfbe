"""One connection to a relay in memory: two pipes of whole messages, which take time if they are told to, and break."""

from collections import deque
from collections.abc import Callable

import trio

from sealwire_client.transport import TransportError
from sealwire_protocol.errors import CloseCode, may_come_back


class Pipe:
    """Messages one way, in order, each `delay` seconds after it was put. Ends when it is empty, or is cut at once."""

    def __init__(self, delay: Callable[[], float], carried: Callable[[], None]) -> None:
        self._delay, self._carried = delay, carried
        self._items: deque[tuple[float, bytes]] = deque()
        self._moved = trio.Event()
        self._end: TransportError | None = None

    def put(self, data: bytes) -> None:
        """Send a message off; nothing happens after the end."""
        if self._end is None:
            self._items.append((trio.current_time() + self._delay(), data))
            self._stir()

    def end(self, why: TransportError, at_once: bool) -> None:
        """No more messages; `at_once`: what is on its way is lost."""
        if at_once:
            self._items.clear()
        self._end = self._end or why
        self._stir()

    async def get(self) -> bytes:
        """The next message. Raises TransportError after the end. Cancelled: nothing is lost."""
        await trio.lowlevel.checkpoint()
        while True:
            moved = self._moved
            if self._items and self._items[0][0] <= trio.current_time():
                data = self._items.popleft()[1]
                self._carried()
                return data
            if self._items:
                with trio.move_on_at(self._items[0][0]):
                    await moved.wait()
            elif self._end is not None:
                raise self._end
            else:
                await moved.wait()

    def _stir(self) -> None:
        self._moved.set()
        self._moved = trio.Event()


class Wire:
    """Both pipes, and the device's end of them: a `Transport`."""

    def __init__(self, origin: str, delay: Callable[[], float], carried: Callable[[], None]) -> None:
        self.origin, self._delay = origin, delay
        self.to_relay, self.to_device = Pipe(delay, carried), Pipe(delay, carried)

    async def send(self, data: bytes) -> None:
        """Send one message to the relay; like a socket, it does not notice that nobody is there any more."""
        await trio.lowlevel.checkpoint()
        self.to_relay.put(data)

    async def receive(self) -> bytes:
        """The relay's next message."""
        return await self.to_device.get()

    async def ping(self) -> None:
        """The relay's sign of life, which takes as long as a message there and one back."""
        await trio.sleep(2 * self._delay())

    async def close(self, code: CloseCode, reason: str) -> None:
        """The device hangs up."""
        gone = TransportError(f"the device has hung up: {reason} ({int(code)})")
        self.to_relay.end(gone, at_once=False)
        self.to_device.end(gone, at_once=True)

    def cut(self) -> None:
        """The connection breaks, with all that is on its way."""
        cut = TransportError(f"the connection to {self.origin} was cut; it is tried again by itself")
        self.to_relay.end(cut, at_once=True)
        self.to_device.end(cut, at_once=True)

    def end(self, code: CloseCode, reason: str) -> None:
        """The relay ends the connection, once the device has what was sent before."""
        why = f"the relay ended the connection: {reason or 'no reason given'} ({int(code)})"
        self.to_device.end(TransportError(why, may_come_back(code), code), at_once=False)
        self.to_relay.end(TransportError(why, may_come_back(code), code), at_once=True)
