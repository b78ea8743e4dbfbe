"""The data plane as devices see it: push, verdict, delivery; repeats, refusals, restarts, two processes."""

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from sealwire_protocol.errors import Action, FaultCode, Outcome
from sealwire_protocol.ids import MEMBERSHIP, START, Author, KeyId, MailboxId, Position, Term, VaultId
from sealwire_protocol.links import Role, decode_links, encode_links
from sealwire_protocol.messages import (
    NO_VAULT,
    Appended,
    AppendLink,
    CreateStream,
    CreateVault,
    Done,
    Fault,
    Fetch,
    Group,
    Message,
    OfferLinks,
    OpenMailbox,
    Push,
    Pushed,
    Reconcile,
    StreamKind,
    Subscribe,
    Subscribed,
    Wanted,
)
from sealwire_protocol.reconcile import ROOT
from sealwire_relay.metrics import Metrics
from sealwire_relay.store.kept import MemoryDatabase
from sealwire_relay.terms import Terms
from tests.support.aio import asyncio_test
from tests.support.device import Device, Identity, add_link, genesis, group, record, replace_link, stream_id
from tests.support.relay import Relay, TroubledStore, memory_store, running

ANNA, BERT, CARL = Identity(1), Identity(2), Identity(3)
TODOS, NOTES = stream_id(1), stream_id(2)


async def shared_vault(relay: Relay) -> tuple[Device, Device, VaultId]:
    """Anna's vault with two open streams, of which Bert (author 2) is a member."""
    anna, bert = await Device.open(relay.port, ANNA), await Device.open(relay.port, BERT)
    vault, log = await anna.create_vault()
    await anna.add(log, BERT)
    for stream in (TODOS, NOTES):
        await anna.create_stream(vault, stream)
    return anna, bert, vault


@asyncio_test
async def test_a_push_is_answered_and_delivered_to_everyone_in_order_its_author_included() -> None:
    async with running() as relay:
        anna, bert, vault = await shared_vault(relay)
        async with anna, bert:
            told = await anna.subscribe(vault, MEMBERSHIP, TODOS)
            await bert.subscribe(vault, TODOS)
            assert [state.head for state in told.streams] == [2, 0]
            sent = [record(version=n) for n in range(1, 6)]
            first = await anna.push(vault, 1, group(TODOS, *sent[:3]))
            second = await anna.push(vault, 2, group(TODOS, *sent[3:]))
            assert first.outcome is second.outcome is Outcome.DONE
            term = anna.term(vault)
            assert first.appended == (Appended(TODOS, term, 1, 3),)
            assert second.appended == (Appended(TODOS, term, 4, 2),)
            for device in (anna, bert):
                await device.has(TODOS, 5)
                assert device.seqs(TODOS) == [1, 2, 3, 4, 5]
                assert device.records(TODOS) == sent
            links = [link for d in anna.delivered if d.stream == MEMBERSHIP for link in decode_links(d.segment)]
            assert links[0] == genesis(ANNA)
            assert len(links) == 2


@asyncio_test
async def test_a_push_to_two_streams_is_one_verdict_with_a_place_in_each() -> None:
    async with running() as relay:
        anna, bert, vault = await shared_vault(relay)
        async with anna, bert:
            await bert.subscribe(vault, TODOS, NOTES)
            told = await bert.push(vault, 1, group(TODOS, record(author=2)), group(NOTES, *[record(author=2)] * 2))
            assert [(a.stream, a.first, a.records) for a in told.appended] == [(TODOS, 1, 1), (NOTES, 1, 2)]
            await bert.has(TODOS, 1)
            await bert.has(NOTES, 2)


@asyncio_test
async def test_a_repeated_batch_gets_the_same_answer_and_is_not_stored_again() -> None:
    async with running() as relay:
        anna, bert, vault = await shared_vault(relay)
        async with anna, bert:
            await anna.subscribe(vault, TODOS)
            batch = group(TODOS, record(), record(tag=1))
            first = await anna.push(vault, 1, batch)
            await anna.push(vault, 2, group(TODOS, record()))
            assert await anna.push(vault, 1, batch) == first
            await anna.push(vault, 3, group(TODOS, record()))
            await anna.has(TODOS, 4)
            assert anna.seqs(TODOS) == [1, 2, 3, 4]


