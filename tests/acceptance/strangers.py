"""Sockets that connect and never log in: `python -m tests.acceptance.strangers PORT COUNT`.

They come in waves, from several addresses, and do in turn all that a stranger can: say nothing, half a request or
rubbish; open a WebSocket, and say hello or not; prove what they are not; every third comes by a trusted proxy, from one
address behind it. One in ten stays until the relay ends it, across waves, so that those who wait grow old. When COUNT
have been there they go on coming until stdin ends. At the end a line on stdout tells how many there were, and what
became of them.
"""

import asyncio
import json
import sys
from collections import Counter
from typing import Final

from sealwire_protocol import codec
from sealwire_protocol.ids import NONCE_BYTES, DeviceKey
from sealwire_protocol.messages import Hello, Prove
from tests.support.stranger import BINARY, CLOSE, REQUEST, frame

WAVE: Final = 500
"""Sockets that dial at once: twice as many as may be without a login."""

WAVE_S: Final = 0.5
"""How long a wave stays once all of it has dialled."""

PROXY: Final = "127.0.0.9"
"""The address that the relay is told to trust."""

SOURCES: Final = ("127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5", "127.0.0.6")
STAYING: Final = 10
"""Of so many one stays."""

_HELLO: Final = frame(BINARY, codec.encode(Hello(1, 1, DeviceKey(bytes(32)), bytes(NONCE_BYTES), "stranger")))
_PROVE: Final = frame(BINARY, codec.encode(Prove("ws://127.0.0.1", bytes(64))))
_OPEN: Final = REQUEST + b"\r\n"

SAID: Final = (b"", REQUEST, b"\x16\x03\x01" + bytes(200), _OPEN, _OPEN + _HELLO, _OPEN + _HELLO + _PROVE)
"""What strangers say that dial by themselves."""


class Strangers:
    """All of them, and what became of them."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._met: Counter[str] = Counter()
        self._staying: set[asyncio.Task[None]] = set()

    async def come(self, count: int, told_to_end: asyncio.Future[bytes]) -> dict[str, object]:
        """So many of them at least, in waves, until they are told to end."""
        end = asyncio.Event()
        came = 0
        while came < count or not told_to_end.done():
            dialled, waves_end = asyncio.Semaphore(0), asyncio.Event()
            tasks = []
            for number in range(came, came + WAVE):
                stays = number % STAYING == 0
                task = asyncio.create_task(self._one(number, dialled, end if stays else waves_end))
                if stays:
                    self._staying.add(task)
                    task.add_done_callback(self._staying.discard)
                else:
                    tasks.append(task)
            for _ in range(WAVE):
                await dialled.acquire()
            await asyncio.wait(tasks, timeout=WAVE_S)
            waves_end.set()
            await asyncio.wait(tasks)
            came += WAVE
        end.set()
        if self._staying:
            await asyncio.wait(self._staying)
        return {"came": came, "met": dict(sorted(self._met.items()))}

    async def _one(self, number: int, dialled: asyncio.Semaphore, end: asyncio.Event) -> None:
        """Connect, speak, and listen until the relay hangs up, or it is the end. `dialled`: one more has."""
        proxied = number % 3 == 0
        source = PROXY if proxied else SOURCES[number % len(SOURCES)]
        said = SAID[number // 3 % len(SAID)]
        if proxied:
            said = REQUEST + b"X-Forwarded-For: 198.51.100.7\r\n\r\n" + _HELLO
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port, local_addr=(source, 0))
        except OSError:
            self._met["not accepted"] += 1
            return
        finally:
            dialled.release()
        heard = b""
        ended = False
        try:
            writer.write(said)
            listening = asyncio.create_task(reader.read())
            leaving = asyncio.create_task(end.wait())
            await asyncio.wait((listening, leaving), return_when=asyncio.FIRST_COMPLETED)
            ended = listening.done()
            for task in (listening, leaving):
                task.cancel()
            [got, _] = await asyncio.gather(listening, leaving, return_exceptions=True)
            heard = got if isinstance(got, bytes) else b""
        finally:
            writer.transport.abort()
        self._met[became(heard) if ended else "left by itself"] += 1


def became(heard: bytes) -> str:
    """What the relay had to say until it hung up, in a word."""
    if not heard:
        return "cut"
    head, _, frames = heard.partition(b"\r\n\r\n")
    status = head[9:12].decode("ascii", "replace")
    while status == "101" and len(frames) >= 2:
        opcode, size = frames[0] & 15, frames[1]
        if opcode == CLOSE:
            return f"closed with {int.from_bytes(frames[2:4], 'big')}"
        frames = frames[2 + size :]
    return f"answered {status}"


async def main(port: int, count: int) -> dict[str, object]:
    """Come until there were so many and stdin has ended; what became of them."""
    told_to_end = asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)
    return await Strangers(port).come(count, told_to_end)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))), flush=True)
