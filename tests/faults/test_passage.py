"""The way between two sides carries bytes, and breaks where it is told to."""

import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.faults.passage import Passage


class Echo:
    """A server that answers each line with a name and the line; it remembers all that arrived."""

    def __init__(self, name: bytes) -> None:
        self.name, self.port, self.heard = name, 0, b""
        self.left = trio.Event()
        """Somebody has hung up."""

    async def answer(self, stream: trio.SocketStream) -> None:
        async with stream:
            with contextlib.suppress(trio.BrokenResourceError):
                await self._answer_all(stream)
        self.left.set()

    async def _answer_all(self, stream: trio.SocketStream) -> None:
        while chunk := await stream.receive_some(1_000):
            self.heard += chunk
            await stream.send_all(self.name + chunk)


class Caller:
    """Dials through a passage, and hangs up in the end."""

    def __init__(self, made: Passage, stack: AsyncExitStack) -> None:
        self.way, self._stack = made, stack

    async def dial(self, path: Path | None = None) -> trio.SocketStream:
        if path is not None:
            return await self._stack.enter_async_context(await trio.open_unix_socket(path))
        return await self._stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", self.way.port))


@asynccontextmanager
async def passage(*servers: Echo, path: Path | None = None, statement: bytes = b"") -> AsyncIterator[Caller]:
    async with trio.open_nursery() as nursery:
        for server in servers:
            listeners = await nursery.start(trio.serve_tcp, server.answer, 0)
            server.port = listeners[0].socket.getsockname()[1]
        made = Passage.unix(path, statement) if path is not None else Passage.tcp(statement)
        made.lead_to(*(("127.0.0.1", server.port) for server in servers))
        nursery.start_soon(made.serve)
        async with AsyncExitStack() as stack:
            with trio.fail_after(60):
                yield Caller(made, stack)
        nursery.cancel_scope.cancel()


async def asked(stream: trio.SocketStream, line: bytes) -> bytes:
    await stream.send_all(line)
    return bytes(await stream.receive_some(1_000))


async def broken(stream: trio.SocketStream) -> bool:
    try:
        return await stream.receive_some(1) == b""
    except trio.BrokenResourceError:
        return True


@pytest.mark.trio
async def test_it_leads_to_all_in_turn_and_past_those_who_are_away() -> None:
    server = Echo(b"a")
    async with passage(server, Echo(b"b")) as caller:
        answers = [await asked(await caller.dial(), b"?") for _ in range(4)]
        assert sorted(answers) == [b"a?", b"a?", b"b?", b"b?"]
        caller.way.lead_to(("127.0.0.1", 1), ("127.0.0.1", server.port))
        assert [await asked(await caller.dial(), b"?") for _ in range(3)] == [b"a?"] * 3
        caller.way.lead_to()
        assert await broken(await caller.dial())


@pytest.mark.trio
async def test_it_breaks_all_connections_at_once() -> None:
    async with passage(Echo(b"a")) as caller:
        streams = [await caller.dial() for _ in range(3)]
        assert [await asked(stream, b"?") for stream in streams] == [b"a?"] * 3
        assert caller.way.cut() == 3
        assert [await broken(stream) for stream in streams] == [True] * 3


@pytest.mark.trio
@pytest.mark.parametrize("arrives", (True, False))
async def test_it_breaks_the_connection_that_asks_for_the_statement_before_the_answer(arrives: bool) -> None:
    server = Echo(b"a")
    async with passage(server, statement=b"-- Put") as caller:
        other, putting = await caller.dial(), await caller.dial()
        async with trio.open_nursery() as nursery:
            sprung: list[bool] = []

            async def wait() -> None:
                sprung.append(await caller.way.cut_asking(arrives=arrives, limit_s=60))

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            for stream, text in ((other, b"-- Get"), (putting, b"-- Put")):
                prepare = b"__asyncpg_stmt_1f__\0" + text + b"?" * 200
                assert await asked(stream, prepare) == b"a" + prepare
            run = b"__asyncpg_stmt_1f__\0" + b"!" * 100
            assert await asked(other, run) == b"a" + run
            await putting.send_all(run)
            assert await broken(putting)
        assert sprung == [True]
        assert await asked(other, b".") == b"a."
        await server.left.wait()
        assert server.heard.count(b"!") == (200 if arrives else 100)
        assert not await caller.way.cut_asking(arrives=arrives, limit_s=0.01)


@pytest.mark.trio
async def test_it_listens_on_a_unix_socket_too(open_folder: Path) -> None:
    path = open_folder / "socket"
    async with passage(Echo(b"a"), path=path) as caller:
        assert await asked(await caller.dial(path), b"?") == b"a?"
