"""A way through which all connections to a server go, so that they can be led elsewhere, or cut at a bad moment."""

import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import trio

CHUNK_BYTES_MAX: Final = 65_536
"""What is carried at once: a socket's usual buffer."""

PREPARED: Final = rb"(__asyncpg_stmt_[0-9a-f]+__\0)"
"""What asyncpg calls a statement, before its text; later it names it alone."""

Address = tuple[str, int] | Path
"""A TCP port, or a unix socket."""


class _Crossing:
    """One connection, both ways."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.names: set[bytes] = set()
        """What the statement is called on it, once it was prepared."""
        self.asks = False
        """True from a request to carry the statement out until the server answers."""


class Passage:
    """Carries bytes between those who dial `address` and the servers that it leads to, in turn. `serve` first.

    `statement`: how the SQL begins that `cut_asking` waits for, where the server is a Postgres, asked by asyncpg.
    """

    def __init__(self, listener: socket.socket, statement: bytes = b"") -> None:
        self._listener = listener
        self._prepared = re.compile(PREPARED + re.escape(statement)) if statement else None
        self._targets: Sequence[Address] = ()
        self._turn = 0
        self._crossings: set[_Crossing] = set()
        self._ambush: tuple[bool, trio.Event] | None = None
        self.carried_bytes = 0
        """Both ways, since it was made."""

    @classmethod
    def tcp(cls, statement: bytes = b"") -> "Passage":
        """On any free port of loopback."""
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        return cls(listener, statement)

    @classmethod
    def unix(cls, path: Path, statement: bytes = b"") -> "Passage":
        """On a unix socket that is made."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen(128)
        return cls(listener, statement)

    @property
    def port(self) -> int:
        """The TCP port to dial."""
        return int(self._listener.getsockname()[1])

    def lead_to(self, *targets: Address) -> None:
        """From now on connections go to these, in turn; to the next one if one cannot be reached. None: nowhere."""
        self._targets = targets

    async def serve(self) -> None:
        """Carry until cancelled."""
        self._listener.setblocking(False)
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._listener))
        await trio.serve_listeners(self._cross, [listener])

    def cut(self) -> int:
        """Break all connections now; returns how many."""
        for crossing in self._crossings:
            crossing.scope.cancel()
        return len(self._crossings)

    async def cut_asking(self, *, arrives: bool, limit_s: float) -> bool:
        """Wait until somebody has asked to carry the statement out, and break that connection before the answer.

        `arrives`: the request still reaches the server; else its last part does not. False: nobody asked in time.
        """
        sprung = trio.Event()
        self._ambush = arrives, sprung
        with trio.move_on_after(limit_s):
            await sprung.wait()
        self._ambush = None
        return sprung.is_set()

    async def _cross(self, caller: trio.SocketStream) -> None:
        async with caller:
            server = await self._dial()
            if server is None:
                return
            crossing = _Crossing()
            self._crossings.add(crossing)
            try:
                async with server:
                    with crossing.scope:
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(self._carry, crossing, caller, self._asks(crossing, server))
                            nursery.start_soon(self._carry, crossing, server, self._answers(crossing, caller))
            finally:
                self._crossings.discard(crossing)

    async def _dial(self) -> trio.SocketStream | None:
        for _ in range(len(self._targets)):
            self._turn += 1
            target = self._targets[self._turn % len(self._targets)]
            try:
                if isinstance(target, Path):
                    return await trio.open_unix_socket(target)
                return await trio.open_tcp_stream(*target)
            except OSError:
                continue
        return None

    def _asks(self, crossing: _Crossing, server: trio.SocketStream) -> Callable[[bytes], Awaitable[None]]:
        async def ask(chunk: bytes) -> None:
            self._note(crossing, chunk)
            # A full chunk is not the last one of a request.
            if self._ambush is not None and len(chunk) < CHUNK_BYTES_MAX and crossing.asks:
                (arrives, sprung), self._ambush = self._ambush, None
                if arrives:
                    await server.send_all(chunk)
                sprung.set()
                crossing.scope.cancel()
                return
            await server.send_all(chunk)

        return ask

    def _note(self, crossing: _Crossing, chunk: bytes) -> None:
        """Learn the statement's name where it is prepared, and notice where it is to be carried out."""
        if self._prepared is None:
            return
        if prepared := self._prepared.findall(chunk):
            crossing.names.update(prepared)
        elif any(name in chunk for name in crossing.names):
            crossing.asks = True

    def _answers(self, crossing: _Crossing, caller: trio.SocketStream) -> Callable[[bytes], Awaitable[None]]:
        async def answer(chunk: bytes) -> None:
            crossing.asks = False
            await caller.send_all(chunk)

        return answer

    async def _carry(
        self, crossing: _Crossing, source: trio.SocketStream, give: Callable[[bytes], Awaitable[None]]
    ) -> None:
        try:
            while chunk := await source.receive_some(CHUNK_BYTES_MAX):
                self.carried_bytes += len(chunk)
                await give(chunk)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        crossing.scope.cancel()
