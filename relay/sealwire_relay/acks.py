"""What devices say of how far they have applied streams, written behind: nobody waits for it, and little is lost.

What is lost with a process is said again, with the next acknowledgement or subscription. Until then tombstones stay
longer than they must, which harms nobody.
"""

import contextlib
import logging
from collections.abc import Iterable
from typing import Final

from sealwire_protocol.ids import MEMBERSHIP, DeviceKey, Position, StreamId, VaultId
from sealwire_relay.metrics import Metrics
from sealwire_relay.repeating import Repeating
from sealwire_relay.store.cleaning import AckedPosition
from sealwire_relay.store.interface import Store, StoreError

ACK_FLUSH_SECONDS: Final = 10.0
"""How often they are written: of what a device says meanwhile only the last counts, so that one which is never still
costs a row of writing in this time, and not one for each frame."""

ACKS_AT_ONCE: Final = 4_096
"""Written in one statement: some 30 ms."""

ACKS_MAX: Final = 65_536
"""That wait, some 400 bytes each: every stream of thousands of devices. Those of more are forgotten."""

_log = logging.getLogger("sealwire.acks")


class Acks:
    """What devices have said and is not written yet."""

    def __init__(self, store: Store, metrics: Metrics) -> None:
        self._store, self._metrics = store, metrics
        self._waiting: dict[tuple[VaultId, StreamId, DeviceKey], Position] = {}
        self._repeating = Repeating(
            self.flush,
            ACK_FLUSH_SECONDS,
            _log,
            failed="positions of devices could not be written down",
            well="positions of devices are written down again",
        )

    def note(self, device: DeviceKey, vault: VaultId, stream: StreamId, position: Position) -> None:
        """A device has applied a stream up to here, or at least says so: the store judges."""
        name = vault, stream, device
        if stream == MEMBERSHIP:
            return
        if len(self._waiting) >= ACKS_MAX and name not in self._waiting:
            self._metrics.acks_forgotten.inc()
            return
        self._waiting[name] = position

    def start(self) -> None:
        """Begin to write every ACK_FLUSH_SECONDS."""
        self._repeating.start()

    async def stop(self) -> None:
        """Write what waits, if the store takes it, and end. Safe twice, and without a start."""
        if await self._repeating.stop():
            with contextlib.suppress(StoreError):
                await self.flush()

    async def flush(self) -> None:
        """Write all that waits. Raises StoreError; then, or cancelled, what was not written waits on."""
        waiting, self._waiting = self._waiting, {}
        try:
            while waiting:
                names = list(waiting)[:ACKS_AT_ONCE]
                await self._store.acked([AckedPosition(*name, waiting[name]) for name in names])
                self._metrics.acks.inc(len(names))
                for name in names:
                    del waiting[name]
        finally:
            self._put_back(waiting.items())

    def _put_back(self, unwritten: Iterable[tuple[tuple[VaultId, StreamId, DeviceKey], Position]]) -> None:
        for (vault, stream, device), position in unwritten:
            if (vault, stream, device) not in self._waiting:
                self.note(device, vault, stream, position)