@asyncio_test
async def test_a_repeated_batch_gets_the_same_answer_from_a_relay_that_was_restarted() -> None:
    store = await memory_store()
    batch = group(TODOS, record())
    async with running(store) as relay:
        anna, bert, vault = await shared_vault(relay)
        async with anna, bert:
            await anna.subscribe(vault, TODOS)
            first = await anna.push(vault, 1, batch)
    async with running(store) as relay, await Device.open(relay.port, ANNA) as anna:
        told = await anna.subscribe(vault, TODOS)
        assert told.last_batch == 1
        assert told.term.number == 2
        assert await anna.push(vault, 1, batch) == first
        second = await anna.push(vault, 2, group(TODOS, record()))
        assert second.appended[0].first == 2
        await anna.has(TODOS, 2)
        assert anna.seqs(TODOS) == [1, 2]


@asyncio_test
async def test_other_contents_under_a_used_number_are_told_as_cloned() -> None:
    async with running() as relay:
        anna, bert, vault = await shared_vault(relay)
        async with anna, bert:
            await anna.subscribe(vault, TODOS)
            await anna.push(vault, 1, group(TODOS, record()))
            told = await anna.push(vault, 1, group(TODOS, record()))
            assert told == Pushed(vault, 1, Outcome.CLONED, (), ())


@asyncio_test
async def test_a_gap_in_the_numbers_is_refused_within_a_term_and_legal_in_the_next() -> None:
    store = await memory_store()
    async with running(store) as relay:
        anna, bert, vault = await shared_vault(relay)
        async with anna, bert:
            await anna.subscribe(vault, TODOS)
            await anna.push(vault, 1, group(TODOS, record()))
            await anna.send(Push(vault, anna.term(vault), 3, 0, (group(TODOS, record()),)))
            fault = await anna.until(Fault)
            assert (fault.code, fault.action, fault.vault) == (FaultCode.BATCH_GAP, Action.RESUBSCRIBE, vault)
    async with running(store) as relay, await Device.open(relay.port, ANNA) as anna:
        await anna.subscribe(vault, TODOS)
        assert (await anna.push(vault, 3, group(TODOS, record()))).outcome is Outcome.DONE
        assert (await anna.push(vault, 2, group(TODOS, record()))).outcome is Outcome.STALE_NUMBER


@asyncio_test
async def test_r06_what_is_sealed_as_another_member_is_refused_and_uses_up_no_number() -> None:
    async with running() as relay:
        anna, bert, vault = await shared_vault(relay)
        async with anna, bert:
            await bert.subscribe(vault, TODOS)
            await bert.send(Push(vault, bert.term(vault), 1, 0, (group(TODOS, record(author=1)),)))
            fault = await bert.until(Fault)
            assert (fault.code, fault.action, fault.vault) == (FaultCode.TERM_CHANGED, Action.RESUBSCRIBE, vault)
            await bert.subscribe(vault, TODOS)
            assert (await bert.push(vault, 1, group(TODOS, record(author=2)))).outcome is Outcome.DONE


