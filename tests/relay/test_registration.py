"""Who may make vaults: everybody, by token, nobody; and what a restored relay has lost comes back in every mode."""

import asyncio
import base64
from typing import Any, NamedTuple

import pytest
from nacl.signing import SigningKey

from sealwire_protocol.errors import Action, FaultCode
from sealwire_protocol.ids import MEMBERSHIP, StreamId, VaultId
from sealwire_protocol.links import vault_id_of
from sealwire_protocol.messages import AppendLink, CreateVault, Done, Fault
from sealwire_protocol.registration import Token, encode_token, key_id_of, signed_part
from sealwire_relay.registration import Admitted, Registration, receipt_of
from sealwire_relay.settings import RegistrationMode, Settings
from sealwire_relay.signatures import verify
from sealwire_relay.store.kept import MemoryDatabase
from tests.relay.asking import ANNA, BERT, ask, done
from tests.support.aio import asyncio_test
from tests.support.device import Device, add_link, genesis
from tests.support.relay import Mishap, TroubledStore, memory_store, running

KEY, STRANGER = SigningKey(bytes([7]) * 32), SigningKey(bytes([8]) * 32)
LATER = 4_000_000_000
TOKEN = Token(key_id_of(bytes(KEY.verify_key)), bytes(range(16)), LATER, 2, holder="Anna")
UNSIGNED = bytes(64)


def settings(mode: RegistrationMode, *keys: SigningKey) -> dict[str, Any]:
    trusted = tuple(base64.b64encode(bytes(key.verify_key)).decode() for key in keys or (KEY,))
    return {"registration": mode, "registration_keys": trusted}


def minted(token: Token = TOKEN, key: SigningKey = KEY) -> bytes:
    unsigned = encode_token(token)
    return unsigned + key.sign(signed_part(unsigned + UNSIGNED)).signature


def altered(place: int, value: bytes) -> bytes:
    raw = minted()
    return raw[:place] + value + raw[place + len(value) :]


HOSTILE = {
    "none": (b"", "none was given"),
    "rubbish": (b"\1" + bytes(range(200)), "trusts"),
    "empty-signature": (encode_token(TOKEN) + UNSIGNED, "trusts"),
    "expired": (minted(TOKEN._replace(expires=1_000_000_000)), "expired (2001-09-09"),
    "expired-long-ago": (minted(TOKEN._replace(expires=0)), "expired (1970"),
    "wrong-key": (minted(key=STRANGER), "trusts"),
    "unknown-key": (minted(TOKEN._replace(key_id=key_id_of(bytes(STRANGER.verify_key))), STRANGER), "trusts"),
    "more-vaults": (altered(33, b"\0\0\xff\xff"), "trusts"),
    "another-serial": (altered(9, b"\xee"), "trusts"),
    "later": (altered(25, b"\x00\x01"), "trusts"),
    "more-room": (altered(37, b"\x00\x01"), "trusts"),
    "another-holder": (altered(46, b"B"), "trusts"),
    "without-context": (encode_token(TOKEN) + KEY.sign(encode_token(TOKEN)).signature, "trusts"),
    "another-format": (altered(0, b"\2"), "trusts"),
}


class Asked(NamedTuple):
    code: FaultCode
    action: Action
    why: str


async def asked(device: Device, link: bytes, *proofs: bytes) -> Asked | None:
    """What is said when a vault is presented; None: it is there now."""
    answer = await ask(device, CreateVault, link, *proofs)
    return None if isinstance(answer, Done) else Asked(answer.code, answer.action, answer.message)


async def receipt(device: Device, vault: VaultId) -> bytes:
    return (await device.subscribe(vault, MEMBERSHIP)).receipt


