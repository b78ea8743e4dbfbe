"""Two relays on one database: what is committed through one reaches the devices of the other."""

from sealwire_protocol.messages import Fault
from tests.support.aio import asyncio_test
from tests.support.device import Device, Identity, group, record, stream_id
from tests.support.relay import memory_store, running

ANNA, BERT = Identity(1), Identity(2)
TODOS = stream_id(1)
SWEEP_SECONDS = 0.05


@asyncio_test
async def test_a_device_of_another_relay_is_served_what_was_committed_here() -> None:
    one = await memory_store()
    other = await memory_store(one.database)
    async with running(one, sweep_seconds=SWEEP_SECONDS) as here, running(other, sweep_seconds=SWEEP_SECONDS) as there:
        async with await Device.open(here.port, ANNA) as anna, await Device.open(there.port, BERT) as bert:
            vault, log = await anna.create_vault()
            await anna.create_stream(vault, TODOS)
            await anna.add(log, BERT)
            await bert.subscribe(vault, TODOS)
            await anna.subscribe(vault, TODOS)
            await anna.push(vault, 1, group(TODOS, record(1), record(2)))
            await bert.has(TODOS, 2)
            await anna.push(vault, 2, group(TODOS, record(3)))
            await bert.has(TODOS, 3)
            assert bert.seqs(TODOS) == [1, 2, 3]


@asyncio_test
async def test_a_term_that_another_relay_opens_is_adopted_and_told() -> None:
    one = await memory_store()
    async with running(one, sweep_seconds=SWEEP_SECONDS) as here, await Device.open(here.port, ANNA) as anna:
        vault, _ = await anna.create_vault()
        await anna.create_stream(vault, TODOS)
        await anna.subscribe(vault, TODOS)
        before = anna.term(vault)
        async with running(await memory_store(one.database)):
            await anna.until(Fault)
            await anna.when(lambda: anna.session.term_of(vault) not in (None, before))
        assert (anna.session.term_of(vault) or before).number == before.number + 1
