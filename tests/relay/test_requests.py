"""Vaults, links and invites' mailboxes: done once however often they are asked for, and refused in the same words."""

import asyncio
from collections.abc import Callable

import pytest

from sealwire_protocol.errors import Action, FaultCode, Outcome
from sealwire_protocol.ids import MEMBERSHIP, MailboxId, StreamId, VaultId
from sealwire_protocol.limits import MAILBOX_SECONDS_MAX
from sealwire_protocol.membership import Role, decode_links, vault_id_of
from sealwire_protocol.messages import (
    AnswerJoin,
    AppendLink,
    CreateVault,
    Done,
    Fault,
    Join,
    Joined,
    Joining,
    Message,
    OpenMailbox,
)
from sealwire_relay.requests import MAILBOXES_PER_PEER_MAX
from sealwire_relay.store.interface import StoreDownError
from sealwire_relay.store.memory import MemoryDatabase
from tests.support.aio import asyncio_test
from tests.support.device import Device, Identity, add_link, genesis, group, record
from tests.support.relay import Mishap, Relay, TroubledStore, memory_store, running, turns_until

ANNA, BERT, CARL = Identity(1), Identity(2), Identity(3)
BOX = MailboxId(b"a box" + bytes(11))


async def ask(device: Device, kind: Callable[..., Message], *fields: object) -> Done | Fault:
    """Make a request of a kind and wait for its answer."""
    return await device.request(lambda number: kind(number, *fields))


async def refused(device: Device, kind: Callable[..., Message], *fields: object) -> FaultCode:
    """Why a request is refused."""
    answer = await ask(device, kind, *fields)
    assert isinstance(answer, Fault), answer
    return answer.code


async def done(device: Device, kind: Callable[..., Message], *fields: object) -> None:
    """Make a request that must succeed."""
    answer = await ask(device, kind, *fields)
    assert isinstance(answer, Done), answer


async def inviter(relay: Relay) -> tuple[Device, VaultId]:
    """Anna, who has a vault."""
    anna = await Device.open(relay.port, ANNA)
    vault, _ = await anna.create_vault()
    return anna, vault


# --- mailboxes


@asyncio_test
async def test_an_invite_when_both_are_there() -> None:
    async with running() as relay, await Device.open(relay.port, BERT) as bert:
        anna, vault = await inviter(relay)
        async with anna:
            await done(anna, OpenMailbox, vault, BOX, 60)
            await done(bert, Join, BOX, b"sealed request")
            assert await anna.until(Joining) == Joining(BOX, b"sealed request")
            await done(anna, AnswerJoin, BOX, b"sealed answer")
            assert await bert.until(Joined) == Joined(BOX, b"sealed answer")


@asyncio_test
async def test_an_invite_when_one_comes_after_the_other_has_gone() -> None:
    async with running() as relay:
        anna, vault = await inviter(relay)
        async with anna:
            await done(anna, OpenMailbox, vault, BOX, 60)
        async with await Device.open(relay.port, BERT) as bert:
            await done(bert, Join, BOX, b"sealed request")
        async with await Device.open(relay.port, ANNA) as anna:
            await done(anna, OpenMailbox, vault, BOX, 60)
            assert (await anna.until(Joining)).sealed == b"sealed request"
            await done(anna, AnswerJoin, BOX, b"sealed answer")
        async with await Device.open(relay.port, BERT) as bert:
            await done(bert, Join, BOX, b"sealed request")
            assert (await bert.until(Joined)).sealed == b"sealed answer"


@asyncio_test
async def test_an_invite_is_for_one_device() -> None:
    async with running() as relay, await Device.open(relay.port, BERT) as bert:
        anna, vault = await inviter(relay)
        async with anna, await Device.open(relay.port, CARL) as carl:
            await done(anna, OpenMailbox, vault, BOX, 60)
            await done(bert, Join, BOX, b"of bert")
            assert await refused(carl, Join, BOX, b"of carl") is FaultCode.MAILBOX_USED
            assert (await anna.until(Joining)).sealed == b"of bert"
            await done(anna, AnswerJoin, BOX, b"for bert")
            assert (await bert.until(Joined)).sealed == b"for bert"
            assert await refused(carl, Join, BOX, b"of carl") is FaultCode.MAILBOX_USED
            assert not [m for m in carl.log if isinstance(m, Joined)]
            assert not [m for m in anna.log if isinstance(m, Joining)]


