"""What a relay tells of history that it has lost: who knew it, what came back, and who is still waited for."""

import logging

import pytest

from sealwire_protocol.conditions import NOTHING
from sealwire_protocol.ids import Position, Term
from sealwire_protocol.messages import REFILL, StreamKind
from sealwire_relay import losses
from sealwire_relay.store.interface import StoreDownError
from sealwire_relay.store.kept import MemoryDatabase
from tests.support.aio import asyncio_test
from tests.support.device import Device, Identity, guarded, record, returned, stream_id
from tests.support.relay import Mishap, TroubledStore, memory_store, running

ANNA, BERT, CARL, DORA = (Identity(number) for number in range(1, 5))
ACCOUNTS, NOTES = stream_id(1), stream_id(2)
LOST = Term(2**40, b"lost....")


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged of losses."""
    return [entry.getMessage() for entry in caplog.records if entry.name == "sealwire.losses"]


@asyncio_test
async def test_what_devices_know_and_give_back_is_told_and_who_was_not_heard_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "sealwire.losses")
    async with (
        running() as relay,
        await Device.open(relay.port, ANNA) as anna,
        await Device.open(relay.port, BERT) as bert,
    ):
        noticed = relay.plane._losses
        vault, log = await anna.create_vault()
        for other in (BERT, CARL, DORA):
            await anna.add(log, other)
        for name, kind in ((ACCOUNTS, StreamKind.GUARDED), (NOTES, StreamKind.OPEN)):
            await anna.create_stream(vault, name, kind)
        base = record()
        await anna.subscribe(vault, ACCOUNTS)
        await anna.push(vault, 1, guarded(ACCOUNTS, (NOTHING, base)))
        await noticed.tell()
        assert told(caplog) == []
        assert [relay.counted(name) for name in ("lost_vaults", "lost_streams", "unheard_members")] == [0, 0, 0]

        for seq in (5, 9, 7):
            await bert.subscribe(vault, ACCOUNTS, NOTES, cursor=Position(LOST, seq))
        await noticed.tell()
        assert [relay.counted(name) for name in ("lost_vaults", "lost_streams", "unheard_members")] == [1, 2, 2]
        (line,) = told(caplog)
        assert f"Vault {vault.hex()} has lost history" in line
        assert f"{ACCOUNTS.hex()} up to 9, {NOTES.hex()} up to 9" in line
        assert "0 records came back from 0 devices" in line
        assert "2 of its members have not been heard of since" in line, "Anna is here; Carl and Dora are not"

        at = Position(LOST, 4)
        refill = returned(ACCOUNTS, *[(at, record(tag=tag)) for tag in range(1, 5)])
        pushed = await bert.push(vault, 1, refill, flags=REFILL)
        assert [row.records for row in pushed.appended] == [4]
        assert await bert.push(vault, 1, refill, flags=REFILL) == pushed
        since = Position(Term(0, b"lost...."), 4)
        await bert.push(vault, 2, returned(ACCOUNTS, (since, record(version=3)), (at, record(tag=1))), flags=REFILL)
        async with await Device.open(relay.port, CARL) as carl:
            await carl.subscribe(vault, NOTES)
        await noticed.tell()
        line = told(caplog)[-1]
        assert "4 records came back from 1 device, 1 conflicted" in line, "what is told again is counted once"
        assert "1 of its members has not been heard of since" in line
        assert relay.counted("returned_records_total") == 4
        assert [relay.counted("refused_returns_total", reason=why) for why in ("conflict", "superseded")] == [1, 1]
        async with await Device.open(relay.port, DORA) as dora:
            await dora.subscribe(vault, NOTES)
        await noticed.tell()
        assert "all of its members have been heard of since" in told(caplog)[-1]
        assert relay.counted("unheard_members") == 0
        lines = len(told(caplog))
        await noticed.tell()
        assert len(told(caplog)) == lines, "nothing new is nothing told"


@asyncio_test
async def test_a_key_that_was_replaced_is_not_waited_for() -> None:
    async with running() as relay, await Device.open(relay.port, ANNA) as anna:
        vault, log = await anna.create_vault()
        await anna.add(log, BERT)
        async with await Device.open(relay.port, BERT) as bert:
            await bert.replace(log, 2, CARL)
        await anna.subscribe(vault, NOTES, cursor=Position(LOST, 1))
        await relay.plane._losses.tell()
        assert relay.counted("unheard_members") == 1


@asyncio_test
async def test_what_cannot_be_told_now_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "VAULTS_MAX", 2)
    store = TroubledStore(await memory_store(MemoryDatabase()))
    async with running(store.store) as relay, await Device.open(relay.port, ANNA) as anna:
        noticed = relay.plane._losses
        for nonce in range(4):
            vault, _ = await anna.create_vault(nonce)
            await anna.subscribe(vault, NOTES, cursor=Position(LOST, 1))
        assert relay.counted("lost_vaults") == 2
        store.expect("links", Mishap(StoreDownError("down")))
        await noticed.tell()
        assert len(noticed._losses) == 2
