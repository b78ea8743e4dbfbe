"""What a relay has acknowledged, as its devices saw it: noted between the socket and the device, record by record.

A note is written before the device itself learns of the verdict, in one write that outlives a kill -9 of the device.
"""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

from sealwire_client.link import Dialler
from sealwire_client.transport import Transport, dial
from sealwire_protocol import codec
from sealwire_protocol.errors import CloseCode, Outcome, Refusal
from sealwire_protocol.ids import StreamId, Tag
from sealwire_protocol.limits import PUSHES_PER_SESSION_MAX
from sealwire_protocol.messages import Group, Push, Pushed
from sealwire_protocol.segment import RANK_BYTES, Record, read_segment

_ROW: Final = Struct(f">8sQ16s{RANK_BYTES}s")
ROW_BYTES: Final = _ROW.size


CONFLICT: Final = 0
"""Instead of a seq: another record came first."""

WHOLE_PUSH: Final = 1 << 63
"""Instead of a seq, and with the `Outcome` added: all of the push was refused, as no honest device's ever should be."""


class Noted(NamedTuple):
    """One record with a verdict: its seq in the log, or why it has none."""

    stream: StreamId
    seq: int
    tag: Tag
    rank: bytes


PUSHES_KEPT: Final = 4 * PUSHES_PER_SESSION_MAX
"""Pushes remembered on one connection. What was sent again after a SUBSCRIBED may have two verdicts."""


def packed(stream: StreamId, seq: int, record: Record) -> bytes:
    """One note."""
    return _ROW.pack(stream, seq, record.tag, record.rank.pack())


def read(path: Path) -> Iterator[Noted]:
    """All notes of one device, in order; a verdict that was told twice is noted twice."""
    data = path.read_bytes() if path.exists() else b""
    for stream, seq, tag, rank in _ROW.iter_unpack(data[: len(data) - len(data) % ROW_BYTES]):
        yield Noted(StreamId(stream), seq, Tag(tag), rank)


def count(path: Path) -> int:
    """How many notes there are: cheap enough to be asked often."""
    return path.stat().st_size // ROW_BYTES if path.exists() else 0


def noting(path: Path) -> Dialler:
    """A dialler whose connections note what was acknowledged on them."""
    whole = count(path) * ROW_BYTES
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.ftruncate(file, whole)  # a kill may have cut the last row

    @asynccontextmanager
    async def dial_noting(origin: str) -> AsyncIterator[Transport]:
        async with dial(origin) as transport:
            yield _Noting(transport, file)

    return dial_noting


class _Noting:
    def __init__(self, transport: Transport, file: int) -> None:
        self._transport, self._file = transport, file
        self._pushed: dict[tuple[bytes, int], tuple[Group, ...]] = {}

    async def send(self, data: bytes) -> None:
        if data[0] == Push.TYPE:
            push = codec.decode(data)
            assert isinstance(push, Push)
            self._pushed[push.vault, push.batch] = push.groups
            if len(self._pushed) > PUSHES_KEPT:
                del self._pushed[next(iter(self._pushed))]
        await self._transport.send(data)

    async def receive(self) -> bytes:
        data = await self._transport.receive()
        if data[0] == Pushed.TYPE:
            verdict = codec.decode(data)
            assert isinstance(verdict, Pushed)
            self._note(verdict)
        return data

    async def ping(self) -> None:
        await self._transport.ping()

    async def close(self, code: CloseCode, reason: str) -> None:
        await self._transport.close(code, reason)

    def _note(self, verdict: Pushed) -> None:
        groups = self._pushed[verdict.vault, verdict.batch]
        done = verdict.outcome is Outcome.DONE
        refused = {(each.group, each.place): each.reason for each in verdict.refused}
        first = {each.stream: each.first for each in verdict.appended}
        rows = []
        for number, group in enumerate(groups):
            seq = first.get(group.stream, 0)
            for place, (_, record) in enumerate(read_segment(group.records, 0)):
                reason = refused.get((number, place))
                if reason is Refusal.ATOMIC:
                    continue
                noted = WHOLE_PUSH + verdict.outcome if not done else CONFLICT if reason is Refusal.CONFLICT else seq
                rows.append(packed(group.stream, noted, record))
                seq += noted == seq
        os.write(self._file, b"".join(rows))
