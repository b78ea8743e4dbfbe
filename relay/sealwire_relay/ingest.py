"""Where pushes come in: each goes to its vault's writer, and who pushes more than the database takes is slowed down.

A vault has one writer, so that what is pushed to it is committed in its order, and commits of it never wait for each
other. Commits of different writers overlap: while one waits for the disk, the next one is decided.
"""

import asyncio
import time

from sealwire_protocol.errors import CloseCode
from sealwire_protocol.ids import VaultId
from sealwire_relay.backlog import Backlog
from sealwire_relay.fanout import Fanout
from sealwire_relay.losses import Losses
from sealwire_relay.metrics import Metrics
from sealwire_relay.peer import Peer
from sealwire_relay.pushqueue import Waiting
from sealwire_relay.settings import Settings
from sealwire_relay.store.interface import MemberState, Store
from sealwire_relay.terms import Terms
from sealwire_relay.view import Admitted
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
        self._writers = [
            Writer(store, fanout, settings, metrics, terms, losses, self._done) for _ in range(settings.writers)
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
        await asyncio.gather(*[writer.stop() for writer in self._writers])

    def push(self, peer: Peer, admitted: Admitted) -> None:
        """Queue a push; it is answered through the peer once it is durable. A peer that has too much waiting is not
        read from until less is; one that goes on sending all the same is told to come back later."""
        if not self._backlog.add(peer, admitted.size):
            peer.close(CloseCode.OVERLOADED, "the relay has more pushes waiting than it can take")
            return
        self._writer_of(admitted.push.vault).push(Waiting(peer, admitted, time.perf_counter()))

    def forget(self, vault: VaultId) -> None:
        """Read this vault afresh before the next decision (its members or streams have changed)."""
        self._writer_of(vault).forget(vault)

    def met(self, vault: VaultId, member: MemberState) -> None:
        """A member as the store has it now: what is known of it otherwise is read afresh."""
        self._writer_of(vault).met(vault, member)

    def forget_all(self) -> None:
        """Read every vault afresh (the database's history may have changed)."""
        for writer in self._writers:
            writer.forget_all()

    def _writer_of(self, vault: VaultId) -> Writer:
        return self._writers[int.from_bytes(vault[-2:], "big") % len(self._writers)]

    def _done(self, waiting: Waiting) -> None:
        self._backlog.done(waiting.peer, waiting.admitted.size)
