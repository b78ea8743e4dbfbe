"""Membership logs: links are appended once, and an end that outranks the one that stands takes its place (R15)."""

import asyncio
from collections.abc import Sequence

import pytest

from sealwire_protocol.errors import Action, FaultCode, Outcome
from sealwire_protocol.events import HistoryLost
from sealwire_protocol.ids import MEMBERSHIP, Position, StreamId, VaultId
from sealwire_protocol.links import Role, decode_links, encode_links, link_hash, vault_id_of
from sealwire_protocol.messages import AppendLink, CreateVault, Done, Fault, OfferLinks, Push
from sealwire_relay.store.interface import OutcomeUnknownError
from sealwire_relay.store.kept import MemoryDatabase
from tests.relay.asking import ANNA, BERT, CARL, ask, done, inviter, refused
from tests.support.aio import asyncio_test
from tests.support.device import Device, Identity, add_link, genesis, group, record, replace_link
from tests.support.relay import Mishap, Relay, TroubledStore, memory_store, running, turns

DORA, EMIL = Identity(4), Identity(5)
STREAM = StreamId(b"a stream")

# --- one link


@asyncio_test
async def test_a_link_is_told_to_those_who_listen_and_appended_once() -> None:
    async with running() as relay:
        anna, vault = await inviter(relay)
        async with anna:
            await anna.subscribe(vault, MEMBERSHIP)
            await anna.when(lambda: len(anna.delivered) == 1)
            log = [genesis(ANNA)]
            link = add_link(ANNA, log, BERT)
            for _ in range(2):
                await done(anna, AppendLink, vault, link)
            await anna.when(lambda: len(anna.delivered) == 2)
            assert decode_links(anna.delivered[1].segment) == [link]
            other = add_link(ANNA, log, CARL)
            answer = await ask(anna, AppendLink, vault, other)
            assert isinstance(answer, Fault)
            assert (answer.code, answer.action) == (FaultCode.LINK_CONFLICT, Action.RETRY)
            await done(anna, AppendLink, vault, add_link(ANNA, [*log, link], CARL))


@pytest.mark.parametrize(
    "link",
    [
        b"",
        b"rubbish" * 30,
        genesis(ANNA)[:-1] + b"x",
        add_link(BERT, [genesis(ANNA)], BERT),
        add_link(ANNA, [genesis(ANNA, 1)], BERT),
        add_link(ANNA, [genesis(ANNA)] * 3, BERT),
        add_link(ANNA, [genesis(ANNA)], ANNA),
    ],
    ids=["empty", "rubbish", "other-genesis", "not-an-admin", "other-vault", "ahead", "member-already"],
)
def test_s03_a_link_that_does_not_verify_is_refused(link: bytes) -> None:
    @asyncio_test
    async def run() -> None:
        store = await memory_store()
        async with running(store) as relay:
            anna, vault = await inviter(relay)
            async with anna:
                code = await refused(anna, AppendLink, vault, link)
                assert code in (FaultCode.BAD_LINK, FaultCode.LINK_CONFLICT)
                assert (await store.links(vault)).links == (genesis(ANNA),)

    run()


@asyncio_test
async def test_two_links_for_one_place_leave_one_of_them() -> None:
    database = MemoryDatabase()
    store = TroubledStore(await memory_store(database))
    async with running(store.store) as relay, running(await memory_store(database)) as other:
        anna, vault = await inviter(relay)
        async with anna, await Device.open(other.port, ANNA) as twin:
            log = [genesis(ANNA)]

            async def overtake() -> None:
                await done(twin, AppendLink, vault, add_link(ANNA, log, CARL))

            store.expect("append_link", Mishap(made=True, before=overtake))
            assert await refused(anna, AppendLink, vault, add_link(ANNA, log, BERT)) is FaultCode.LINK_CONFLICT
            assert len(database.vaults[vault].streams[MEMBERSHIP].segments) == 2


# --- R15: what a relay has lost of members is presented by any device that has it


