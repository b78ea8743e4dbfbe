"""Vaults, links and invites' mailboxes: done once however often they are asked for, and refused in the same words."""

from sealwire_protocol.errors import Action, FaultCode
from sealwire_protocol.ids import MailboxId
from sealwire_protocol.limits import MAILBOX_SECONDS_MAX
from sealwire_protocol.links import Role
from sealwire_protocol.messages import (
    AnswerJoin,
    CreateVault,
    Fault,
    Join,
    Joined,
    Joining,
    OpenMailbox,
)
from sealwire_relay.requests import MAILBOXES_PER_PEER_MAX
from sealwire_relay.store.interface import StoreDownError
from sealwire_relay.store.kept import MemoryDatabase
from tests.relay.asking import ANNA, BERT, CARL, ask, done, inviter, refused
from tests.support.aio import asyncio_test
from tests.support.device import Device, genesis
from tests.support.relay import Mishap, TroubledStore, memory_store, running, turns_until

BOX = MailboxId(b"a box" + bytes(11))


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


# --- vaults, and a store that fails


@asyncio_test
async def test_a_vault_is_created_although_another_process_opened_a_term_meanwhile() -> None:
    database = MemoryDatabase()
    store, other = TroubledStore(await memory_store(database)), await memory_store(database)
    async with running(store.store) as relay, await Device.open(relay.port, ANNA) as anna:
        store.expect("create_vault", Mishap(made=True, before=other.open_term))
        vault, log = await anna.create_vault()
        assert (await other.links(vault)).links == tuple(log)


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