@pytest.mark.parametrize(("token", "why"), HOSTILE.values(), ids=HOSTILE)
def test_a_vault_is_not_made_with_a_token_that_is_not_valid(token: bytes, why: str) -> None:
    @asyncio_test
    async def run() -> None:
        database = MemoryDatabase()
        async with running(await memory_store(database), **settings("token")) as relay:
            async with await Device.open(relay.port, ANNA) as anna:
                said = await asked(anna, genesis(ANNA), token)
                assert said is not None
                assert said[:2] == (FaultCode.NOT_ALLOWED, Action.STOP)
                assert why in said.why
                assert not database.vaults and not database.tokens

    run()


@asyncio_test
async def test_a_token_makes_as_many_vaults_as_it_allows_and_no_more() -> None:
    database = MemoryDatabase()
    async with running(await memory_store(database), **settings("token", STRANGER, KEY)) as relay:
        async with await Device.open(relay.port, ANNA) as anna, await Device.open(relay.port, BERT) as bert:
            assert await asked(anna, genesis(ANNA), minted()) is None
            assert await asked(bert, genesis(BERT), minted()) is None
            said = await asked(bert, genesis(BERT, 1), minted())
            assert said is not None
            assert said[:2] == (FaultCode.QUOTA, Action.STOP)
            assert "have been made" in said.why
            # Of one serial all tokens are one, as which it was minted counts.
            more = minted(TOKEN._replace(vaults=3))
            assert await asked(bert, genesis(BERT, 1), more) is None
            assert await asked(bert, genesis(BERT, 2), more) is not None
            other = minted(TOKEN._replace(serial=bytes(16)))
            assert await asked(bert, genesis(BERT, 2), other) is None
            assert len(database.vaults) == 4


@asyncio_test
async def test_two_relays_at_once_count_one_token_together() -> None:
    database = MemoryDatabase()
    one, other = [running(await memory_store(database), **settings("token")) for _ in range(2)]
    async with one as first, other as second:
        async with await Device.open(first.port, ANNA) as anna, await Device.open(second.port, BERT) as bert:
            said = await asyncio.gather(
                *(asked(anna, genesis(ANNA, n), minted()) for n in range(3)),
                *(asked(bert, genesis(BERT, n), minted()) for n in range(3)),
            )
            assert sum(each is None for each in said) == TOKEN.vaults == len(database.vaults)


@asyncio_test
async def test_a_vault_that_is_there_is_presented_without_a_token_and_uses_up_none() -> None:
    database = MemoryDatabase()
    async with running(await memory_store(database), **settings("token")) as relay:
        async with await Device.open(relay.port, ANNA) as anna, await Device.open(relay.port, BERT) as bert:
            await done(anna, CreateVault, genesis(ANNA), minted())
            for token in (minted(), b"", b"rubbish", minted(key=STRANGER)):
                await done(bert, CreateVault, genesis(ANNA), token)
            assert database.tokens == {TOKEN.serial: 1}
    async with running(await memory_store(database), **settings("closed")) as relay:
        async with await Device.open(relay.port, BERT) as bert:
            await done(bert, CreateVault, genesis(ANNA))


@asyncio_test
async def test_a_spent_token_is_no_hindrance_for_a_vault_that_was_made_meanwhile() -> None:
    database = MemoryDatabase()
    store = TroubledStore(await memory_store(database))
    once = minted(TOKEN._replace(vaults=1))
    async with running(store.store, **settings("token")) as relay:
        async with await Device.open(relay.port, ANNA) as anna, await Device.open(relay.port, BERT) as bert:
            link = genesis(ANNA)

            async def overtake() -> None:
                await done(bert, CreateVault, link, once)

            store.expect("create_vault", Mishap(made=True, before=overtake))
            await done(anna, CreateVault, link, once)
            assert database.tokens == {TOKEN.serial: 1}


@asyncio_test
async def test_a_closed_relay_takes_in_nothing_new_and_an_open_one_everything() -> None:
    async with running(await memory_store(), **settings("closed")) as relay:
        async with await Device.open(relay.port, ANNA) as anna:
            said = await asked(anna, genesis(ANNA), minted())
            assert said is not None
            assert said[:2] == (FaultCode.NOT_ALLOWED, Action.STOP)
            assert "no new vaults" in said.why
    async with running(await memory_store(), **settings("open")) as relay:
        async with await Device.open(relay.port, ANNA) as anna:
            for nonce, token in enumerate((b"", b"rubbish", minted(key=STRANGER))):
                assert await asked(anna, genesis(ANNA, nonce), token) is None


