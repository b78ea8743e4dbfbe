"""Group commit when the store fails, or belongs to others too: nothing lost, nothing twice, nobody unanswered."""

import asyncio
import random

import pytest

from sealwire_protocol.errors import Action, FaultCode, Outcome
from sealwire_protocol.events import Listen
from sealwire_protocol.ids import START, VaultId
from sealwire_protocol.messages import Fault, Group, Push, Pushed, Subscribed, Wanted
from sealwire_protocol.segment import read_segment
from sealwire_relay.store.cleaning import Purge
from sealwire_relay.store.interface import DiskFullError, OutcomeUnknownError, Store, StoreDownError, StoreError
from sealwire_relay.store.kept import MemoryDatabase
from sealwire_relay.store.segments import StoredSegment
from tests.support.aio import asyncio_test
from tests.support.device import Device, Identity, group, record, stream_id
from tests.support.relay import Mishap, Relay, TroubledStore, memory_store, running, turns_until

ANNA, BERT = Identity(1), Identity(2)
TODOS = stream_id(1)

DOWN = StoreDownError("The database cannot be reached now.")
REFUSED = StoreError("The database refused a statement.")
UNKNOWN = OutcomeUnknownError("The database's connection was lost during a commit.")
FULL = DiskFullError("The database has no room left.")


async def new_vault(device: Device) -> VaultId:
    """A vault with one stream, subscribed."""
    vault, _ = await device.create_vault()
    await device.create_stream(vault, TODOS)
    await device.subscribe(vault, TODOS)
    return vault


async def stored(store: Store, vault: VaultId) -> list[tuple[int, bytes]]:
    """(seq, salt) of every record of the stream."""
    page = await store.read(vault, TODOS, 0, 1 << 40)
    assert page is not None
    return [
        (placed.seq, placed.record.salt)
        for segment in page.segments
        for placed in read_segment(segment.body, segment.prev)
    ]


async def push_until_answered(device: Device, vault: VaultId, batch: int, pushed: Group) -> Pushed:
    """As a client does: after a FAULT about the vault it subscribes again and sends what is unanswered."""
    while True:
        await device.send(Push(vault, device.term(vault), batch, 0, (pushed,)))
        answers: list[Pushed | Fault] = []

        def look(answers: list[Pushed | Fault] = answers) -> bool:
            answers.extend(m for m in device.log if isinstance(m, Pushed | Fault))
            return bool(answers)

        await device.when(look)
        device.log.remove(answers[0])
        if isinstance(answers[0], Pushed):
            return answers[0]
        assert answers[0].action in (Action.RETRY, Action.RESUBSCRIBE)
        await resubscribed(device, vault, answers[0])


async def resubscribed(device: Device, vault: VaultId, fault: Fault) -> None:
    """Wait for a SUBSCRIBED that came after the fault, asked for by the session or else by hand."""
    if fault.action is Action.RETRY:
        await device.subscribe_raw(vault, TODOS)
    told = await device.until(Subscribed)
    await device.when(lambda: device.session.term_of(vault) == told.term)


@pytest.mark.parametrize("made", [False, True], ids=["not-committed", "committed"])
def test_a_commit_of_unknown_outcome_is_resolved_by_its_batch_number(made: bool) -> None:
    @asyncio_test
    async def run() -> None:
        store = TroubledStore(await memory_store())
        async with running(store.store) as relay, await Device.open(relay.port, ANNA) as anna:
            vault = await new_vault(anna)
            await anna.push(vault, 1, group(TODOS, record()))
            await anna.has(TODOS, 1)
            store.expect("append", Mishap(UNKNOWN, made=made))
            told = await anna.push(vault, 2, group(TODOS, record(), record()))
            assert told.outcome is Outcome.DONE
            assert (told.appended[0].first, told.appended[0].records) == (2, 2)
            await anna.has(TODOS, 3)
            assert anna.seqs(TODOS) == [1, 2, 3]
            assert len(await stored(store.store, vault)) == 3
            assert relay.counted("unknown_outcomes_total") == 1

    run()


