"""`websockets.broadcast()`: what a pusher (/push) sends goes to all listeners (/), and is then answered by an empty
message. `python -m bench.peers.broadcast asyncio|uvloop` prints its port."""

import asyncio
import sys

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve

BACKLOG = 4_096


async def main() -> None:
    """Serve until killed."""
    listeners: set[ServerConnection] = set()

    async def handle(connection: ServerConnection) -> None:
        assert connection.request is not None
        if connection.request.path != "/push":
            listeners.add(connection)
            await connection.wait_closed()
            listeners.discard(connection)
            return
        async for message in connection:
            broadcast(listeners, message)
            await connection.send(b"")

    server = await serve(handle, "127.0.0.1", 0, compression=None, backlog=BACKLOG)
    print(next(iter(server.sockets)).getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1:] == ["uvloop"]:
        uvloop.run(main())
    else:
        asyncio.run(main())