@pytest.mark.parametrize(
    ("spoilt", "outcome"),
    [
        (group(TODOS, record(author=2, version=2**32 + 1)), Outcome.MALFORMED),
        (group(TODOS, record(author=2)._replace(epoch=2)), Outcome.EPOCH_STALE),
        (group(TODOS, record(author=2)._replace(key_id=KeyId(b"else"))), Outcome.EPOCH_STALE),
        (group(TODOS, record(author=2)._replace(version=0)), Outcome.SEAL_AGAIN),
        (group(stream_id(99), record(author=2)), Outcome.MALFORMED),
        (group(MEMBERSHIP, record(author=2)), Outcome.MALFORMED),
        (group(TODOS, record(author=2))._replace(conditions=b"x"), Outcome.MALFORMED),
    ],
    ids=["version-step", "epoch", "key", "version-0", "no-stream", "stream-0", "conditions"],
)
def test_a_push_that_breaks_a_rule_uses_up_its_number_and_stores_nothing(spoilt: Group, outcome: Outcome) -> None:
    @asyncio_test
    async def run() -> None:
        async with running() as relay:
            anna, bert, vault = await shared_vault(relay)
            async with anna, bert:
                await bert.subscribe(vault, TODOS)
                fine = group(NOTES, record(author=2))
                told = await bert.push(vault, 1, fine, spoilt)
                assert told == Pushed(vault, 1, outcome, (), ())
                assert await bert.push(vault, 1, fine, spoilt) == told
                told = await bert.push(vault, 2, group(TODOS, record(author=2, version=2**32)))
                assert told.outcome is Outcome.DONE
                assert told.appended[0].first == 1

    run()


@asyncio_test
async def test_s12_a_reader_may_not_write() -> None:
    async with running() as relay, await Device.open(relay.port, ANNA) as anna:
        vault, log = await anna.create_vault()
        await anna.create_stream(vault, TODOS)
        author = await anna.add(log, BERT, Role.READER)
        async with await Device.open(relay.port, BERT) as bert:
            await bert.subscribe(vault, TODOS)
            told = await bert.push(vault, 1, group(TODOS, record(author=author)))
            assert told.outcome is Outcome.NOT_A_WRITER
            answer = await bert.request(lambda n: CreateStream(n, vault, NOTES, StreamKind.OPEN))
            assert isinstance(answer, Fault)
            assert answer.code is FaultCode.NOT_ALLOWED


@asyncio_test
async def test_s15_a_vault_of_others_and_a_vault_that_does_not_exist_get_the_same_answers() -> None:
    async with running() as relay:
        anna, bert, vault = await shared_vault(relay)
        async with anna, bert, await Device.open(relay.port, CARL) as carl:
            await carl.create_vault()
            told = await anna.subscribe(vault, TODOS)
            await anna.push(vault, 1, group(TODOS, record()))
            assert {state.kind for state in told.streams} == {StreamKind.OPEN}, "it is there, for its members"
            heard = [
                await everything_that_a_stranger_hears(carl, each, told.term)
                for each in (vault, VaultId(bytes(15) + b"x"))
            ]
            assert heard[0] == heard[1]
            assert len(heard[0]) == 9
            told_of_none = {FaultCode.NO_SUCH_VAULT, FaultCode.NOT_SUBSCRIBED, FaultCode.NO_SUCH_MAILBOX}
            assert {fault.code for fault in heard[0]} == told_of_none


async def everything_that_a_stranger_hears(device: Device, vault: VaultId, term: Term) -> list[Fault]:
    """What a device that is no member is told of a vault, without the vault's id and the request's number."""
    await device.subscribe_raw(vault, MEMBERSHIP, TODOS)
    heard = [await device.until(Fault)]
    await device.send(Push(vault, term, 1, 0, (group(TODOS, record()),)))
    heard.append(await device.until(Fault))
    pin, log = Position(term, 1), [genesis(ANNA)]
    asks: tuple[Callable[[int], Message], ...] = (
        lambda n: Reconcile(n, vault, TODOS, START, (ROOT,)),
        lambda n: Reconcile(n, vault, TODOS, pin, (ROOT,)),
        lambda n: Fetch(n, vault, TODOS, pin, (1,)),
        lambda n: CreateStream(n, vault, TODOS, StreamKind.OPEN),
        lambda n: OpenMailbox(n, vault, MailboxId(bytes(16)), 60),
        lambda n: AppendLink(n, vault, add_link(ANNA, log, CARL)),
        lambda n: OfferLinks(n, vault, 1, encode_links([add_link(CARL, log, CARL)])),
    )
    for make in asks:
        answer = await device.request(make)
        assert isinstance(answer, Fault)
        heard.append(answer)
    return [replace(fault, request=0, vault=NO_VAULT) for fault in heard]


