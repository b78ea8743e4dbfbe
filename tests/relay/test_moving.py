"""A vault that moves away from a relay, and one that comes back to it (R18)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from sealwire_protocol.errors import FaultCode, Outcome
from sealwire_protocol.ids import MEMBERSHIP, START, MailboxId, StreamId
from sealwire_protocol.links import Role, decode_links, encode_links, vault_id_of
from sealwire_protocol.messages import (
    AppendLink,
    CreateStream,
    CreateVault,
    Fault,
    Join,
    OfferLinks,
    OpenMailbox,
    Ranges,
    Reconcile,
    StreamKind,
    Subscribed,
)
from sealwire_protocol.reconcile import ROOT
from sealwire_relay.store.kept import MemoryDatabase
from tests.relay.asking import ANNA, BERT, ask, done, refused
from tests.support.aio import asyncio_test
from tests.support.device import Device, add_link, epoch_link, genesis, group, key_id_of, move_link, record
from tests.support.relay import Relay, memory_store, running

STREAM, OTHER = StreamId(b"a stream"), StreamId(b"another.")
BOX = MailboxId(b"a mailbox of one")
ELSEWHERE = "wss://elsewhere.example.org"
LOG = [genesis(ANNA)]
LOG.append(add_link(ANNA, LOG, BERT, Role.ADMIN))
VAULT = vault_id_of(LOG[0])
AWAY = move_link(ANNA, LOG, ELSEWHERE)
FIRST, NEXT = group(STREAM, record()), group(STREAM, record(2, author=2))


class Both(NamedTuple):
    """Two relays on one database, and Anna and Bert at the first one."""

    here: Relay
    there: Relay
    anna: Device
    bert: Device

    def back(self, *before: bytes) -> bytes:
        """The link by which the vault comes back."""
        return move_link(ANNA, [*LOG, AWAY, *before], f"ws://127.0.0.1:{self.here.port}")


@asynccontextmanager
async def both() -> AsyncIterator[Both]:
    """They have the vault of `LOG` with a stream and a record in it."""
    database = MemoryDatabase()
    async with running(await memory_store(database)) as here, running(await memory_store(database)) as there:
        async with await Device.open(here.port, ANNA) as anna, await Device.open(here.port, BERT) as bert:
            await here.plane._sweep.look()  # it adopts the term that the other one has opened
            await done(anna, CreateVault, LOG[0])
            for link in LOG[1:]:
                await done(anna, AppendLink, VAULT, link)
            await anna.create_stream(VAULT, STREAM)
            for device in (anna, bert):
                await device.subscribe(VAULT, MEMBERSHIP, STREAM)
            assert (await anna.push(VAULT, 1, FIRST)).outcome is Outcome.DONE
            yield Both(here, there, anna, bert)


def links(device: Device) -> list[bytes]:
    return [raw for each in device.delivered if each.stream == MEMBERSHIP for raw in decode_links(each.segment)]


@asyncio_test
async def test_after_a_move_the_vault_can_be_read_and_nothing_is_taken_in_but_links() -> None:
    async with both() as relays:
        anna, bert = relays.anna, relays.bert
        for _ in range(2):
            await done(anna, AppendLink, VAULT, AWAY)
        await bert.when(lambda: links(bert) == [*LOG, AWAY])
        assert (await anna.push(VAULT, 1, FIRST)).outcome is Outcome.DONE, "its outcome is known"
        for _ in range(2):
            assert (await anna.push(VAULT, 2, group(STREAM, record(2)))).outcome is Outcome.MOVED
        assert (await bert.push(VAULT, 1, group(STREAM, record(2, author=2)))).outcome is Outcome.MOVED
        answer = await ask(anna, CreateStream, VAULT, OTHER, StreamKind.OPEN)
        assert isinstance(answer, Fault) and answer.code is FaultCode.MOVED and ELSEWHERE in answer.message
        assert await refused(anna, OpenMailbox, VAULT, BOX, 60) is FaultCode.MOVED
        ranges = await bert.ask(lambda number: Reconcile(number, VAULT, STREAM, START, (ROOT,)))
        assert isinstance(ranges, Ranges) and ranges.total.records == 1
        await done(anna, AppendLink, VAULT, epoch_link(ANNA, [*LOG, AWAY], 2, 2))
        fresh = record(2, epoch=2, key_id=key_id_of(2))
        await anna.subscribe(VAULT, MEMBERSHIP)
        assert (await anna.push(VAULT, 2, group(STREAM, fresh))).outcome is Outcome.MOVED, "an epoch does not undo it"


@asyncio_test
async def test_a_relay_that_has_not_heard_of_the_move_appends_nothing_either() -> None:
    async with both() as relays, await Device.open(relays.there.port, BERT) as bert:
        await bert.subscribe(VAULT, STREAM)
        assert (await bert.push(VAULT, 1, NEXT)).outcome is Outcome.DONE
        await done(relays.anna, AppendLink, VAULT, AWAY)
        assert (await bert.push(VAULT, 2, group(STREAM, record(3, author=2)))).outcome is Outcome.MOVED
        assert (await bert.push(VAULT, 1, NEXT)).outcome is Outcome.DONE


@asyncio_test
async def test_an_invite_to_a_vault_that_has_moved_says_where_it_is() -> None:
    async with both() as relays, await Device.open(relays.here.port, BERT) as joiner:
        await done(relays.anna, OpenMailbox, VAULT, BOX, 600)
        await done(relays.anna, AppendLink, VAULT, AWAY)
        answer = await ask(joiner, Join, BOX, b"sealed")
        assert isinstance(answer, Fault) and answer.code is FaultCode.MOVED and ELSEWHERE in answer.message


@asyncio_test
async def test_a_vault_that_comes_back_begins_anew_under_a_term_of_its_own() -> None:
    async with both() as relays:
        anna, bert = relays.anna, relays.bert
        await done(anna, AppendLink, VAULT, AWAY)
        before = await bert.subscribe(VAULT, MEMBERSHIP, STREAM)
        await done(anna, AppendLink, VAULT, relays.back())
        told = await bert.until(Subscribed, lambda told: told.streams[-1].head == 0)
        assert told.term == before.term, "nobody else subscribes again"
        assert [(state.kind, state.head) for state in told.streams] == [
            (StreamKind.MEMBERSHIP, 4),
            (StreamKind.OPEN, 0),
        ]
        [(own, start)] = told.streams[-1].terms
        assert start == 0 and own.number == told.term.number and own.id != told.term.id
        pushed = await bert.push(VAULT, 7, group(STREAM, record(author=2)))
        assert (pushed.outcome, [group.term for group in pushed.appended]) == (Outcome.DONE, [own])
        pushed = await bert.push(VAULT, 8, group(STREAM, record(2, author=2)))
        assert [(group.term, group.first) for group in pushed.appended] == [(own, 2)]
        await bert.when(lambda: [(each.term, each.last) for each in bert.delivered][-2:] == [(own, 1), (own, 2)])


@asyncio_test
async def test_vaults_may_come_back_again_and_again_and_each_time_their_positions_mean_nothing_any_more() -> None:
    async with both() as relays:
        anna, log, terms = relays.anna, [*LOG], set()
        here = f"ws://127.0.0.1:{relays.here.port}"
        term = (await anna.subscribe(VAULT, MEMBERSHIP, STREAM)).term
        for turn in range(3):
            for origin in (ELSEWHERE, here):
                log.append(move_link(ANNA, log, origin))
                await done(anna, AppendLink, VAULT, log[-1])
            assert (await anna.subscribe(VAULT, MEMBERSHIP, STREAM)).term == term
            [appended] = (await anna.push(VAULT, 9 + turn, group(STREAM, record()))).appended
            terms.add(appended.term)
        assert len(terms) == 3


@asyncio_test
async def test_a_relay_that_has_not_heard_that_the_vault_is_back_writes_under_the_term_of_its_own_too() -> None:
    """And whoever listens there hears the link, after which a device asks how everything stands."""
    async with both() as relays, await Device.open(relays.there.port, BERT) as bert:
        await bert.subscribe(VAULT, MEMBERSHIP, STREAM)
        assert (await bert.push(VAULT, 1, NEXT)).outcome is Outcome.DONE
        await done(relays.anna, AppendLink, VAULT, AWAY)
        await done(relays.anna, AppendLink, VAULT, relays.back())
        told = await relays.anna.until(
            Subscribed, lambda told: told.streams[-1].head == 0 < len(told.streams[-1].terms)
        )
        [(own, _)] = told.streams[-1].terms
        pushed = await bert.push(VAULT, 2, group(STREAM, record(3, author=2)))
        assert [(group.term, group.first) for group in pushed.appended] == [(own, 1)]
        await relays.there.plane._sweep.look()
        await bert.when(lambda: links(bert)[-1:] == [relays.back()])


@asyncio_test
async def test_another_end_of_the_log_brings_a_vault_back_at_once() -> None:
    """A rotation stands against the move away."""
    async with both() as relays:
        anna = relays.anna
        await done(anna, AppendLink, VAULT, AWAY)
        end = epoch_link(ANNA, LOG, 2, 2)
        await done(anna, OfferLinks, VAULT, len(LOG), encode_links([end]))
        told = await anna.until(Subscribed, lambda told: told.epoch == 2)
        assert (told.streams[-1].head, len(told.streams[-1].terms)) == (0, 1)
        fresh = record(2, epoch=2, key_id=key_id_of(2))
        assert (await anna.push(VAULT, 2, group(STREAM, fresh))).outcome is Outcome.DONE