@asyncio_test
async def test_a_commit_of_unknown_outcome_that_cannot_be_resolved_now_is_resolved_by_its_repeat() -> None:
    store = TroubledStore(await memory_store())
    async with running(store.store) as relay, await Device.open(relay.port, ANNA) as anna:
        vault = await new_vault(anna)
        pushed = group(TODOS, record())
        store.expect("append", Mishap(UNKNOWN, made=True))
        store.expect("current_term", Mishap(REFUSED))
        told = await push_until_answered(anna, vault, 1, pushed)
        assert told.appended[0].first == 1
        await anna.has(TODOS, 1)
        assert [seq for seq, _ in await stored(store.store, vault)] == [1]


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("call", ["append", "subscription", "pusher", "current_term"])
def test_a_database_that_is_away_for_a_moment_is_waited_for_and_nobody_notices(
    call: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sealwire_relay.writer.AWAY_LOOK_SECONDS", 0.0)

    @asyncio_test
    async def run() -> None:
        store = TroubledStore(await memory_store())
        async with running(store.store) as relay, await Device.open(relay.port, ANNA) as anna:
            vault = await new_vault(anna)
            store.expect("append", *[Mishap(DOWN)] * (call == "current_term"))
            store.expect(call, *[Mishap(DOWN)] * times)
            term = anna.term(vault)
            await anna.send(*[Push(vault, term, batch, 0, (group(TODOS, record()),)) for batch in (1, 2, 3)])
            assert [(await anna.verdict(vault, batch)).appended[0].first for batch in (1, 2, 3)] == [1, 2, 3]
            assert not store.pending()
            assert not [message for message in anna.log if isinstance(message, Fault)]
            assert relay.counted("store_errors_total") == times + (call == "current_term")
            assert [seq for seq, _ in await stored(store.store, vault)] == [1, 2, 3]

    run()


@pytest.mark.parametrize("error", [DOWN, FULL, REFUSED], ids=repr)
@pytest.mark.parametrize("call", ["append", "subscription", "pusher"])
def test_a_store_that_fails_for_long_refuses_what_waits_for_a_while_and_goes_on(
    call: str, error: StoreError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sealwire_relay.writer.AWAY_SECONDS_MAX", 0.0)

    @asyncio_test
    async def run() -> None:
        store = TroubledStore(await memory_store())
        async with running(store.store) as relay, await Device.open(relay.port, ANNA) as anna:
            vault = await new_vault(anna)
            store.expect(call, Mishap(error))
            await anna.send(Push(vault, anna.term(vault), 1, 0, (group(TODOS, record()),)))
            fault = await anna.until(Fault)
            assert (fault.code, fault.action, fault.vault) == (FaultCode.OVERLOADED, Action.RETRY, vault)
            assert fault.retry_ms > 0
            assert ("disk is full" in fault.message) == (error is FULL)
            await anna.subscribe(vault, TODOS)
            assert (await anna.push(vault, 1, group(TODOS, record()))).outcome is Outcome.DONE

    run()


@pytest.mark.parametrize("error", [REFUSED, RuntimeError("a mistake in the program")], ids=repr)
def test_what_was_pushed_after_a_refused_push_is_not_carried_out_before_it(error: Exception) -> None:
    @asyncio_test
    async def run() -> None:
        store = TroubledStore(await memory_store())
        async with running(store.store) as relay, await Device.open(relay.port, ANNA) as anna:
            vault = await new_vault(anna)
            # The device has pushed nothing under this term yet, so that a gap in its numbers is no reason to refuse.
            batches = {number: group(TODOS, record(number)) for number in (1, 2, 3)}
            held = asyncio.Event()
            store.expect("append", Mishap(error, before=held.wait))
            sent = [Push(vault, anna.term(vault), number, 0, (pushed,)) for number, pushed in batches.items()]
            await anna.send(sent[0])
            await relay_has_begun(store)
            await anna.send(*sent[1:])
            await turns_until(lambda: relay.plane._ingest.unanswered == 3)
            held.set()
            await anna.when(lambda: anna.close_code is not None or any(isinstance(m, Fault) for m in anna.log))
            await turns_until(lambda: not relay.plane._ingest.unanswered)
            assert await stored(store.store, vault) == []
            assert relay.counted("waiting_bytes") == 0
            async with await Device.open(relay.port, ANNA) as again:
                await again.subscribe(vault, TODOS)
                told = [await again.push(vault, number, pushed) for number, pushed in batches.items()]
            assert [each.outcome for each in told] == [Outcome.DONE] * 3
            assert [each.appended[0].first for each in told] == [1, 2, 3]

    run()


@asyncio_test
async def test_a_vault_that_was_answered_is_not_refused_when_another_one_of_the_same_commit_is() -> None:
    database = MemoryDatabase()
    store = TroubledStore(await memory_store(database))
    other = await memory_store(database)
    async with running(store.store, writers=1) as relay, await Device.open(relay.port, ANNA) as anna:
        async with await Device.open(relay.port, BERT) as bert, running(other) as elsewhere:
            first, second = await new_vault(anna), await new_vault(bert)
            await anna.push(first, 1, group(TODOS, record()))
            await bert.push(second, 1, group(TODOS, record()))

            async def bert_writes_elsewhere_too() -> None:
                async with await Device.open(elsewhere.port, BERT) as twin:
                    await twin.subscribe(second, TODOS)
                    await twin.push(second, 2, group(TODOS, record()))

            # While one commit hangs, both vaults queue up for the next, in which the second's condition fails.
            held = asyncio.Event()
            store.expect(
                "append", Mishap(made=True, before=held.wait), Mishap(made=True, before=bert_writes_elsewhere_too)
            )
            store.expect("current_term", Mishap(REFUSED))
            await anna.send(Push(first, anna.term(first), 2, 0, (group(TODOS, record()),)))
            await relay_has_begun(store)
            await anna.send(Push(first, anna.term(first), 3, 0, (group(TODOS, record()),)))
            await bert.send(Push(second, bert.term(second), 2, 0, (group(TODOS, record()),)))
            await turns_until(lambda: relay.plane._ingest.unanswered == 3)
            held.set()
            assert (await anna.verdict(first, 3)).outcome is Outcome.DONE
            assert (await bert.until(Fault)).action is Action.RETRY
            assert not [m for m in anna.log if isinstance(m, Fault)]


async def relay_has_begun(store: TroubledStore) -> None:
    """Wait until a commit is under way."""
    appends = store.calls.count("append")
    await turns_until(lambda: store.calls.count("append") > appends)


@asyncio_test
async def test_a_poisonous_push_is_told_to_come_back_and_fails_nobody_else() -> None:
    store = TroubledStore(await memory_store())
    async with running(store.store, writers=1) as relay, await Device.open(relay.port, ANNA) as anna:
        async with await Device.open(relay.port, BERT) as bert:
            first, second = await new_vault(anna), await new_vault(bert)
            held = asyncio.Event()
            store.expect(
                "append",
                Mishap(made=True, before=held.wait),
                Mishap(ZeroDivisionError()),
                Mishap(made=True),  # it is the other vault's turn, now that they are tried one by one
                Mishap(ZeroDivisionError()),
            )
            await anna.send(Push(first, anna.term(first), 1, 0, (group(TODOS, record()),)))
            await relay_has_begun(store)
            await anna.send(Push(first, anna.term(first), 2, 0, (group(TODOS, record()),)))
            await bert.send(Push(second, bert.term(second), 1, 0, (group(TODOS, record()),)))
            await turns_until(lambda: relay.plane._ingest.unanswered == 3)
            held.set()
            assert await anna.closed() == 4002
            assert (await bert.verdict(second, 1)).outcome is Outcome.DONE


@asyncio_test
async def test_many_connections_share_commits_and_every_push_is_answered_in_order() -> None:
    store = TroubledStore(await memory_store(), lambda: 5)
    async with running(store.store) as relay:
        devices = [await Device.open(relay.port, Identity(n)) for n in range(10, 22)]
        vaults = [await new_vault(device) for device in devices]
        begun = store.calls.count("append")

        async def push_all(device: Device, vault: VaultId) -> None:
            term = device.term(vault)
            pushes = [Push(vault, term, n, 0, (group(TODOS, record()),)) for n in range(1, 9)]
            await device.send(*pushes)
            for n in range(1, 9):
                assert (await device.verdict(vault, n)).appended[0].first == n
            await device.has(TODOS, 8)
            assert device.seqs(TODOS) == list(range(1, 9))

        await asyncio.gather(*map(push_all, devices, vaults))
        assert store.calls.count("append") - begun < 48
        for device in devices:
            await device.close()


@asyncio_test
async def test_random_failures_lose_nothing_and_store_nothing_twice() -> None:
    chance = random.Random(11)
    for _ in range(4):
        store = TroubledStore(await memory_store(), lambda: chance.randrange(3))
        async with running(store.store) as relay:
            devices = [await Device.open(relay.port, Identity(n)) for n in (1, 2)]
            vaults = [await new_vault(device) for device in devices]
            for call in ("append", "current_term", "pusher"):
                store.expect(call, *[random_mishap(chance, call) for _ in range(12)])

            async def push_all(device: Device, vault: VaultId, store: TroubledStore = store) -> None:
                salts = []
                for batch in range(1, 16):
                    pushed = record()
                    salts.append(pushed.salt)
                    told = await push_until_answered(device, vault, batch, group(TODOS, pushed))
                    assert told.outcome is Outcome.DONE
                    assert told.appended[0].first == batch
                assert await stored(store.store, vault) == list(enumerate(salts, 1))

            await asyncio.gather(*map(push_all, devices, vaults))
            for device in devices:
                await device.close()


def random_mishap(chance: random.Random, call: str) -> Mishap:
    """Failures of the kinds that a store may show at this call."""
    kinds = [Mishap(made=True), Mishap(DOWN)]
    if call == "append":
        kinds += [Mishap(UNKNOWN), Mishap(UNKNOWN, made=True), Mishap(FULL)]
    return chance.choice(kinds)


@asyncio_test
async def test_a_term_opened_by_another_process_makes_devices_subscribe_again_and_go_on() -> None:
    database = MemoryDatabase()
    store, other = await memory_store(database), await memory_store(database)
    async with running(store) as relay, await Device.open(relay.port, ANNA) as anna:
        vault = await new_vault(anna)
        await anna.push(vault, 1, group(TODOS, record()))
        await anna.has(TODOS, 1)
        term = await other.open_term()
        await anna.send(Push(vault, anna.term(vault), 2, 0, (group(TODOS, record()),)))
        fault = await anna.until(Fault)
        assert (fault.code, fault.action) == (FaultCode.TERM_CHANGED, Action.RESUBSCRIBE)
        await anna.until(Subscribed, lambda told: told.term == term)
        assert anna.term(vault) == term
        assert (await anna.push(vault, 2, group(TODOS, record()))).appended[0].term == term
        await anna.has(TODOS, 2)
        assert anna.seqs(TODOS) == [1, 2]


@asyncio_test
async def test_a_subscription_that_shows_a_newer_term_is_enough_to_push_under_it() -> None:
    database = MemoryDatabase()
    store, other = await memory_store(database), await memory_store(database)
    async with running(store) as relay, await Device.open(relay.port, ANNA) as anna:
        vault, _ = await anna.create_vault()
        await anna.create_stream(vault, TODOS)
        term = await other.open_term()
        assert (await anna.subscribe(vault, TODOS)).term == term
        assert (await anna.push(vault, 1, group(TODOS, record()))).appended[0].term == term


def is_ready(relay: Relay) -> bool:
    """Whether the data plane says that it is ready."""
    return relay.plane.ready is None


@asyncio_test
async def test_what_is_pushed_after_a_purge_is_decided_on_its_floor_although_the_head_has_not_moved() -> None:
    store = await memory_store()
    async with running(store) as relay, await Device.open(relay.port, ANNA) as anna:
        vault = await new_vault(anna)
        await anna.push(vault, 1, group(TODOS, record(5, tag=1)))
        await anna.has(TODOS, 1)
        page = await store.read(vault, TODOS, 0, 1)
        assert page is not None
        purge = Purge(1, 1, 5, ((record(5, tag=1).tag, 1),), False)
        assert await store.swap(vault, TODOS, page.segments, StoredSegment(0, 1, b""), 1, page.term, purge)
        for batch, version, outcome in ((2, 5, Outcome.SEAL_AGAIN), (3, 6, Outcome.DONE)):
            told = await anna.push(vault, batch, group(TODOS, record(version, tag=1)))
            assert told.outcome is outcome
        await anna.has(TODOS, 2)
        assert [seq for seq, _ in await stored(store, vault)] == [2]


@asyncio_test
async def test_a_database_that_came_back_changed_is_written_to_under_the_next_term_only() -> None:
    store = TroubledStore(await memory_store())
    async with running(store.store) as relay, await Device.open(relay.port, ANNA) as anna:
        vault = await new_vault(anna)
        await anna.push(vault, 1, group(TODOS, record()))
        await anna.has(TODOS, 1)
        before = anna.term(vault)
        relay.plane.server_changed()
        assert not is_ready(relay)
        store.expect("open_term", Mishap(DOWN))
        await relay.plane.settle()
        assert not is_ready(relay), "a term that could not be opened is as doubtful as before"
        await anna.send(Push(vault, before, 2, 0, (group(TODOS, record()),)))
        assert (await anna.until(Fault)).code is FaultCode.TERM_CHANGED
        await anna.until(Subscribed, lambda told: told.term.number == before.number + 1)
        assert is_ready(relay)
        told = await anna.push(vault, 2, group(TODOS, record()))
        assert told.appended[0].term.number == before.number + 1


@asyncio_test
async def test_a_database_that_changes_while_a_push_is_decided_is_not_written_to_under_the_old_term() -> None:
    store = TroubledStore(await memory_store())
    async with running(store.store) as relay, await Device.open(relay.port, ANNA) as anna:
        vault = await new_vault(anna)
        before = anna.term(vault)

        async def change() -> None:
            relay.plane.server_changed()

        store.expect("pusher", Mishap(made=True, before=change))
        await anna.send(Push(vault, before, 1, 0, (group(TODOS, record()),)))
        assert (await anna.until(Fault)).code is FaultCode.TERM_CHANGED
        assert await stored(store.store, vault) == []


@asyncio_test
async def test_a_database_whose_term_went_back_makes_the_relay_open_a_new_one() -> None:
    database = MemoryDatabase()
    store = await memory_store(database)
    async with running(store) as relay, await Device.open(relay.port, ANNA) as anna:
        vault = await new_vault(anna)
        await anna.push(vault, 1, group(TODOS, record()))
        await anna.has(TODOS, 1)
        backup = database.copy()
        await anna.push(vault, 2, group(TODOS, record()))
        # The database is restored to a time when the term's row was another one.
        backup.term = backup.term._replace(id=b"restored")
        database.term, database.vaults = backup.term, backup.vaults
        await anna.send(Push(vault, anna.term(vault), 3, 0, (group(TODOS, record()),)))
        assert (await anna.until(Fault)).code is FaultCode.TERM_CHANGED
        await anna.until(Subscribed, lambda told: told.term.number == 2)
        # The device stands at 2 of a history that ends at 1: it was lost, and the session says so.
        await anna.when(lambda: any(type(effect).__name__ == "HistoryLost" for effect in anna.effects))


@asyncio_test
async def test_stopping_waits_for_a_commit_under_way_but_not_for_ever() -> None:
    for patient in (True, False):
        store = TroubledStore(await memory_store())
        held = asyncio.Event()
        async with running(store.store, drain_seconds=10.0 if patient else 0.01) as relay:
            anna = await Device.open(relay.port, ANNA)
            vault = await new_vault(anna)
            store.expect("append", Mishap(made=True, before=held.wait))
            await anna.send(Push(vault, anna.term(vault), 1, 0, (group(TODOS, record()),)))
            await relay_has_begun(store)
            if patient:
                asyncio.get_running_loop().call_later(0.01, held.set)
        assert len(await stored(store.store, vault)) == int(patient)
        await anna.close()


@asyncio_test
async def test_a_subscription_that_the_store_fails_ends_the_connection_with_a_code_that_says_come_back() -> None:
    store = TroubledStore(await memory_store())
    async with running(store.store) as relay, await Device.open(relay.port, ANNA) as anna:
        vault, _ = await anna.create_vault()
        store.expect("subscription", Mishap(DOWN))
        await anna.handle(Listen(vault, (Wanted(TODOS, START, START),)))
        assert await anna.closed() == 4002
