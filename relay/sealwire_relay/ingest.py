"""Where pushes come in: writers take them in turns, and who pushes more than the database takes is slowed down.

A vault is with one writer at a time, so that what is pushed to it is committed in its order. Commits of different
writers overlap: while one waits for the disk, the next one is decided. No vault belongs to a writer: one that is
busy with what a vault pushes without end keeps no other vault waiting, as what is pushed to those goes to the next
writer.
"""

import asyncio
import time
from collections import OrderedDict

from sealwire_protocol.errors import CloseCode
from sealwire_protocol.ids import VaultId
from sealwire_relay.backlog import Backlog
from sealwire_relay.fanout import Fanout
from sealwire_relay.losses import Losses
from sealwire_relay.metrics import Metrics
from sealwire_relay.peer import Peer
from sealwire_relay.pushqueue import PushQueue, Waiting
from sealwire_relay.settings import Settings
from sealwire_relay.store.interface import MemberState, Store
from sealwire_relay.terms import Terms
from sealwire_relay.view import Admitted, VaultView
from sealwire_relay.writer import Writer


class Ingest:
    """The writers of a relay process, and the pushes that they have not answered yet."""

    def __init__(
        self,
        store: Store,
        fanout: Fanout,
        settings: Settings,
        metrics: Metrics,
        terms: Terms,
        losses: Losses,
    ) -> None:
        self._backlog = Backlog(settings.waiting_bytes_max, settings.waiting_bytes_per_connection_max)
        self._queue = PushQueue()
        self._views: OrderedDict[VaultId, VaultView] = OrderedDict()
        self._writers = [
            Writer(
                store, fanout, settings, metrics, terms, losses, self._queue, self._views, self._done, self._wake_one
            )
            for _ in range(settings.writers)
        ]
        metrics.waiting_bytes.set_function(lambda: self._backlog.bytes)
        metrics.held_back.set_function(lambda: self._backlog.held)

    @property
    def unanswered(self) -> int:
        """Pushes that wait, or are being committed."""
        return self._backlog.pushes

    def start(self) -> None:
        """Start the writers."""
        for writer in self._writers:
            writer.start()

    async def stop(self) -> None:
        """Let what is queued be committed, then stop. When it is cancelled, commits under way are cut."""
        for writer in self._writers:
            writer.hurry()
        try:
            while not self._queue.is_idle:
                for writer in self._writers:
                    await writer.idle.wait()
        finally:
            ended = [task for writer in self._writers if (task := writer.stop()) is not None]
            await asyncio.gather(*ended, return_exceptions=True)

    def push(self, peer: Peer, admitted: Admitted) -> None:
        """Queue a push; it is answered through the peer once it is durable. A peer that has too much waiting is not
        read from until less is; one that goes on sending all the same is told to come back later."""
        if not self._backlog.add(peer, admitted.size):
            peer.close(CloseCode.OVERLOADED, "the relay has more pushes waiting than it can take")
            return
        if self._queue.add(Waiting(peer, admitted, time.perf_counter())):
            self._wake_one()

    def forget(self, vault: VaultId) -> None:
        """Read this vault afresh before the next decision (its members or streams have changed)."""
        self._views.pop(vault, None)

    def met(self, vault: VaultId, member: MemberState) -> None:
        """A member as the store has it now: a view that knows the device as another one is read afresh. It would take
        a first batch under a new number for a repeat of one under the former."""
        view = self._views.get(vault)
        known = view.pushers.get(member.device) if view is not None else None
        if known is not None and (known.author, known.role) != (member.author, member.role):
            self.forget(vault)

    def forget_all(self) -> None:
        """Read every vault afresh (the database's history may have changed)."""
        self._views.clear()

    def _wake_one(self) -> None:
        """There is something to take for a writer that has nothing to do, if there is one."""
        idle = next((writer for writer in self._writers if writer.idle.is_set()), None)
        if idle is not None:
            idle.wake()

    def _done(self, waiting: Waiting) -> None:
        self._backlog.done(waiting.peer, waiting.admitted.size)
