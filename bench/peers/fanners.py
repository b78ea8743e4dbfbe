"""Servers that send what comes to many, and how to talk to each: commands, of which some can be missing here."""

import sys
from importlib.metadata import version
from typing import Any, Final

from bench.harness.fanning import Plain, Socketio
from bench.harness.load import built
from bench.peers.node import node_version, package_version, script

Fanner = tuple[list[str], Plain | Socketio]

NO_DISK: Final = "no disk: what is sent is forgotten"


def c_epoll(frames: int) -> Fanner:
    """C, with so many frames in each send. Raises Missing without a compiler."""
    return [str(built("fanout")), str(frames)], Plain()


def websockets_broadcast(loop: str) -> Fanner:
    """`websockets.broadcast()` on asyncio, or on uvloop."""
    return [sys.executable, "-m", "bench.peers.broadcast", loop], Plain()


def node_ws() -> Fanner:
    """Node's `ws`. Raises Missing without Node."""
    return script("node_ws.js"), Plain()


def socketio(text: bool) -> Fanner:
    """socket.io, with messages that are text, or binary. Raises Missing without Node."""
    return script("socketio.js"), Socketio(text)


def settings() -> dict[str, dict[str, Any]]:
    """What results say of each."""
    common = {"fsync": NO_DISK, "compression": "off"}
    of_socketio = {
        "version": f"{package_version('socket.io')} on Node {node_version()}",
        "transport": "WebSocket",
        **common,
    }
    return {
        "c_epoll": {"version": "bench/load/fanout.c", "fsync": NO_DISK},
        "websockets_broadcast": {"version": version("websockets"), **common},
        "node_ws": {"version": f"{package_version('ws')} on Node {node_version()}", **common},
        "socketio": of_socketio,
        "socketio_text": {**of_socketio, "message": "bytes in base64, as one text frame instead of two frames"},
    }
