"""The control port's server: uvicorn as a task of the relay's own event loop, which keeps its own signals."""

import asyncio
import contextlib
import socket
from collections.abc import Generator
from typing import Final

import uvicorn
from starlette.types import ASGIApp

CONCURRENCY_MAX: Final = 64
"""Requests and connections at once: monitors are few, and whoever floods this port must not slow down devices."""

STOP_SECONDS: Final = 2
"""How long a request under way may take when the relay stops: all of them are answered from memory."""

BACKLOG: Final = 64
"""Connections that the kernel holds until they are accepted."""


class ControlServer:
    """Serves an application on one address, from `start` to `stop`."""

    def __init__(self, app: ASGIApp, host: str, port: int) -> None:
        self._host, self._port = host, port
        config = uvicorn.Config(
            app,
            # Named, so that what happens to be installed changes nothing.
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            # A device that was sent here by mistake is told so; the host needs no advice on what to install.
            log_level="error",
            access_log=False,
            server_header=False,
            # Nobody behind a proxy is believed to be somebody else.
            proxy_headers=False,
            limit_concurrency=CONCURRENCY_MAX,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Listen, and return the port. Raises OSError if the address cannot be had; nothing is open then."""
        listener = await _listener(self._host, self._port)
        self._task = asyncio.create_task(self._server.serve([listener]), name="control port")
        return int(listener.getsockname()[1])

    async def stop(self) -> None:
        """Stop listening and let requests under way end. Safe to call twice, and without a start."""
        task, self._task = self._task, None
        if task is not None:
            self._server.should_exit = True
            await task


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def _listener(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener
