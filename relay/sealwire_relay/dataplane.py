"""The data plane: gateway, ingest and fan-out around one store, started and stopped as one."""

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any, Final

from sealwire_protocol.ids import Term
from sealwire_protocol.membership import Verify
from sealwire_relay.acks import Acks
from sealwire_relay.auditing import Audit
from sealwire_relay.clearing import Clearing
from sealwire_relay.connection import CLOSE_SECONDS
from sealwire_relay.fanout import Fanout
from sealwire_relay.gateway import Gateway
from sealwire_relay.ingest import Ingest
from sealwire_relay.lasting import Lasting
from sealwire_relay.links import Links
from sealwire_relay.losses import Losses
from sealwire_relay.metrics import Metrics
from sealwire_relay.recent import Recent
from sealwire_relay.reconciler import Reconciler
from sealwire_relay.registration import Registration
from sealwire_relay.removals import Removals
from sealwire_relay.requests import Requests
from sealwire_relay.settings import Settings
from sealwire_relay.store.interface import Store, StoreError
from sealwire_relay.sweep import Sweep
from sealwire_relay.terms import Terms
from sealwire_relay.tls import certificate_of

LAST_WRITES_SECONDS: Final = 1.0
"""For what is written behind, at the very end: positions of devices, and the audit."""

_log = logging.getLogger("sealwire.dataplane")


class DataPlane:
    """What devices talk to. `start` once, `stop` once. Raises SettingsError if the certificate is wrong."""

    def __init__(self, store: Store, settings: Settings, metrics: Metrics, verify: Verify) -> None:
        self._settings, self._store = settings, store
        self._terms = Terms(store, metrics, self._new_term)
        recent = Recent(settings.recent_bytes_max)
        metrics.recent_bytes.set_function(lambda: recent.size)
        self._fanout = Fanout(store, metrics, settings.read_pages_max, recent)
        self._losses = Losses(store, self._fanout, metrics)
        self._ingest = Ingest(store, self._fanout, settings, metrics, self._terms, self._losses)
        self._reconciler = Reconciler(store, metrics)
        self._acks = Acks(store, metrics)
        self.audit = Audit(store)
        """What was asked in vain with admin tokens here, and what the control port is asked."""
        self._clearing = Clearing(store)
        registration = Registration(store, settings, verify)
        removals = Removals(store, self._fanout)
        links = Links(
            store, self._fanout, self._ingest, self._terms, self._losses, registration, removals, verify, self._is_here
        )
        parts = self._fanout, self._ingest, self._terms, self._reconciler, self._acks, self._losses, links
        requests = Requests(store, *parts, settings.streams_per_vault_max)
        certificate = certificate_of(settings)
        self._gateway = Gateway(
            settings, metrics, verify, self._fanout, self._ingest, requests, self._acks, self.audit, certificate
        )
        self._sweep = Sweep(store, self._fanout, removals, self._terms, settings.sweep_seconds)
        metrics.lagging.set_function(self._fanout.lagging)
        self._trouble = Lasting(_log, time.monotonic)
        self._why_not: str | None = "the relay is starting"
        self._hurried = False
        self._patience: asyncio.Event | None = None
        self._left: list[asyncio.Task[Any]] = []
        """What was given up while stopping, and has not ended yet."""

    @property
    def ready(self) -> str | None:
        """None: ready; else the reason why not."""
        if self._terms.doubtful:
            return "the database came back changed; a new term is not open yet"
        return self._why_not

    @property
    def connections(self) -> int:
        """Sockets open now."""
        return self._gateway.connections

    async def start(self) -> int:
        """Open the next term and listen. Returns the port. Raises StoreError, or OSError if the port is taken."""
        await self._terms.open()
        self._ingest.start()
        self._fanout.start()
        try:
            port = await self._gateway.start(self._settings.host, self._settings.port)
        except OSError:
            await self._ingest.stop()
            await self._fanout.stop()
            raise
        self._sweep.start()
        self._acks.start()
        self.audit.start()
        self._losses.start()
        self._clearing.start()
        self._gateway.origins = self._settings.origins_at(port)
        self._why_not = None
        return port

    async def stop(self) -> None:
        """Be unready, and wait for load balancers to notice; then send devices away in waves, answer what they have
        pushed, close their connections with 1012, and stop: all of that within `drain_seconds`."""
        self._why_not = "the relay is stopping"
        await self._within(self._settings.drain_notice_seconds, asyncio.Event().wait())
        clock = asyncio.get_running_loop().time
        end = clock() + self._settings.drain_seconds
        background = asyncio.create_task(self._stop_background())
        await self._within(end - clock(), self._gateway.send_away())
        if not await self._within(end - clock(), self._ingest.stop()) and self._ingest.unanswered:
            _log.warning("pushes were left unanswered: the database did not finish in time; devices send them again")
        await self._within(max(end - clock(), CLOSE_SECONDS), self._gateway.part())
        ending = [
            background,
            *map(asyncio.create_task, (self._gateway.stop(), self._last_writes(), self._fanout.stop())),
        ]
        await asyncio.wait(ending, timeout=max(end - clock(), LAST_WRITES_SECONDS))
        for task in (*ending, *self._left):
            task.cancel()
        await asyncio.wait((*ending, *self._left), timeout=LAST_WRITES_SECONDS)

    async def _stop_background(self) -> None:
        await self._sweep.stop()
        await self._reconciler.stop()
        await self._losses.stop()
        await self._clearing.stop()

    async def _last_writes(self) -> None:
        await self._acks.stop()
        await self.audit.stop()

    def hurry(self) -> None:
        """Wait for nobody any more while stopping."""
        self._hurried = True
        if self._patience is not None:
            self._patience.set()

    async def _within(self, seconds: float, work: Coroutine[Any, Any, object]) -> bool:
        """Do it, but for no longer than that, nor when it has become urgent to end. Returns whether it was done. What
        is given up is not waited for: a statement that is cancelled while the database hangs takes long to end."""
        self._patience = asyncio.Event()
        task, hurry = asyncio.create_task(work), asyncio.create_task(self._patience.wait())
        try:
            timeout = 0 if self._hurried else max(0, seconds)
            done, _ = await asyncio.wait({task, hurry}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._patience = None
            hurry.cancel()
            if not task.done():
                task.cancel()
                self._left.append(task)
        if task in done:
            await task
        return task in done

    def server_changed(self) -> None:
        """The database shows another start, timeline or identity: the next term must be opened (R7)."""
        self._terms.doubt()
        self._ingest.forget_all()
        self._fanout.other_history()

    async def settle(self) -> None:
        """Open the next term now if the database came back changed. Errors are logged and tried again later."""
        try:
            await self._terms.now()
        except StoreError as error:
            self._trouble.failed(error, "a new term could not be opened yet")
        else:
            self._trouble.went_well("a new term is open")

    def _is_here(self, origin: str) -> bool:
        return origin in self._gateway.origins

    def _new_term(self, term: Term) -> None:
        self._ingest.forget_all()
        self._fanout.other_history()
        self._gateway.new_term(term)