@asyncio_test
async def test_a_link_that_is_none_is_told_as_such_before_the_token_is_looked_at() -> None:
    async with running(await memory_store(), **settings("closed")) as relay:
        async with await Device.open(relay.port, ANNA) as anna:
            said = await asked(anna, b"rubbish")
            assert said is not None and said.code is FaultCode.BAD_LINK


# --- what a restored relay has lost


@pytest.mark.parametrize("mode", ["open", "token", "closed"])
def test_r15_a_vault_that_a_restored_relay_has_lost_comes_back_from_any_member(mode: RegistrationMode) -> None:
    @asyncio_test
    async def run() -> None:
        database = MemoryDatabase(receipt_key=bytes(range(16)))
        backup = database.copy()
        log = [genesis(ANNA)]
        log.append(add_link(ANNA, log, BERT))
        vault = vault_id_of(log[0])
        async with running(await memory_store(database), **settings("token")) as relay:
            async with await Device.open(relay.port, ANNA) as anna, await Device.open(relay.port, BERT) as bert:
                await done(anna, CreateVault, log[0], minted())
                await done(anna, AppendLink, vault, log[1])
                shown = await receipt(bert, vault)
                assert shown == await receipt(anna, vault) != b""
        async with running(await memory_store(backup), **settings(mode)) as relay:
            async with await Device.open(relay.port, BERT) as bert:
                await done(bert, CreateVault, log[0], b"", shown)
                await done(bert, AppendLink, vault, log[1])
                assert await receipt(bert, vault) == shown
                assert backup.tokens == {}

    run()


@pytest.mark.parametrize("mode", ["token", "closed"])
def test_a_receipt_is_of_one_vault_and_one_database(mode: RegistrationMode) -> None:
    @asyncio_test
    async def run() -> None:
        database = MemoryDatabase(receipt_key=bytes(range(16)))
        link, vault = genesis(ANNA), vault_id_of(genesis(ANNA))
        right = receipt_of(database.receipt_key, vault)
        wrong = [
            receipt_of(database.receipt_key, vault_id_of(genesis(ANNA, 1))),
            receipt_of(bytes(16), vault),
            right[:-1],
            right + b"\0",
            bytes(16),
            bytes(512),
        ]
        async with running(await memory_store(database), **settings(mode)) as relay:
            async with await Device.open(relay.port, ANNA) as anna:
                for each in wrong:
                    said = await asked(anna, link, b"", each)
                    assert said is not None and said.code is FaultCode.NOT_ALLOWED
                assert await asked(anna, link, b"", right) is None

    run()


@asyncio_test
async def test_a_receipt_comes_with_stream_0_alone_and_to_members_alone() -> None:
    async with running(await memory_store()) as relay:
        async with await Device.open(relay.port, ANNA) as anna, await Device.open(relay.port, BERT) as bert:
            vault, _ = await anna.create_vault()
            assert (await anna.subscribe(vault, StreamId(b"a stream"))).receipt == b""
            assert len(await receipt(anna, vault)) == 16
            await bert.subscribe_raw(vault, MEMBERSHIP)
            assert (await bert.until(Fault)).code is FaultCode.NO_SUCH_VAULT


# --- by itself


@pytest.mark.parametrize(("seconds", "admitted"), [(LATER - 1, True), (LATER, True), (LATER + 1, False)])
def test_a_token_ends_at_the_second_that_it_names(seconds: int, admitted: bool) -> None:
    @asyncio_test
    async def run() -> None:
        registration = Registration(await memory_store(), Settings(**settings("token")), verify, lambda: float(seconds))
        answer = await registration.admit(VaultId(bytes(16)), CreateVault(1, b"", minted()))
        assert isinstance(answer, Admitted) is admitted

    run()