@asyncio_test
async def test_r15_a_vault_that_was_lost_is_presented_by_another_device_than_its_founder() -> None:
    store = await memory_store()
    log = [genesis(ANNA)]
    log.append(add_link(ANNA, log, BERT))
    vault = vault_id_of(log[0])
    async with running(store) as relay, await Device.open(relay.port, BERT) as bert:
        for link in (log[1], log[0]):
            assert await refused(bert, AppendLink, vault, link) is FaultCode.NO_SUCH_VAULT
        for _ in range(2):
            await done(bert, CreateVault, log[0])
        assert await store.subscription(vault, BERT.key, []) is None
        await done(bert, AppendLink, vault, log[1])
        told = await store.subscription(vault, BERT.key, [])
        assert told is not None
        assert told.member == (2, BERT.key, Role.WRITER)
        founder = await store.subscription(vault, ANNA.key, [])
        assert founder is not None
        assert founder.member == (1, ANNA.key, Role.ADMIN)
        assert (await store.links(vault)).links == tuple(log)
        await bert.create_stream(vault, StreamId(b"a stream"))
        await bert.subscribe(vault, StreamId(b"a stream"))
        assert (await bert.push(vault, 1, group(StreamId(b"a stream"), record(author=2)))).outcome is Outcome.DONE


@asyncio_test
async def test_r15_a_device_that_was_added_after_the_backup_presents_the_links_that_are_missing() -> None:
    async with running() as relay, await Device.open(relay.port, CARL) as carl:
        anna, vault = await inviter(relay)
        async with anna:
            await anna.subscribe(vault, MEMBERSHIP)
            log = [genesis(ANNA)]
            for added in (BERT, CARL):
                log.append(add_link(ANNA, log, added))
            assert await refused(carl, AppendLink, vault, log[2]) is FaultCode.NO_SUCH_VAULT, "it does not follow"
            for link in log:
                await done(carl, AppendLink, vault, link)
            await anna.when(lambda: len(anna.delivered) == 3)
            assert [raw for deliver in anna.delivered for raw in decode_links(deliver.segment)] == log
            await carl.create_stream(vault, StreamId(b"a stream"))


@asyncio_test
async def test_r15_links_presented_twice_at_once_stand_once() -> None:
    async with running() as relay, await Device.open(relay.port, BERT) as bert:
        anna, vault = await inviter(relay)
        async with anna, await Device.open(relay.port, CARL) as carl:
            log = [genesis(ANNA)]
            for added in (BERT, CARL):
                log.append(add_link(ANNA, log, added))
            told = await asyncio.gather(
                *[ask(device, AppendLink, vault, log[1]) for device in (anna, bert, carl) for _ in range(3)]
            )
            assert all(isinstance(one, Done) or one.code is FaultCode.LINK_CONFLICT for one in told)
            await done(carl, AppendLink, vault, log[1])
            await done(carl, AppendLink, vault, log[2])


@pytest.mark.parametrize(
    "link",
    [
        b"rubbish",
        genesis(ANNA, 1),
        add_link(CARL, [genesis(ANNA)], CARL),
        add_link(ANNA, [genesis(ANNA), genesis(ANNA)], CARL),
        add_link(ANNA, [genesis(ANNA)], ANNA),
    ],
    ids=["rubbish", "other-genesis", "signed-by-itself", "ahead", "member-already"],
)
def test_r15_s03_a_stranger_learns_nothing_of_a_vault_by_links_that_do_not_verify(link: bytes) -> None:
    @asyncio_test
    async def run() -> None:
        store = await memory_store()
        async with running(store) as relay, await Device.open(relay.port, CARL) as carl:
            anna, vault = await inviter(relay)
            async with anna:
                for of in (vault, VaultId(b"no such vault...")):
                    answer = await ask(carl, AppendLink, of, link)
                    assert isinstance(answer, Fault)
                    nowhere = Fault(answer.request, of, FaultCode.NO_SUCH_VAULT, Action.STOP, 0, answer.message)
                    assert answer == nowhere
                    assert answer.message == "there is no such vault here for this device"
                assert (await store.links(vault)).links == (genesis(ANNA),)

    run()


