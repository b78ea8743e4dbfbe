"""What devices are told is noted before they know it, whatever cuts them off."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sealwire_client import Device
from sealwire_client.policies import latest, merge
from sealwire_client.transport import Transport
from sealwire_protocol import codec
from sealwire_protocol.errors import CloseCode, Outcome
from sealwire_protocol.ids import Term, VaultId
from sealwire_protocol.messages import Appended, Push, Pushed
from tests.faults import acks
from tests.faults.site import site
from tests.support.device import group, record, stream_id


@pytest.mark.embedded
@pytest.mark.trio
async def test_each_acknowledged_record_is_noted_at_its_place_in_the_log(tmp_path: Path) -> None:
    async with site() as place:
        await place.start(place.relays[0])
        dialler = acks.noting(tmp_path / "acks")
        async with Device.open(tmp_path / "device", relay=place.origin, dialler=dialler) as device:
            vault = await device.create_vault("home")
            notes = await vault.collection("notes", dict, policy=latest())
            cards = await vault.collection("cards", dict, policy=merge())
            await notes.put_many((f"{n}", {"n": n}) for n in range(7))
            await cards.put("x", {"n": 1})
            await vault.synced()
            streams = {notes.held.stream: 7, cards.held.stream: 1}
        noted = list(acks.read(tmp_path / "acks"))
        await place.look()
        assert (place.counted("records"), place.counted("unknown_outcomes")) == (8, 0)
    assert sorted((each.stream, each.seq) for each in noted) == sorted(
        (stream, seq) for stream, count in streams.items() for seq in range(1, count + 1)
    )


class Twice:
    """A transport on which every push is answered twice: it was sent again after a SUBSCRIBED, and both counted."""

    def __init__(self) -> None:
        self._answers: list[bytes] = []

    async def send(self, data: bytes) -> None:
        """Answer it."""
        push = codec.decode(data)
        assert isinstance(push, Push)
        appended = tuple(Appended(each.stream, push.term, 5, 1) for each in push.groups)
        self._answers += 2 * [codec.encode(Pushed(push.vault, push.batch, Outcome.DONE, appended, ()))]

    async def receive(self) -> bytes:
        """The next answer."""
        return self._answers.pop()

    async def ping(self) -> None:
        """Nobody asks for a sign of life here."""

    async def close(self, code: CloseCode, reason: str) -> None:
        """Nothing is left open."""


@pytest.mark.trio
async def test_a_verdict_that_is_told_twice_is_noted_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def dial(origin: str) -> AsyncIterator[Transport]:
        yield Twice()

    monkeypatch.setattr(acks, "dial", dial)
    push = Push(VaultId(bytes(16)), Term(1, bytes(8)), 1, 0, (group(stream_id(1), record(1)),))
    async with acks.noting(tmp_path / "acks")("ws://nowhere") as transport:
        await transport.send(codec.encode(push))
        await transport.receive()
        await transport.receive()
    assert [each.seq for each in acks.read(tmp_path / "acks")] == [5, 5]


def test_half_a_note_is_none(tmp_path: Path) -> None:
    path = tmp_path / "acks"
    path.write_bytes(bytes(acks.ROW_BYTES + 5))
    assert acks.count(path) == 1 and len(list(acks.read(path))) == 1
    acks.noting(path)
    assert path.stat().st_size == acks.ROW_BYTES
