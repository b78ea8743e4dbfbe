"""The programs that the page on Python shows for asyncio and for scripts run."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.house.repository import ROOT
from tests.support.aio import asyncio_test


def shown(holds: str, **instead: str) -> dict[str, Any]:
    """What the one example defines in which these words are. `instead`: what is said there in place of its own."""
    page = (ROOT / "docs" / "python.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if holds in block]
    for before, after in {"wss://relay.example.org": "ws://127.0.0.1:9", **instead}.items():
        assert before in code
        code = code.replace(before, after)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def test_the_script_runs(tmp_path: Path) -> None:
    script: Callable[[Path], list[str]] = shown("def script")["script"]
    assert script(tmp_path) == ["n2"]


@asyncio_test
async def test_the_server_runs(tmp_path: Path) -> None:
    names = shown("async def main", **{", 8080": ", 0"})
    serving: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    start = asyncio.start_server

    async def started(*args: Any) -> asyncio.Server:
        server = await start(*args)
        serving.set_result(server.sockets[0].getsockname()[1])
        return server

    class Loop:
        start_server = staticmethod(started)

    names["asyncio"] = Loop
    main = asyncio.create_task(names["main"](tmp_path))
    port = await serving
    for times in (1, 2):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"anna\n")
        assert await reader.read() == f"hello anna, number {times}".encode()
        writer.close()
        await writer.wait_closed()
    main.cancel()
    await asyncio.wait([main])
    assert main.cancelled()
