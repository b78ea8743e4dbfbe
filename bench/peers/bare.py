"""Group commit by asyncpg and nothing beside: `python -m bench.peers.bare DSN all|segments WRITERS VAULT…`; prints its
port.

It takes the same pushes, over the same connections, and writes the same rows of the same tables as a relay, in sessions
that are set as a relay's are: segments, heads of streams, where members stand, outcomes (`segments`: the first alone).
Nobody logs in, nothing is looked up, checked, kept or told to others; the path of the WebSocket says which member
connects. Vaults are named by their ids in hexadecimal; their streams are empty. They are shared out to so many writers,
each of which has one commit under way.
"""

import asyncio
import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, cast
from uuid import UUID

import asyncpg  # type: ignore[import-untyped]
import uvloop

from bench.harness.devices import STREAM
from bench.harness.processes import Cores, line_of, started
from sealwire_protocol import codec
from sealwire_protocol.errors import Outcome
from sealwire_protocol.ids import START, TERM_ID_BYTES, VaultId
from sealwire_protocol.messages import Appended, Pushed
from sealwire_protocol.segment import decode_varint, encode_varint
from sealwire_relay.frames import binary_frame
from sealwire_relay.store.connections import SESSION
from sealwire_relay.store.interface import OUTCOMES_KEPT
from sealwire_relay.store.rows import signed
from sealwire_relay.view import DIGEST_BYTES

DIGEST: Final = bytes(DIGEST_BYTES)
ANSWER: Final = codec.encode(
    Pushed(VaultId(bytes(16)), 100_000, Outcome.DONE, (Appended(STREAM, START.term, 100_000, 1),), ())
)
"""Of the size of a relay's, as it is in the midst of a measurement."""

SEGMENTS: Final = """
    INSERT INTO sealwire.segment (vault_id, stream, last, prev, body)
    SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bytea[])
"""

EVERYTHING: Final = f"""
WITH stored AS ({SEGMENTS}), moved AS (
    UPDATE sealwire.stream s SET head = h.last, bytes = s.bytes + octet_length(h.body), written = now()
    FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $5::bytea[]) AS h (vault_id, stream, last, body)
    WHERE s.vault_id = h.vault_id AND s.stream = h.stream
), counted_on AS (
    UPDATE sealwire.member m SET last_batch = p.batch
    FROM unnest($6::uuid[], $7::bigint[], $8::bigint[]) AS p (vault_id, author, batch)
    WHERE m.vault_id = p.vault_id AND m.author = p.author
)
INSERT INTO sealwire.outcome (vault_id, author, slot, batch, digest, answer)
SELECT vault_id, author, slot, batch, $13, $14
FROM unnest($9::uuid[], $10::bigint[], $11::smallint[], $12::bigint[]) AS o (vault_id, author, slot, batch)
ON CONFLICT (vault_id, author, slot)
DO UPDATE SET batch = excluded.batch, digest = excluded.digest, answer = excluded.answer
"""

_GROUP_AT: Final = 1 + 2 + len(STREAM) + 4 + 4
"""From a push's batch number to its records, in one group without conditions: flags, count, stream, two lengths."""

Waiting = tuple["Pusher", bytes, int, bytes]