@asyncio_test
async def test_a_stream_that_is_created_after_it_was_subscribed_to_is_delivered() -> None:
    async with running() as relay:
        anna, bert, vault = await shared_vault(relay)
        late = stream_id(7)
        async with anna, bert:
            told = await bert.subscribe(vault, late)
            assert told.streams[0].kind is StreamKind.ABSENT
            await anna.subscribe(vault, TODOS)
            await anna.create_stream(vault, late)
            await anna.push(vault, 1, group(late, record()))
            await anna.push(vault, 2, group(late, record(tag=1)))
            await bert.has(late, 2)
            assert bert.seqs(late) == [1, 2]


@asyncio_test
async def test_a_device_that_comes_late_catches_up_from_where_it_stands() -> None:
    async with running() as relay:
        anna, bert, vault = await shared_vault(relay)
        async with anna, bert:
            await anna.subscribe(vault, TODOS)
            for batch in range(1, 11):
                await anna.push(vault, batch, group(TODOS, record(), record(tag=1)))
            await bert.subscribe(vault, TODOS, cursor=Position(anna.term(vault), 7))
            await bert.has(TODOS, 13)
            # The segment of seqs 7 and 8 begins before the cursor: it is sent whole, and skipped in part.
            assert bert.seqs(TODOS) == list(range(7, 21))


@asyncio_test
async def test_large_pushes_gather_in_segments_of_limited_size_and_arrive_whole() -> None:
    async with running() as relay:
        anna, bert, vault = await shared_vault(relay)
        async with anna, bert:
            await anna.subscribe(vault, TODOS)
            await bert.subscribe(vault, TODOS)
            term = anna.term(vault)
            batches = [group(TODOS, *[record(units=4000) for _ in range(3)]) for _ in range(8)]
            await anna.send(*[Push(vault, term, n, 0, (b,)) for n, b in enumerate(batches, 1)])
            for n in range(1, 9):
                assert (await anna.verdict(vault, n)).outcome is Outcome.DONE
            await bert.has(TODOS, 24)
            assert bert.seqs(TODOS) == list(range(1, 25))


@asyncio_test
async def test_creating_what_exists_is_answered_alike() -> None:
    async with running() as relay, await Device.open(relay.port, ANNA) as anna:
        vault, _ = await anna.create_vault()
        await anna.create_vault()
        await anna.create_stream(vault, TODOS)
        await anna.create_stream(vault, TODOS)
        answer = await anna.request(lambda n: CreateVault(n, genesis(BERT)[:-1] + b"x"))
        assert isinstance(answer, Fault)
        assert answer.code is FaultCode.BAD_LINK
        for message in (
            CreateStream(7, vault, NOTES, StreamKind.ABSENT),
            CreateStream(7, vault, NOTES, StreamKind.MEMBERSHIP),
            CreateStream(7, vault, MEMBERSHIP, StreamKind.OPEN),
        ):
            answer = await anna.request(lambda n, m=message: replace(m, request=n))  # type: ignore[misc]
            assert isinstance(answer, Fault)
            assert answer.code is FaultCode.UNSUPPORTED
        answer = await anna.request(lambda n: CreateStream(n, vault, TODOS, StreamKind.GUARDED))
        assert isinstance(answer, Fault)
        assert answer.code is FaultCode.STREAM_KIND


@asyncio_test
async def test_two_processes_on_one_database_take_turns_without_gap_or_duplicate() -> None:
    database = MemoryDatabase()
    async with (
        running(await memory_store(database)) as one,
        running(await memory_store(database)) as two,
    ):
        anna, bert, vault = await shared_vault(one)
        async with anna, bert, await Device.open(two.port, BERT) as other:
            await anna.subscribe(vault, TODOS)
            await other.subscribe(vault, TODOS)
            for turn in range(1, 21):
                told = [
                    await anna.push(vault, turn, group(TODOS, record(version=turn))),
                    await other.push(vault, turn, group(TODOS, record(version=turn, author=2))),
                ]
                assert [answer.appended[0].first for answer in told] == [2 * turn - 1, 2 * turn]
            for device in (anna, other):
                await device.has(TODOS, 39)
            await one.plane._sweep.look()
            await two.plane._sweep.look()
            for device in (anna, other):
                await device.has(TODOS, 40)
                assert device.seqs(TODOS) == list(range(1, 41))