# --- R15: another end

LOG = [genesis(ANNA)]
LOG.append(add_link(ANNA, LOG, BERT, Role.READER))
VAULT = vault_id_of(LOG[0])


def end(*added: Identity) -> list[bytes]:
    """Links behind `LOG`, of the admin, that add these devices."""
    log = list(LOG)
    for identity in added:
        log.append(add_link(ANNA, log, identity))
    return log[len(LOG) :]


def own_end(keys: int) -> list[bytes]:
    """Links behind `LOG` by which a reader takes one key after another."""
    log, key, author = list(LOG), BERT, 2
    for number in range(keys):
        new = Identity(100 + number)
        log.append(replace_link(key, author, log, new))
        key, author = new, len(log)
    return log[len(LOG) :]


BY_HASH = sorted((end(Identity(number)) for number in range(50, 60)), key=lambda links: link_hash(links[-1]))


async def holding(relay: Relay, *links: bytes) -> Device:
    """Anna, after she has given the relay the log with these links behind it."""
    anna = await Device.open(relay.port, ANNA)
    await done(anna, CreateVault, LOG[0])
    for link in (LOG[1], *links):
        await done(anna, AppendLink, VAULT, link)
    return anna


async def offer(device: Device, links: Sequence[bytes], after: int = len(LOG)) -> Done | Fault:
    return await ask(device, OfferLinks, VAULT, after, encode_links(links))


async def accepted(device: Device, links: Sequence[bytes], after: int = len(LOG)) -> None:
    answer = await offer(device, links, after)
    assert isinstance(answer, Done), answer


def delivered(device: Device) -> list[bytes]:
    return [raw for each in device.delivered if each.stream == MEMBERSHIP for raw in decode_links(each.segment)]


def has_lost(device: Device) -> bool:
    return any(isinstance(effect, HistoryLost) for effect in device.effects)


@asyncio_test
async def test_r15_an_end_that_outranks_the_one_that_stands_takes_its_place() -> None:
    store = await memory_store()
    async with running(store) as relay, await holding(relay, *end(CARL)) as anna:
        await accepted(anna, end(DORA, EMIL))
        assert list((await store.links(VAULT)).links) == LOG + end(DORA, EMIL)
        assert await store.subscription(VAULT, CARL.key, []) is None
        told = await store.subscription(VAULT, EMIL.key, [])
        assert told is not None and told.member == (4, EMIL.key, Role.WRITER)
        assert relay.counted("replaced_links_total") == 1
        await done(anna, AppendLink, VAULT, add_link(ANNA, LOG + end(DORA, EMIL), CARL))


