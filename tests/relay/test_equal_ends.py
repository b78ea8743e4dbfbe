"""Another end of a membership log may be as long as the one that it replaces: other relays notice that too (R15)."""

from sealwire_protocol.ids import MEMBERSHIP
from sealwire_protocol.links import Role
from sealwire_protocol.messages import AppendLink, Fault
from sealwire_relay.store.kept import MemoryDatabase
from tests.relay.asking import ANNA, BERT, done
from tests.relay.test_links import BY_HASH, LOG, VAULT, accepted, delivered, has_lost, holding
from tests.support.aio import asyncio_test
from tests.support.device import Device, Identity, add_link, stream_id
from tests.support.relay import Mishap, TroubledStore, memory_store, running, turns

TODOS = stream_id(1)
SMALL, GREAT = BY_HASH[0], BY_HASH[-1]


@asyncio_test
async def test_r15_a_listener_at_another_relay_learns_of_an_end_of_equal_length() -> None:
    database = MemoryDatabase()
    async with running(await memory_store(database)) as one, running(await memory_store(database)) as two:
        async with await holding(one, *GREAT) as anna, await Device.open(two.port, BERT) as bert:
            await bert.subscribe(VAULT, MEMBERSHIP)
            await bert.when(lambda: delivered(bert) == LOG + GREAT)
            await accepted(anna, SMALL)
            await two.plane._sweep.look()
            await bert.when(lambda: has_lost(bert))
            await bert.subscribe(VAULT, MEMBERSHIP)
            await bert.when(lambda: delivered(bert)[len(LOG + GREAT) :] == LOG + SMALL)


@asyncio_test
async def test_r15_who_subscribes_at_another_relay_brings_the_others_there_to_know() -> None:
    database = MemoryDatabase()
    async with running(await memory_store(database)) as one, running(await memory_store(database)) as two:
        async with await holding(one, *GREAT) as anna, await Device.open(two.port, BERT) as bert:
            await bert.subscribe(VAULT, MEMBERSHIP)
            await bert.when(lambda: delivered(bert) == LOG + GREAT)
            await accepted(anna, SMALL)
            async with await Device.open(two.port, ANNA) as twin:
                await twin.subscribe(VAULT, MEMBERSHIP)
                await twin.when(lambda: delivered(twin) == LOG + SMALL)
                await bert.when(lambda: has_lost(bert))


@asyncio_test
async def test_r15_who_went_with_an_end_of_equal_length_is_sent_away_at_another_relay() -> None:
    database = MemoryDatabase()
    gone = next(number for number in range(50, 60) if add_link(ANNA, LOG, Identity(number), Role.WRITER) == GREAT[0])
    async with running(await memory_store(database)) as one, running(await memory_store(database)) as two:
        async with await holding(one, *GREAT) as anna, await Device.open(two.port, Identity(gone)) as device:
            await anna.create_stream(VAULT, TODOS)
            await device.subscribe(VAULT, TODOS)  # and to no links
            await two.plane._sweep.look()
            await accepted(anna, SMALL)
            await two.plane._sweep.look()
            await device.until(Fault, lambda fault: "no such vault" in fault.message)


@asyncio_test
async def test_what_grows_and_what_is_looked_at_often_is_no_other_end() -> None:
    database = MemoryDatabase()
    store = TroubledStore(await memory_store(database))
    async with running(await memory_store(database)) as one, running(store.store) as two:
        async with await holding(one) as anna, await Device.open(two.port, BERT) as bert:
            await bert.subscribe(VAULT, MEMBERSHIP)
            log = list(LOG)
            for number in range(60, 64):
                log.append(add_link(ANNA, log, Identity(number)))
                if number == 62:  # a relay is started again, and what it appends comes under another term
                    await store.store.open_term()
                await done(anna, AppendLink, VAULT, log[-1])
                for _ in range(2):
                    await two.plane._sweep.look()
            # The answer to a look is older than what was appended here meanwhile.
            async with await Device.open(two.port, ANNA) as twin:
                log.append(add_link(ANNA, log, Identity(70)))
                store.expect("heads", Mishap(made=True, after=lambda: done(twin, AppendLink, VAULT, log[-1])))
                await two.plane._sweep.look()
            await two.plane._sweep.look()
            await turns(50)
            assert two.plane._fanout.replacements == 0