@asyncio_test
async def test_a_device_that_changes_between_two_processes_is_not_told_of_gaps_that_are_none() -> None:
    database = MemoryDatabase()
    async with (
        running(await memory_store(database)) as one,
        running(await memory_store(database)) as two,
    ):
        anna, bert, vault = await shared_vault(one)
        async with anna, bert, await Device.open(two.port, ANNA) as elsewhere:
            await anna.subscribe(vault, TODOS)
            await elsewhere.subscribe(vault, TODOS)
            assert (await anna.push(vault, 1, group(TODOS, record()))).outcome is Outcome.DONE
            assert (await elsewhere.push(vault, 2, group(TODOS, record()))).outcome is Outcome.DONE
            assert (await elsewhere.push(vault, 3, group(TODOS, record()))).outcome is Outcome.DONE
            assert (await anna.push(vault, 4, group(TODOS, record()))).outcome is Outcome.DONE


@asyncio_test
async def test_the_log_says_which_term_began_and_who_began_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sealwire.terms")
    store = await memory_store()
    first, second = (Terms(store, Metrics(), lambda term: None) for _ in range(2))
    await first.open()
    await second.open()
    await first.refresh()
    assert [record.getMessage() for record in caplog.records if record.name == "sealwire.terms"] == [
        "Term 1 begins: this relay has opened it.",
        "Term 2 begins: this relay has opened it.",
        "Term 2 has begun: another relay has opened it.",
    ]


@asyncio_test
async def test_concurrent_pushes_to_two_processes_are_each_stored_once() -> None:
    database = MemoryDatabase()
    chance = random.Random(7)
    stores = [TroubledStore(await memory_store(database), lambda: chance.randrange(4)) for _ in range(2)]
    async with running(stores[0].store) as one, running(stores[1].store) as two:
        anna, bert, vault = await shared_vault(one)
        async with anna, bert, await Device.open(two.port, BERT) as other:
            await anna.subscribe(vault, TODOS)
            await other.subscribe(vault, TODOS)
            seqs: list[int] = []

            async def push_all(device: Device, author: int) -> None:
                for batch in range(1, 26):
                    told = await device.push(vault, batch, group(TODOS, record(author=author)))
                    assert told.outcome is Outcome.DONE
                    seqs.append(told.appended[0].first)

            await asyncio.gather(push_all(anna, 1), push_all(other, 2))
            assert sorted(seqs) == list(range(1, 51))


@asyncio_test
async def test_the_relay_stops_with_a_code_that_says_come_back_and_answers_what_it_committed() -> None:
    store = await memory_store()
    async with running(store) as relay:
        anna = await Device.open(relay.port, ANNA)
        vault, _ = await anna.create_vault()
        await anna.create_stream(vault, TODOS)
        await anna.subscribe(vault, TODOS)
        await anna.push(vault, 1, group(TODOS, record()))
    assert await anna.closed() == 1012
    await anna.close()
    page = await store.read(vault, TODOS, 0, 1000)
    assert page is not None
    assert page.head == 1


@asyncio_test
async def test_subscriptions_are_answered_in_the_order_of_their_streams() -> None:
    async with running() as relay:
        anna, bert, vault = await shared_vault(relay)
        async with anna, bert:
            wanted = [Wanted(s, START, START) for s in (NOTES, MEMBERSHIP, TODOS)]
            await anna.send(Subscribe(vault, tuple(wanted)))
            told = await anna.until(Subscribed)
            assert [state.stream for state in told.streams] == [NOTES, MEMBERSHIP, TODOS]
            assert told.streams[1].kind is StreamKind.MEMBERSHIP