@asyncio_test
async def test_an_invite_expires() -> None:
    now = 1000.0
    async with running(await memory_store(clock=lambda: now)) as relay, await Device.open(relay.port, BERT) as bert:
        anna, vault = await inviter(relay)
        async with anna:
            await done(anna, OpenMailbox, vault, BOX, 10**6)
            now += MAILBOX_SECONDS_MAX - 1
            await done(bert, Join, BOX, b"in time")
            now += 2
            assert await refused(bert, Join, BOX, b"too late") is FaultCode.NO_SUCH_MAILBOX
            assert await refused(anna, AnswerJoin, BOX, b"too late") is FaultCode.NO_SUCH_MAILBOX


@asyncio_test
async def test_only_an_admin_invites_and_only_the_inviter_answers() -> None:
    async with running() as relay, await Device.open(relay.port, BERT) as bert:
        anna, vault = await inviter(relay)
        async with anna:
            assert await refused(bert, OpenMailbox, vault, BOX, 60) is FaultCode.NO_SUCH_MAILBOX
            await anna.add([genesis(ANNA)], BERT, Role.WRITER)
            assert await refused(bert, OpenMailbox, vault, BOX, 60) is FaultCode.NO_SUCH_MAILBOX
            await done(anna, OpenMailbox, vault, BOX, 60)
            assert await refused(anna, AnswerJoin, BOX, b"to nobody") is FaultCode.NO_SUCH_MAILBOX
            await done(bert, Join, BOX, b"request")
            assert await refused(bert, AnswerJoin, BOX, b"to myself") is FaultCode.NO_SUCH_MAILBOX
            assert await refused(bert, Join, MailboxId(bytes(16)), b"request") is FaultCode.NO_SUCH_MAILBOX


@asyncio_test
async def test_waiting_at_mailboxes_is_bounded_and_forgotten() -> None:
    async with running() as relay:
        anna, vault = await inviter(relay)
        waiters = relay.plane._gateway._requests._inviters
        async with anna, await Device.open(relay.port, BERT) as bert:
            for number in range(MAILBOXES_PER_PEER_MAX + 10):
                await done(anna, OpenMailbox, vault, MailboxId(number.to_bytes(16, "big")), 60)
                await refused(bert, Join, MailboxId(b"x" * 15 + bytes((number,))), b"request")
            assert len(waiters._at) == MAILBOXES_PER_PEER_MAX
            assert not relay.plane._gateway._requests._joiners._at
            await done(bert, Join, MailboxId((70).to_bytes(16, "big")), b"request")
            await anna.until(Joining)
        await turns_until(lambda: relay.plane.connections == 0)
        assert not waiters._at
        assert not waiters._of
        assert not relay.plane._gateway._requests._joiners._at


# --- links


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
                assert await store.links(vault) == (genesis(ANNA),)

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
        assert await store.links(vault) == tuple(log)
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
                assert await store.links(vault) == (genesis(ANNA),)

    run()


# --- vaults, and a store that fails


@asyncio_test
async def test_a_vault_is_created_although_another_process_opened_a_term_meanwhile() -> None:
    database = MemoryDatabase()
    store, other = TroubledStore(await memory_store(database)), await memory_store(database)
    async with running(store.store) as relay, await Device.open(relay.port, ANNA) as anna:
        store.expect("create_vault", Mishap(made=True, before=other.open_term))
        vault, log = await anna.create_vault()
        assert await other.links(vault) == tuple(log)


@asyncio_test
async def test_a_request_that_the_store_fails_is_to_be_tried_again() -> None:
    store = TroubledStore(await memory_store())
    async with running(store.store) as relay, await Device.open(relay.port, ANNA) as anna:
        store.expect("create_vault", Mishap(StoreDownError("down")))
        answer = await ask(anna, CreateVault, genesis(ANNA))
        assert isinstance(answer, Fault)
        assert (answer.code, answer.action) == (FaultCode.OVERLOADED, Action.RETRY)
        assert answer.retry_ms > 0
        await anna.create_vault()


@asyncio_test
async def test_a_request_that_fails_unforeseen_ends_that_connection_with_come_back() -> None:
    store = TroubledStore(await memory_store())
    async with running(store.store) as relay, await Device.open(relay.port, ANNA) as anna:
        store.expect("create_vault", Mishap(ZeroDivisionError()))
        await anna.send(CreateVault(1, genesis(ANNA)))
        assert await anna.closed() == 4002