class Bare:
    """One writer."""

    def __init__(self, dsn: str, everything: bool, vaults: Sequence[bytes]) -> None:
        self._dsn, self._everything = dsn, everything
        self._heads = dict.fromkeys(vaults, 0)
        self._ids = {vault: UUID(bytes=vault) for vault in vaults}
        self.waiting: list[Waiting] = []
        self.wake = asyncio.Event()

    async def run(self) -> None:
        """Commit what waits, answer, and again."""
        connection = await asyncpg.connect(self._dsn, server_settings=SESSION)
        while True:
            while not self.waiting:
                self.wake.clear()
                await self.wake.wait()
            taken, self.waiting = self.waiting, []
            await connection.execute(*self._write(taken))
            answers: dict[Pusher, list[bytes]] = {}
            for pusher, vault, batch, _ in taken:
                frame = binary_frame(b"%c%s%s\0\0\0\0\0" % (Pushed.TYPE, vault, encode_varint(batch)))
                answers.setdefault(pusher, []).append(frame)
            for pusher, frames in answers.items():
                pusher.transport.write(b"".join(frames))

    def _write(self, taken: list[Waiting]) -> tuple[object, ...]:
        """The statement, and its arguments."""
        bodies: dict[bytes, list[bytes]] = {}
        for _, vault, _, body in taken:
            bodies.setdefault(vault, []).append(body)
        vaults, lasts, prevs = list(bodies), [], []
        for vault in vaults:
            prevs.append(self._heads[vault])
            self._heads[vault] += len(bodies[vault])
            lasts.append(self._heads[vault])
        segments = (
            [self._ids[vault] for vault in vaults],
            [signed(STREAM)] * len(vaults),
            lasts,
            prevs,
            [b"".join(bodies[vault]) for vault in vaults],
        )
        if not self._everything:
            return SEGMENTS, *segments
        stands = {(vault, pusher.author): batch for pusher, vault, batch, _ in taken}
        members = [self._ids[vault] for vault, _ in stands], [author for _, author in stands], list(stands.values())
        outcomes = (
            [self._ids[vault] for _, vault, _, _ in taken],
            [pusher.author for pusher, _, _, _ in taken],
            [batch % OUTCOMES_KEPT for _, _, batch, _ in taken],
            [batch for _, _, batch, _ in taken],
        )
        return EVERYTHING, *segments, *members, *outcomes, DIGEST, ANSWER


class Pusher(asyncio.Protocol):
    """One connection."""

    transport: asyncio.Transport

    def __init__(self, writers: Mapping[bytes, Bare]) -> None:
        self._writers, self._held, self.author = writers, b"", 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the handshake."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Cut into frames: small binary ones, masked with zeros."""
        data = self._held + data
        at, end = 0, len(data)
        if not self.author:
            at = data.index(b"\r\n\r\n") + 4
            self.author = int(data[5 : data.index(b" HTTP")])
            self.transport.write(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
            )
        while at + 8 <= end:
            size, body = data[at + 1] & 0x7F, at + 6
            if size == 126:
                size, body = int.from_bytes(data[at + 2 : at + 4], "big"), at + 8
            if body + size > end:
                break
            self._take(data[body : body + size])
            at = body + size
        self._held = data[at:]

    def _take(self, push: bytes) -> None:
        _, after_term = decode_varint(push, 17)
        batch, after_batch = decode_varint(push, after_term + TERM_ID_BYTES)
        vault = push[1:17]
        writer = self._writers[vault]
        writer.waiting.append((self, vault, batch, push[after_batch + _GROUP_AT :]))
        writer.wake.set()


@contextlib.contextmanager
def serving(dsn: str, rows: str, writers: int, vaults: Sequence[VaultId], cores: Cores, log: Path) -> Iterator[int]:
    """So many writers in a process of their own, for these vaults, whose streams are empty; its port."""
    words = [dsn, rows, str(writers), *[vault.hex() for vault in vaults]]
    with started([sys.executable, "-m", "bench.peers.bare", *words], cores, log=log) as process:
        yield int(line_of(process, log))


async def main(dsn: str, rows: str, writers: str, *vaults: str) -> None:
    """Serve until it is killed."""
    ids = [bytes.fromhex(vault) for vault in vaults]
    parts = [ids[first :: int(writers)] for first in range(int(writers))]
    bares = [Bare(dsn, rows == "all", part) for part in parts]
    by_vault = {vault: bare for bare, part in zip(bares, parts, strict=True) for vault in part}
    server = await asyncio.get_running_loop().create_server(lambda: Pusher(by_vault), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.gather(*(bare.run() for bare in bares))


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
