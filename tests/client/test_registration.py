"""Devices at relays that ask for registration tokens: the real one, and the one in memory, which is held to it."""

import functools
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trio

from sealwire_client.device import Device
from sealwire_client.link import Dialler
from sealwire_client.replica import Replica
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.log import MemoryLog, Verdict
from sealwire_client.vault import Vault
from sealwire_protocol.errors import LocalMisuse
from sealwire_protocol.messages import CreateVault
from sealwire_protocol.registration import token_bytes
from sealwire_relay.minting import generate_key, mint
from tests.client.party import Note, Open, founded, in_step, joined, notes_of, returned
from tests.client.realrelay import WAIT_S_MAX, RealRelay, real_relay

pytestmark = pytest.mark.trio


class InMemory:
    """The one of tests."""

    def __init__(self) -> None:
        self._relay = MemoryRelay()
        self.origin = self._relay.origin
        self.dial: Dialler = self._relay.dial
        self._relay.log.tokens = {}
        self._backup = self._relay.backup()

    def take(self, token: str, vaults: int) -> None:
        """Let this token make so many vaults; the real one finds that in the token."""
        assert self._relay.log.tokens is not None
        self._relay.log.tokens[token_bytes(token)] = vaults

    async def backup(self) -> None:
        self._backup = self._relay.backup()

    async def restore(self) -> None:
        self._relay.restore(self._backup)


Doorkeeper = InMemory | RealRelay
"""A relay that takes in vaults by token, and can be set back."""


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A key that the relay trusts."""
    return tmp_path / "minting.key"


@pytest.fixture(params=["memory", "real"])
def relay(request: pytest.FixtureRequest, key: Path) -> Iterator[Doorkeeper]:
    """A fresh relay."""
    public = generate_key(key)
    if request.param == "memory":
        yield InMemory()
        return
    with real_relay(registration="token", registration_keys=public) as real:
        yield real


@pytest.fixture
def minted(relay: Doorkeeper, key: Path) -> Callable[[int], str]:
    """Mints tokens that the relay takes."""

    def make(vaults: int) -> str:
        token = mint(key, vaults=vaults).text
        if isinstance(relay, InMemory):
            relay.take(token, vaults)
        return token

    return make


@pytest.fixture
def open_device(relay: Doorkeeper, tmp_path: Path) -> Open:
    """Opens devices of that relay."""
    return lambda name: Device.open(tmp_path / name, relay=relay.origin, dialler=relay.dial)


def in_time(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Fails a test that hangs."""

    @functools.wraps(test)
    async def limited(*args: object, **kwargs: object) -> None:
        with trio.fail_after(WAIT_S_MAX):
            await test(*args, **kwargs)

    return limited


async def why_refused(vault: Vault) -> str:
    """Why the relay does not want a vault, as people are told."""
    while True:
        moved = vault._sync.moved  # before the look: what happens during it must not be missed
        status = await vault.status()
        if status.last_error is not None and "token" in status.last_error:
            return status.last_error
        await moved.wait()


@in_time
async def test_a_vault_is_made_offline_with_a_token_and_taken_in_later(
    open_device: Open, relay: Doorkeeper, minted: Callable[[int], str], tmp_path: Path
) -> None:
    token = minted(1)
    async with Device.open(tmp_path / "a", relay=relay.origin, dialler=MemoryRelay("wss://x.test").dial) as device:
        vault = await device.create_vault("home", token=token)
        await (await notes_of(vault)).put("k", Note("written offline"))
    async with open_device("a") as device, open_device("b") as other:
        a = await returned(device)
        await a.vault.synced()
        b = await joined(other, a.vault)
        await in_step([a, b])
        assert b.dump() == {"k": "written offline"}


@in_time
async def test_without_a_token_the_vault_stays_on_the_device_until_there_is_one(
    open_device: Open, minted: Callable[[int], str]
) -> None:
    async with open_device("a") as device:
        a = await founded(device)
        await a.notes.put("k", Note("kept"))
        assert "registration token" in await why_refused(a.vault)
        assert a.dump() == {"k": "kept"}
        await a.vault.register(minted(1))
        await a.vault.synced()
        assert (await a.vault.status()).last_error is None


@in_time
async def test_another_token_is_shown_to_a_relay_that_knows_the_vault(
    open_device: Open, minted: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[bytes] = []
    create_vault = MemoryLog.create_vault

    def noting(log: MemoryLog, message: CreateVault) -> Verdict:
        shown.append(message.token)
        return create_vault(log, message)

    monkeypatch.setattr(MemoryLog, "create_vault", noting)
    async with open_device("a") as device:
        vault = await device.create_vault("home", token=minted(1))
        await vault.known()
        before = list(shown)
        token = minted(1)
        await vault.register(token)
        await vault.synced()
        if before:  # the relay is the one in memory
            assert shown == [*before, token_bytes(token)]


@in_time
async def test_a_token_that_is_used_up_is_told_as_such(open_device: Open, minted: Callable[[int], str]) -> None:
    token = minted(1)
    async with open_device("a") as first, open_device("b") as second:
        made = await first.create_vault("one", token=token)
        await made.known()
        assert "token" in await why_refused(await second.create_vault("two", token=token))
        await made.synced()


@in_time
async def test_a_text_that_is_no_token_makes_no_vault(open_device: Open) -> None:
    async with open_device("a") as device:
        with pytest.raises(LocalMisuse, match="copy the whole text"):
            await device.create_vault("home", token="sealwire:AeeW")
        assert device.vaults == []


@in_time
async def test_r15_a_restored_relay_gets_the_vault_back_from_a_member_who_never_had_the_token(
    open_device: Open, relay: Doorkeeper, minted: Callable[[int], str]
) -> None:
    await relay.backup()
    async with open_device("a") as device, open_device("b") as other:
        vault = await device.create_vault("home", token=minted(1))
        await vault.known()
        b = await joined(other, vault)
        await b.notes.put("k", Note("given back"))
        await b.vault.synced()
    await relay.restore()
    async with open_device("b") as other:
        b = await returned(other)
        await b.vault.synced()
    async with open_device("a") as device:
        a = await returned(device)
        await a.vault.synced()
        assert a.dump() == {"k": "given back"}


@in_time
async def test_a_device_keeps_what_it_shows_the_relay(
    open_device: Open, relay: Doorkeeper, minted: Callable[[int], str], tmp_path: Path
) -> None:
    token = minted(1)
    async with open_device("a") as device:
        vault = await device.create_vault("home", token=token)
        await vault.synced()
    with closing(Replica(tmp_path / "a")) as replica:
        [held] = replica.vaults.all()
        shown, receipt = replica.vaults.proofs(held.number)
        assert shown == token_bytes(token)
        assert len(receipt) == 16
        assert replica.vaults.move(held, "wss://elsewhere.example.org", b"another")
        assert replica.vaults.proofs(held.number) == (b"another", b"")