@asyncio_test
async def test_done_means_durable() -> None:
    store = await memory_store()
    async with running(store) as relay, await Device.open(relay.port, ANNA) as anna:
        vault, log = await anna.create_vault()
        assert (await store.links(vault)).links == tuple(log)
        assert await anna.add(log, BERT) == Author(2)
        assert (await store.links(vault)).links == tuple(log)
        answer = await anna.request(lambda n: CreateStream(n, vault, TODOS, StreamKind.OPEN))
        assert isinstance(answer, Done)


# --- replaced devices


@asyncio_test
async def test_a_replaced_device_reads_and_hears_old_verdicts_and_its_new_key_writes() -> None:
    async with running() as relay, await Device.open(relay.port, CARL) as carl:
        anna, bert, vault = await shared_vault(relay)
        async with anna, bert:
            await anna.subscribe(vault, MEMBERSHIP, TODOS)
            await bert.subscribe(vault, TODOS)
            sent = group(TODOS, record(author=2))
            first = await bert.push(vault, 1, sent)
            log = [genesis(ANNA), add_link(ANNA, [genesis(ANNA)], BERT)]
            author = await bert.replace(log, 2, CARL)
            await anna.when(lambda: sum(d.stream == MEMBERSHIP for d in anna.delivered) >= 2)
            assert await bert.push(vault, 1, sent) == first
            for batch, records in ((1, record(author=2)), (2, record(author=2)), (7, record(author=2))):
                told = await bert.push(vault, batch, group(TODOS, records))
                assert (told.outcome, told.appended) == (Outcome.CLONED, ())
            await carl.subscribe(vault, TODOS)
            done = await carl.push(vault, 1, group(TODOS, record(author=author)))
            assert (done.outcome, done.appended[0].first) == (Outcome.DONE, 2)
            await bert.has(TODOS, 2)
            answer = await bert.request(lambda number: CreateStream(number, vault, stream_id(3), StreamKind.OPEN))
            assert isinstance(answer, Fault) and answer.code is FaultCode.NOT_ALLOWED
            again = await bert.replace(log, 2, Identity(4))
            assert again == author + 1


@asyncio_test
async def test_a_push_decided_before_its_author_was_replaced_at_another_process_is_not_executed() -> None:
    database = MemoryDatabase()
    async with running(await memory_store(database)) as one, running(await memory_store(database)) as two:
        anna, bert, vault = await shared_vault(one)
        async with anna, bert, await Device.open(two.port, BERT) as elsewhere:
            for device in (bert, elsewhere):
                await device.subscribe(vault, TODOS)
            assert (await bert.push(vault, 1, group(TODOS, record(author=2)))).outcome is Outcome.DONE
            log = [genesis(ANNA), add_link(ANNA, [genesis(ANNA)], BERT)]
            await elsewhere.replace(log, 2, CARL)
            assert (await bert.push(vault, 2, group(TODOS, record(author=2)))).outcome is Outcome.CLONED
            await bert.has(TODOS, 1)


@pytest.mark.parametrize("case", ["a stranger's", "another member's", "of a member's key"])
def test_a_link_that_replaces_a_device_is_taken_from_itself_alone(case: str) -> None:
    @asyncio_test
    async def test() -> None:
        async with running() as relay:
            anna, bert, vault = await shared_vault(relay)
            async with anna, bert:
                log = [genesis(ANNA), add_link(ANNA, [genesis(ANNA)], BERT)]
                raw = {
                    "a stranger's": replace_link(CARL, 2, log, Identity(4)),
                    "another member's": replace_link(ANNA, 2, log, Identity(4)),
                    "of a member's key": replace_link(BERT, 2, log, ANNA),
                }[case]
                answer = await anna.request(lambda number: AppendLink(number, vault, raw))
                assert isinstance(answer, Fault) and (answer.code, answer.action) == (FaultCode.BAD_LINK, Action.STOP)
                await bert.subscribe(vault, TODOS)
                assert (await bert.push(vault, 1, group(TODOS, record(author=2)))).outcome is Outcome.DONE

    test()
