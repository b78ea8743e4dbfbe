"""A relay that has less than it had, or says that somebody was faster who was not. Numbers are those of the list in
docs/security.md."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import pytest
import trio

from sealwire_client.batching import CANNOT_READ_WINNER
from sealwire_client.reconcile import AGAIN_SECONDS, LOSSES_MAX
from sealwire_client.status import State
from sealwire_client.testing import MemoryLog, MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_client.testing.log import Vault as HeldThere
from sealwire_protocol.conditions import Current, judge, read_writes
from sealwire_protocol.errors import Outcome
from sealwire_protocol.ids import MEMBERSHIP, DeviceKey, Term
from sealwire_protocol.messages import Message, Push, Subscribed
from sealwire_protocol.segment import Survey
from tests.client.guarded import Card, agree, table
from tests.client.party import comes, in_step, party, put_many, returned
from tests.support.virtual import virtual

# --- a head that goes backwards


@pytest.mark.parametrize("restart", (True, False), ids=("a relay that restarts", "in the midst of a term"))
def test_s06_a_head_lower_than_the_one_that_is_held_is_reported_and_nothing_is_lost(
    open_device: OpenDevice, memory_relay: MemoryRelay, caplog: pytest.LogCaptureFixture, restart: bool
) -> None:
    def lower(message: Message) -> Sequence[Message]:
        """What a relay tells that has lost the end of each stream, and does not know it."""
        if not isinstance(message, Subscribed):
            return [message]
        states = [s if s.stream == MEMBERSHIP else s._replace(head=min(s.head, 5)) for s in message.streams]
        return [replace(message, streams=tuple(states))]

    @virtual
    async def test() -> None:
        async with party(open_device) as guests:
            await put_many(guests[0], "kept", 5)
            await in_step(guests)
            backup = memory_relay.backup()
            await put_many(guests[0], "more", 5)
            await in_step(guests)
            before = guests[0].dump()
        if restart:
            memory_relay.restore(backup)
        else:
            memory_relay.alter = lower
        async with open_device("device 0") as device:
            a = await returned(device)
            await comes(lambda: "nothing here is given up" in caplog.text)
            assert a.dump() == before
            assert any(text.startswith("notes: ") for text in caplog.messages)
            if not restart:
                await trio.sleep(10 * AGAIN_SECONDS)
                assert len(caplog.messages) < 12 * 2 * LOSSES_MAX, (
                    "a relay that never stops saying so does not keep the device busy"
                )
                assert "again and again" in ((await a.vault.status()).last_error or "")
            memory_relay.alter = None
            memory_relay.cut()
            async with open_device("device 1") as other:
                await in_step([a, await returned(other)])
                assert a.dump() == before

    with caplog.at_level(logging.WARNING, "sealwire"):
        test()


# --- a refusal without a winner


def refusing(claimed: Current | None) -> object:
    """Verdicts of a relay that says of every guarded write that another one came first. `claimed`: what it would hold
    of the key; None: what it does hold."""

    def verdict(
        kept: HeldThere, device: DeviceKey, push: Push, surveys: list[Survey], term: Term
    ) -> tuple[Outcome, object]:
        judged = {}
        for index, (group, found) in enumerate(zip(push.groups, surveys, strict=True)):
            stream = kept.streams[group.stream]
            writes = read_writes(group.conditions, group.records, found.records)
            stands = {w.tag: claimed or stream.guards[w.tag]._replace(salt=b"another.") for w in writes}
            judged[index] = judge(writes, group.records, stream.head, stands.get)
        return Outcome.DONE, judged

    return staticmethod(verdict)


ABSENT = Current(2**32, b"another.", False, 0)
"""It says that there is nothing."""


@pytest.mark.parametrize("claimed", (ABSENT, None), ids=("nothing stands there", "what was replaced stands there"))
def test_s08_a_guarded_write_that_is_refused_for_nothing_is_kept_and_shown(
    open_device: OpenDevice, memory_relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch, claimed: Current | None
) -> None:
    @virtual
    async def test() -> None:
        async with table(open_device) as seats:
            a, b = seats
            await a.cards.put("x", Card("before"))
            await agree(seats)
            with monkeypatch.context() as lies:
                lies.setattr(MemoryLog, "_judge", refusing(claimed))
                await a.cards.put("x", Card("mine"))
                await a.vault.synced()
                assert a.cards.get("x") == Card("mine")
                [stuck] = await a.vault.stuck()
                assert (stuck.collection, stuck.key) == ("cards", "x") and CANNOT_READ_WINNER in stuck.reason
                status = await a.vault.status()
                assert status.stuck == 1 and CANNOT_READ_WINNER in (status.last_error or "")
            assert await a.vault.retry("cards", "x")
            await agree(seats)
            assert b.cards.get("x") == Card("mine")
            assert (await a.vault.status()).state is State.SYNCED

    test()
