"""What devices are told is noted before they know it, whatever cuts them off."""

from pathlib import Path

import pytest

from sealwire_client import Device
from sealwire_client.policies import latest, merge
from tests.faults import acks
from tests.faults.site import site


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


def test_half_a_note_is_none(tmp_path: Path) -> None:
    path = tmp_path / "acks"
    path.write_bytes(bytes(acks.ROW_BYTES + 5))
    assert acks.count(path) == 1 and len(list(acks.read(path))) == 1
    acks.noting(path)
    assert path.stat().st_size == acks.ROW_BYTES
