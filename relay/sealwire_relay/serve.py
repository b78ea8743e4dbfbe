"""Settings → parts → run: one relay process, from its start to its end.

Nothing is left behind, whenever and however it ends: every part is stopped in the reverse order of its start.
"""

import asyncio
import contextlib
import errno
import gc
import logging
import os
import resource
import socket
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from sealwire_relay.beside import CleanerProcess
from sealwire_relay.control.app import control_app
from sealwire_relay.control.guard import Desk
from sealwire_relay.control.server import ControlServer
from sealwire_relay.database import Database
from sealwire_relay.dataplane import DataPlane
from sealwire_relay.ending import ExitCode, RelayError, asked_to_end, before, ending, told
from sealwire_relay.metrics import Metrics
from sealwire_relay.settings import Settings, option
from sealwire_relay.signatures import verify
from sealwire_relay.store.interface import Store, StoreError
from sealwire_relay.tls import load

log: Final = logging.getLogger("sealwire.serve")

YOUNG_MAX: Final = 10_000
"""Objects made, and not gone yet, before garbage is looked for among them. What waits for one commit is some thousands,
none of which is garbage: Python's 700 have them looked through again and again, which is a thirtieth of a push."""

SPARE_FILES: Final = 256
"""Open files beside the devices' sockets: Postgres' connections, the control port, logs."""

CHECK_SECONDS: Final = 1.0
"""Between two looks at the database: how late `/readyz` may be, and a new term after the database came back."""


class Ready(NamedTuple):
    """Where a relay that serves devices is found."""

    data: str
    control: str
    origins: tuple[str, ...]
    pid: int


class Relay:
    """The parts of one relay, started and stopped together. To be used from one event loop."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings, self._database = settings, database
        self._metrics = Metrics()
        self._metrics.follow(lambda: not self.reasons())
        self._parts = contextlib.AsyncExitStack()
        self._store: Store | None = None
        self._plane: DataPlane | None = None
        self._silence: str | None = None
        self._stopping = False

    def reasons(self) -> list[str]:
        """Why devices are not served now; nothing: they are."""
        if self._stopping:
            return ["The relay is stopping."]
        if self._plane is None:
            return ["The relay is starting."]
        return [why for why in (self._database.trouble or self._silence, self._plane.ready) if why is not None]

    async def start(self) -> Ready:
        """Start every part, the control port first, so that it can tell how the start goes.

        After an error or a cancellation `stop` ends what had been started. Raises RelayError, and
        SettingsError if the certificate is wrong, before a database is waited for.
        """
        settings = self._settings
        self._database.look()
        if settings.tls_certificate_path is not None and settings.tls_key_path is not None:
            load(settings.tls_certificate_path, settings.tls_key_path)
        with _explained("data", settings.host, settings.port):
            _probe(settings.host, settings.port)
        app = control_app(self._metrics, self.reasons, self._desk, settings)
        control = ControlServer(app, settings.control_host, settings.control_port)
        self._parts.push_async_callback(control.stop)
        with _explained("control", settings.control_host, settings.control_port):
            control_port = await control.start()
        self._parts.push_async_callback(self._database.stop)
        store = await self._database.start(self._database_changed)
        self._parts.push_async_callback(store.close)
        await store.open()
        plane = DataPlane(store, settings, self._metrics, verify)
        self._parts.push_async_callback(plane.stop)
        with _explained("data", settings.host, settings.port):
            port = await plane.start()
        if settings.clean_seconds:
            cleaner = CleanerProcess(settings, self._database.address, self._metrics)
            self._parts.push_async_callback(cleaner.stop)
            cleaner.start()
        self._store, self._plane = store, plane
        if settings.origins and settings.registration == "open":
            log.info("Whoever can dial this relay may make vaults on it; --registration token, or closed, ends that.")
        return Ready(
            f"{settings.scheme}://{_authority(settings.host, port)}",
            f"http://{_authority(settings.control_host, control_port)}",
            tuple(sorted(settings.origins_at(port))),
            os.getpid(),
        )

    def _desk(self) -> Desk | None:
        return None if self._store is None or self._plane is None else Desk(self._store, self._plane.audit)

    async def tend(self) -> None:
        """Keep the database alive, and know how it is, until cancelled. Raises EmbeddedPostgresError if it is lost."""
        checking = asyncio.create_task(self._check())
        try:
            await self._database.watch()
        finally:
            checking.cancel()
            # A statement that is cancelled while the database hangs takes long to end.
            await asyncio.wait({checking}, timeout=CHECK_SECONDS)

    def _database_changed(self) -> None:
        if self._plane is not None:
            self._plane.server_changed()

    async def _check(self) -> None:
        assert self._store is not None and self._plane is not None
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await self._store.ping()
            except StoreError as error:
                if self._silence is None:
                    log.error("The database does not answer; devices wait until it does: %s", error)
                self._silence = "The database does not answer."
                continue
            if self._silence is not None:
                log.info("The database answers again.")
                self._silence = None
            await self._plane.settle()

    async def stop(self) -> None:
        """Readiness fails first; then devices are sent away and commits under way end, then the rest. Safe twice."""
        self._stopping = True
        await self._parts.aclose()

    def hurry(self) -> None:
        """Wait for no device and no commit any more while stopping."""
        if self._plane is not None:
            self._plane.hurry()


async def run(settings: Settings, database: Database, announce: Callable[[Ready], None]) -> ExitCode:
    """Run a relay until a signal asks it to end; `announce` is called once, when devices are served. A second signal
    ends it without waiting for devices.

    Raises RelayError if it cannot start, or cannot go on. Nothing is left running then either.
    """
    relay = Relay(settings, database)
    with asked_to_end(relay.hurry) as asked:
        try:
            with told():
                ready = await before(asked, relay.start())
                if ready is None:
                    return ending(asked.result(), before_ready=True)
                _settle_down(settings)
                announce(ready)
                await before(asked, relay.tend())
                return ending(asked.result(), before_ready=False)
        finally:
            await relay.stop()


@contextlib.contextmanager
def _explained(which: str, host: str, port: int) -> Iterator[None]:
    """Why a port cannot be listened on, and what to do about it."""
    try:
        yield
    except OSError as error:
        settings = ("host", "port") if which == "data" else ("control_host", "control_port")
        host_option, port_option = map(option, settings)
        if error.errno == errno.EADDRINUSE:
            what = f"another program, perhaps a relay, has it: end that, or choose another port with {port_option}."
            raise RelayError(f"The {which} port {port} on {host} is taken, {what}", ExitCode.IN_USE) from error
        if error.errno == errno.EACCES:
            what = f"port {port} is for privileged users: choose one from 1024 on with {port_option}."
        elif error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
            what = f"this machine has no such address: choose another with {host_option}."
        else:
            what = f"{error.strerror or error}: choose another with {host_option} and {port_option}."
        raise RelayError(f"The {which} port cannot listen on {host}: {what}") from error


def _probe(host: str, port: int) -> None:
    """Raise OSError now if the data port cannot be had, rather than after minutes of recovering a database."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        probe.listen(1)


def _settle_down(settings: Settings) -> None:
    """What is alive now lives as long as the process: the collector need not look at it again."""
    wanted = settings.connections_max + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    may = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < may:
        resource.setrlimit(resource.RLIMIT_NOFILE, (may, hard))
    if may < wanted:
        log.warning(
            "This process may open %d files, too few for %d connections: raise its limit (ulimit -n), or lower %s.",
            may,
            settings.connections_max,
            option("connections_max"),
        )
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_MAX)


def _authority(host: str, port: int) -> str:
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