@asyncio_test
async def test_r15_it_is_told_who_signed_what(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as relay, await holding(relay, *own_end(2)) as anna:
        await accepted(anna, end(CARL))
        [told] = [found.getMessage() for found in caplog.records if found.name == "sealwire.losses"]
        assert VAULT.hex() in told
        assert "lost 1 link, signed by member 1; 2 links, signed by members 2, 3, gave way" in told


@asyncio_test
async def test_r15_an_end_that_is_outranked_is_refused() -> None:
    store = await memory_store()
    async with running(store) as relay, await holding(relay, *end(CARL, DORA)) as anna:
        before = await store.links(VAULT)
        answer = await offer(anna, end(EMIL))
        assert isinstance(answer, Fault)
        assert (answer.code, answer.action) == (FaultCode.LINK_CONFLICT, Action.RETRY)
        assert await store.links(VAULT) == before


@pytest.mark.parametrize("better", [True, False])
def test_r15_of_two_ends_of_one_length_the_smaller_hash_decides(better: bool) -> None:
    @asyncio_test
    async def run() -> None:
        store = await memory_store()
        small, great = BY_HASH[0], BY_HASH[-1]
        standing, coming = (great, small) if better else (small, great)
        async with running(store) as relay, await holding(relay, *standing) as anna:
            answer = await offer(anna, coming)
            assert isinstance(answer, Done) is better
            assert list((await store.links(VAULT)).links) == LOG + small

    run()


@asyncio_test
async def test_r15_no_number_of_keys_that_a_reader_takes_outgrows_a_link_of_an_admin() -> None:
    store = await memory_store()
    async with running(store) as relay, await holding(relay, *end(CARL)) as anna:
        async with await Device.open(relay.port, BERT) as bert:
            assert await refused(bert, OfferLinks, VAULT, 2, encode_links(own_end(5))) is FaultCode.LINK_CONFLICT
        assert list((await store.links(VAULT)).links) == LOG + end(CARL)
        assert (await anna.subscribe(VAULT, MEMBERSHIP)).streams[0].head == 3


@asyncio_test
async def test_r15_links_that_stand_already_and_links_that_merely_follow_are_done() -> None:
    store = await memory_store()
    async with running(store) as relay, await holding(relay, *end(CARL, DORA)) as anna:
        async with await Device.open(relay.port, EMIL) as emil:
            for device in (anna, emil):
                for links, after in ((end(CARL, DORA), 2), (end(CARL), 2), (LOG[1:] + end(CARL), 1)):
                    await accepted(device, links, after)
            term = (await store.links(VAULT)).term
            assert term == relay.plane._terms.present, "nothing was replaced"
            await accepted(emil, end(CARL, DORA, EMIL))
        told = (await anna.subscribe(VAULT, MEMBERSHIP)).streams[0]
        assert (told.head, [start for _, start in told.terms]) == (5, [0, 4]), "what stood already still stands"
        assert relay.counted("replaced_links_total") == 0


@asyncio_test
async def test_r15_a_stranger_whom_lost_links_had_added_gives_them_back_if_they_win() -> None:
    store = await memory_store()
    async with running(store) as relay, await holding(relay, *end(CARL)):
        async with await Device.open(relay.port, EMIL) as emil:
            told = await offer(emil, own_end(9))
            assert isinstance(told, Fault) and told.code is FaultCode.NO_SUCH_VAULT
            await accepted(emil, end(DORA, EMIL))
            await emil.create_stream(VAULT, STREAM)
            await emil.subscribe(VAULT, STREAM)
            assert (await emil.push(VAULT, 1, group(STREAM, record(author=4)))).outcome is Outcome.DONE


REFUSED = {
    "nothing": (2, b""),
    "rubbish": (2, b"rubbish" * 30),
    "no-links": (2, encode_links([b"rubbish" * 30])),
    "forged": (2, encode_links([*end(CARL), end(CARL, DORA)[1][:-1] + b"x"])),
    "ahead": (2, encode_links(end(CARL, DORA)[1:])),
    "before": (1, encode_links(end(CARL, DORA))),
    "beyond": (4, encode_links(end(CARL, DORA, EMIL)[2:])),
    "all": (0, encode_links(LOG + end(CARL, DORA))),
    "other-genesis": (0, encode_links([genesis(ANNA, 1)])),
}


@pytest.mark.parametrize("wrong", REFUSED)
def test_r15_s03_an_end_that_does_not_verify_is_refused_and_tells_a_stranger_nothing(wrong: str) -> None:
    after, links = REFUSED[wrong]

    @asyncio_test
    async def run() -> None:
        store = await memory_store()
        async with running(store) as relay, await holding(relay, *end(EMIL)) as anna:
            before = await store.links(VAULT)
            assert await refused(anna, OfferLinks, VAULT, after, links) is FaultCode.BAD_LINK
            async with await Device.open(relay.port, DORA) as dora:
                for of in (VAULT, VaultId(b"no such vault...")):
                    answer = await ask(dora, OfferLinks, of, after, links)
                    assert isinstance(answer, Fault)
                    nowhere = Fault(answer.request, of, FaultCode.NO_SUCH_VAULT, Action.STOP, 0, answer.message)
                    assert answer == nowhere
                    assert answer.message == "there is no such vault here for this device"
            assert await store.links(VAULT) == before

    run()


@asyncio_test
async def test_r15_an_end_that_is_offered_by_many_at_once_takes_its_place_once() -> None:
    async with running() as relay, await holding(relay, *end(CARL)) as anna:
        async with await Device.open(relay.port, DORA) as dora:
            told = await asyncio.gather(*[offer(each, end(DORA, EMIL)) for each in (anna, dora) for _ in range(3)])
        assert all(isinstance(answer, Done) for answer in told)
        assert relay.counted("replaced_links_total") == 1


@asyncio_test
async def test_r15_of_two_ends_that_two_relays_take_in_at_once_the_one_that_outranks_stands() -> None:
    database = MemoryDatabase()
    store = TroubledStore(await memory_store(database))
    async with running(store.store) as one, running(await memory_store(database)) as two:
        async with await holding(one, *own_end(1)) as anna, await Device.open(two.port, ANNA) as twin:

            async def overtake() -> None:
                await accepted(twin, end(DORA, EMIL))

            store.expect("replace_links", Mishap(made=True, before=overtake))
            answer = await offer(anna, end(CARL))
            assert isinstance(answer, Fault) and answer.code is FaultCode.LINK_CONFLICT
            assert list((await store.store.links(VAULT)).links) == LOG + end(DORA, EMIL)

            async def too_short() -> None:
                await done(twin, AppendLink, VAULT, add_link(ANNA, LOG + end(DORA, EMIL), CARL))

            store.expect("replace_links", Mishap(made=True, before=too_short))
            await accepted(anna, [*own_end(1), *_behind(own_end(1), CARL, DORA, EMIL, Identity(6))])


def _behind(links: list[bytes], *added: Identity) -> list[bytes]:
    log = LOG + links
    for identity in added:
        log.append(add_link(ANNA, log, identity))
    return log[len(LOG) + len(links) :]


@asyncio_test
async def test_r15_links_are_replaced_although_another_process_opened_a_term_meanwhile() -> None:
    database = MemoryDatabase()
    store, other = TroubledStore(await memory_store(database)), await memory_store(database)
    async with running(store.store) as relay, await holding(relay, *end(CARL)) as anna:
        store.expect("replace_links", Mishap(made=True, before=other.open_term))
        await accepted(anna, end(DORA, EMIL))
        assert list((await other.links(VAULT)).links) == LOG + end(DORA, EMIL)


# --- R15: whom it concerns


@asyncio_test
async def test_r15_who_listens_is_told_and_gets_the_log_that_stands_from_its_beginning() -> None:
    async with running() as relay, await holding(relay, *end(CARL)) as anna:
        async with await Device.open(relay.port, BERT) as bert:
            former = (await bert.subscribe(VAULT, MEMBERSHIP)).streams[0].terms[-1].term
            await bert.when(lambda: delivered(bert) == LOG + end(CARL))
            await accepted(anna, end(DORA, EMIL))
            assert (await bert.until(Fault)).code is FaultCode.TERM_CHANGED
            await bert.when(lambda: has_lost(bert))
            bert.delivered.clear()
            told = (await bert.subscribe(VAULT, MEMBERSHIP)).streams[0]
            assert (told.head, [start for _, start in told.terms]) == (4, [0, 2])
            await bert.when(lambda: delivered(bert) == LOG + end(DORA, EMIL))
            assert {each.term for each in bert.delivered} == {told.terms[-1].term}
            assert told.terms[-1].term.number == former.number
            more = add_link(ANNA, LOG + end(DORA, EMIL), CARL)
            await done(anna, AppendLink, VAULT, more)
            await bert.when(lambda: delivered(bert) == [*LOG, *end(DORA, EMIL), more])
            assert bert.delivered[-1].term == told.terms[-1].term


@asyncio_test
async def test_r15_a_position_before_the_logs_part_still_stands() -> None:
    async with running() as relay, await holding(relay, *end(CARL)) as anna:
        async with await Device.open(relay.port, BERT) as bert:
            term = relay.plane._terms.present
            await accepted(anna, end(DORA, EMIL))
            await bert.subscribe(VAULT, MEMBERSHIP, cursor=Position(term, 2))
            await bert.when(lambda: delivered(bert) == end(DORA, EMIL))
            assert not has_lost(bert)


@asyncio_test
async def test_r15_a_device_that_is_no_member_any_more_is_told_so_when_it_subscribes_again() -> None:
    async with running() as relay, await holding(relay, *end(CARL)) as anna:
        async with await Device.open(relay.port, CARL) as carl:
            await carl.subscribe(VAULT, MEMBERSHIP)
            await accepted(anna, end(DORA, EMIL))
            await carl.until(Fault, lambda fault: fault.code is FaultCode.TERM_CHANGED)
            await carl.until(Fault, lambda fault: fault.code is FaultCode.NO_SUCH_VAULT)


@asyncio_test
async def test_r15_a_page_that_was_read_of_the_former_log_is_not_sent() -> None:
    store = TroubledStore(await memory_store())
    async with running(store.store) as relay, await holding(relay, *end(CARL)) as anna:
        async with await Device.open(relay.port, BERT) as bert:
            store.expect("read", Mishap(made=True, after=lambda: accepted(anna, end(DORA, EMIL))))
            await bert.subscribe(VAULT, MEMBERSHIP)
            await bert.when(lambda: delivered(bert) == LOG + end(DORA, EMIL))
            assert len({each.term for each in bert.delivered}) == 1


@asyncio_test
async def test_r15_a_subscription_that_waits_is_answered_from_the_log_that_stands_since() -> None:
    store = TroubledStore(await memory_store())
    async with running(store.store) as relay, await holding(relay, *own_end(3)) as anna:
        async with await Device.open(relay.port, BERT) as bert:
            store.expect("subscription", Mishap(made=True, after=lambda: accepted(anna, end(CARL))))
            told = await bert.subscribe(VAULT, MEMBERSHIP)
            assert told.streams[0].head == 3
            await bert.when(lambda: delivered(bert) == LOG + end(CARL))
            assert not [message for message in bert.log if isinstance(message, Fault)]


@asyncio_test
async def test_r15_a_listener_at_another_relay_learns_that_the_log_is_shorter_now() -> None:
    database = MemoryDatabase()
    store = TroubledStore(await memory_store(database))
    async with running(await memory_store(database)) as one, running(store.store) as two:
        async with await holding(one, *own_end(3)) as anna, await Device.open(two.port, ANNA) as twin:
            await twin.subscribe(VAULT, MEMBERSHIP)
            await twin.when(lambda: len(delivered(twin)) == 5)
            await accepted(anna, end(CARL))
            await two.plane._sweep.look()
            await twin.when(lambda: has_lost(twin))
            await twin.subscribe(VAULT, MEMBERSHIP)
            await twin.when(lambda: delivered(twin)[5:] == LOG + end(CARL))


@asyncio_test
async def test_r15_who_comes_to_another_relay_meanwhile_gets_the_shorter_log_and_costs_few_reads() -> None:
    database = MemoryDatabase()
    store = TroubledStore(await memory_store(database))
    async with running(await memory_store(database)) as one, running(store.store) as two:
        async with await holding(one, *own_end(3)) as anna, await Device.open(two.port, ANNA) as twin:
            await twin.subscribe(VAULT, MEMBERSHIP)
            await twin.when(lambda: len(delivered(twin)) == 5)
            await accepted(anna, end(CARL))
            async with await Device.open(two.port, BERT) as bert:
                await bert.subscribe(VAULT, MEMBERSHIP)
                await bert.when(lambda: delivered(bert) == LOG + end(CARL))
                await twin.when(lambda: has_lost(twin))
                await turns(200)
                assert store.calls.count("read") < 6


@asyncio_test
async def test_r15_who_listens_is_told_also_if_the_outcome_is_unknown() -> None:
    store = TroubledStore(await memory_store())
    async with running(store.store) as relay, await holding(relay, *end(CARL)) as anna:
        async with await Device.open(relay.port, BERT) as bert:
            await bert.subscribe(VAULT, MEMBERSHIP)
            await bert.when(lambda: len(delivered(bert)) == 3)
            store.expect("replace_links", Mishap(OutcomeUnknownError("lost"), made=True))
            answer = await offer(anna, end(DORA, EMIL))
            assert isinstance(answer, Fault) and (answer.code, answer.action) == (FaultCode.OVERLOADED, Action.RETRY)
            await bert.when(lambda: has_lost(bert))
            await accepted(anna, end(DORA, EMIL))


@asyncio_test
async def test_r15_nobody_pushes_as_a_member_that_is_gone_and_whoever_has_its_number_does() -> None:
    database = MemoryDatabase()
    async with running(await memory_store(database)) as one, running(await memory_store(database)) as two:
        async with await holding(one, *end(CARL)) as anna, await Device.open(two.port, CARL) as carl:
            await anna.create_stream(VAULT, STREAM)
            await carl.subscribe(VAULT, STREAM)
            assert (await carl.push(VAULT, 1, group(STREAM, record(author=3)))).outcome is Outcome.DONE
            await accepted(anna, end(DORA, EMIL))
            async with await Device.open(two.port, DORA) as dora:
                await dora.subscribe(VAULT, STREAM)
                for batch in (1, 2):
                    done_so = await dora.push(VAULT, batch, group(STREAM, record(author=3)))
                    assert done_so.outcome is Outcome.DONE, "the view of that relay has this number as another device's"
            await carl.subscribe_raw(VAULT, STREAM)
            assert (await carl.until(Fault)).code is FaultCode.NO_SUCH_VAULT


@asyncio_test
async def test_r15_a_relay_that_judges_by_what_it_knew_of_a_member_does_not_commit_it() -> None:
    database = MemoryDatabase()
    async with running(await memory_store(database)) as one, running(await memory_store(database)) as two:
        async with await holding(one, *end(CARL)) as anna, await Device.open(two.port, CARL) as carl:
            await anna.create_stream(VAULT, STREAM)
            await carl.subscribe(VAULT, STREAM)
            assert (await carl.push(VAULT, 1, group(STREAM, record(author=3)))).outcome is Outcome.DONE
            await accepted(anna, end(DORA, EMIL))
            other = StreamId(b"streams.")
            async with await Device.open(one.port, DORA) as dora:
                await dora.create_stream(VAULT, other)
                await dora.subscribe(VAULT, other)
                as_many = await dora.push(VAULT, 1, group(other, record(author=3)))
                assert as_many.outcome is Outcome.DONE, "so its number has as many batches as before"
            await carl.send(Push(VAULT, carl.term(VAULT), 2, 0, (group(STREAM, record(author=3)),)))
            assert (await carl.until(Fault)).code is FaultCode.NO_SUCH_VAULT
            told = await anna.subscribe(VAULT, STREAM)
            assert told.streams[0].head == 1


@asyncio_test
async def test_r15_the_first_batch_of_a_device_that_is_another_member_now_is_no_repeat() -> None:
    database = MemoryDatabase()
    async with running(await memory_store(database)) as one, running(await memory_store(database)) as two:
        async with await holding(one, *end(CARL)) as anna, await Device.open(two.port, CARL) as carl:
            await anna.create_stream(VAULT, STREAM)
            await carl.subscribe(VAULT, STREAM)
            assert (await carl.push(VAULT, 1, group(STREAM, record(author=3)))).outcome is Outcome.DONE
            await accepted(anna, end(DORA, CARL))
            await carl.subscribe(VAULT, STREAM, cursor=Position(carl.term(VAULT), 1))
            assert (await carl.push(VAULT, 1, group(STREAM, record(author=4)))).outcome is Outcome.DONE
