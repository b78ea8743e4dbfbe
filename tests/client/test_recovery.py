"""Recovery words: a device on paper, from which an empty machine becomes a member again."""

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from sealwire_client import recovery
from sealwire_client.device import KEYSTORE_NAME, Device, NoRelayError
from sealwire_client.keyring import KeyringError
from sealwire_client.recovery import WORDS, RecoveryError
from sealwire_client.testing import MemoryRelay, fitting_writer
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_protocol.ids import VaultId
from sealwire_protocol.links import Role, encode_links
from sealwire_protocol.messages import AppendLink, Deliver, Done, Message
from tests.client.party import Note, asked_of, cut_off, founded, in_step, joined, notes_of, party
from tests.support.virtual import virtual

VAULT = VaultId(bytes(range(16, 32)))
FIXED = (
    "abandon amount liar amount expire adjust cage candy arch gather drum bullet"
    " absurd math era live bid rhythm alien crouch range attend journey unaware"
)
"""The words of VAULT and a secret of the bytes 0 to 15."""


def fixed(size: int) -> bytes:
    return bytes(range(size))


def test_words_lead_to_the_same_device_and_vault() -> None:
    words = recovery.new_words(VAULT)
    again = recovery.parse(words.reveal())
    assert len(words.reveal().split(" ")) == WORDS
    assert (again.vault, again.identity.device_key) == (VAULT, words.identity.device_key)
    assert again.identity.box_key == words.identity.box_key
    other = recovery.new_words(VAULT)
    assert other.identity.device_key != words.identity.device_key


def test_words_stay_what_they_are() -> None:
    """Papers outlive programs: these words must lead to this device for good."""
    words = recovery.new_words(VAULT, fixed)
    assert words.reveal() == FIXED
    assert words.identity.device_key.hex() == "b1fbc421dd5612b57e3b9ca3db97eacbe91f4b630b87d6744de239d7e88cbc89"


@pytest.mark.parametrize(
    "typed",
    [
        str.upper,
        str.title,
        lambda words: words.replace(" ", "  \n\t"),
        lambda words: f"  {words}\n",
        lambda words: ", ".join(words.split()),
        lambda words: "\n".join(f"{number}. {word}" for number, word in enumerate(words.split(), 1)),
    ],
)
def test_how_words_are_typed_does_not_matter(typed: Callable[[str], str]) -> None:
    assert recovery.parse(typed(FIXED)).vault == VAULT


def test_which_word_is_wrong_is_told() -> None:
    words = FIXED.split()
    words[6] = "hosue"
    with pytest.raises(RecoveryError, match=r"word 7 \(hosue\) is none"):
        recovery.parse(" ".join(words))


def test_a_word_too_few_or_too_many_is_told() -> None:
    for typed, count in ((FIXED.rsplit(" ", 1)[0], 23), (f"{FIXED} zoo", 25), ("", 0)):
        with pytest.raises(RecoveryError, match=f"24 words, and these are {count}"):
            recovery.parse(typed)


def test_another_word_of_the_list_or_another_order_is_told() -> None:
    words = FIXED.split()
    for wrong in ([*words[:5], "zoo", *words[6:]], [words[1], words[0], *words[2:]]):
        with pytest.raises(RecoveryError, match="do not belong together"):
            recovery.parse(" ".join(wrong))


def test_words_print_nothing_of_themselves() -> None:
    words = recovery.new_words(VAULT)
    shown = repr(words) + str(words)
    assert not any(f" {word} " in f" {shown} " for word in words.reveal().split() if word not in {"of", "vault"})
    for carry in (copy.copy, pickle.dumps):
        with pytest.raises(TypeError):
            carry(words)


async def entries_of(device: Device) -> dict[str, str]:
    vault = device.vaults[0]
    notes = await notes_of(vault)
    await vault.synced()
    return {key: note.text for key, note in notes.items()}


@virtual
async def test_an_empty_machine_gets_everything_from_the_words(open_device: OpenDevice, tmp_path: Path) -> None:
    async with open_device("lost") as device:
        a = await founded(device)
        await a.notes.put("x", Note("kept"))
        words = await a.vault.recovery_words()
        await a.vault.synced()
        lost = device.key
    async with open_device("new") as device:
        vault = await device.recover(words.reveal(), device_name="the new one")
        assert (vault.id, vault.name) == (words.vault, "home")
        assert await entries_of(device) == {"x": "kept"}
        status = await vault.status()
        assert {member.key: member.name for member in status.devices} == {
            lost: "",
            words.identity.device_key: recovery.NAME,
            device.key: "the new one",
        }
        await (await notes_of(vault)).put("y", Note("by the new one"))
        await vault.synced()
    # It is a device of its own: the paper's keys are not on the machine, and not needed again.
    kept = json.loads((tmp_path / "new" / KEYSTORE_NAME).read_bytes())
    assert words.identity.seed.reveal().hex() not in json.dumps(kept)
    assert kept["device"] == device.key.hex() != words.identity.device_key.hex()
    async with open_device("new") as device:
        assert await entries_of(device) == {"x": "kept", "y": "by the new one"}
    async with open_device("lost") as device:
        assert await entries_of(device) == {"x": "kept", "y": "by the new one"}


@virtual
async def test_who_has_recovered_is_an_admin(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with open_device("a") as first, open_device("b") as second, open_device("c") as third:
        a = await founded(first)
        words = await a.vault.recovery_words()
        vault = await second.recover(words.reveal())
        await joined(third, vault)
        assert (await vault.status()).members == 4
        membership = memory_relay.log.vaults[vault.id].membership
        roles = [member.role for member in membership.members.values()]
        assert roles == [Role.ADMIN, Role.ADMIN, Role.ADMIN, Role.WRITER]


@virtual
async def test_words_may_be_used_again_and_on_a_device_that_is_a_member(open_device: OpenDevice) -> None:
    async with open_device("a") as first, open_device("b") as second, open_device("c") as third:
        a = await founded(first)
        words = (await a.vault.recovery_words()).reveal()
        assert await first.recover(words) is a.vault
        vault = await second.recover(words)
        assert await second.recover(words) is vault
        await third.recover(words)
        await vault.known()
        assert (await vault.status()).members == 4


@virtual
async def test_the_connection_under_the_papers_keys_ends(open_device: OpenDevice) -> None:
    async with open_device("a") as first, open_device("b") as second:
        a = await founded(first)
        words = await a.vault.recovery_words()
        await second.recover(words.reveal())
        assert words.identity.device_key not in {device for _, device in second._connections._links}


@virtual
async def test_words_that_the_relay_does_not_know_are_told(open_device: OpenDevice) -> None:
    async with party(open_device, 1) as guests, open_device("b") as second:
        (a,) = guests
        for stranger in (recovery.new_words(a.vault.id), recovery.new_words(VAULT)):
            with pytest.raises(RecoveryError, match="knows no vault to which these words belong"):
                await second.recover(stranger.reveal())
        assert second.vaults == []


@virtual
async def test_a_writer_makes_no_recovery_words(open_device: OpenDevice) -> None:
    async with party(open_device) as guests:
        _, b = guests
        with pytest.raises(KeyringError, match="may not add devices"):
            await b.vault.recovery_words()


def test_recovery_needs_a_relay(tmp_path: Path, memory_relay: MemoryRelay) -> None:
    @virtual
    async def test() -> None:
        async with Device.open(tmp_path / "b", dialler=memory_relay.dial, writer=fitting_writer) as device:
            with pytest.raises(NoRelayError, match="relay="):
                await device.recover(recovery.new_words(VAULT).reveal())

    test()


@virtual
async def test_recovery_waits_for_the_relay(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with open_device("a") as first, open_device("b") as second:
        words = await (await founded(first)).vault.recovery_words()
        async with trio.open_nursery() as nursery:
            async with cut_off(memory_relay):
                nursery.start_soon(second.recover, words.reveal())
                await trio.sleep(100)
                assert second.vaults == []
        assert len(second.vaults) == 1


@virtual
async def test_a_relay_that_shows_another_vault_is_not_believed(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    """The words name the vault by the hash of its first link."""
    async with open_device("a") as first, open_device("b") as second:
        a = await founded(first)
        other = await founded(first, "other")
        words = await a.vault.recovery_words()
        await other.vault.recovery_words()
        links = encode_links(memory_relay.log.vaults[other.vault.id].links)

        def lie(message: Message) -> list[Message]:
            if isinstance(message, Deliver) and message.vault == a.vault.id:
                return [replace(message, segment=links)]
            return [message]

        memory_relay.alter = lie
        with pytest.raises(RecoveryError, match="another vault"):
            await second.recover(words.reveal())
        assert second.vaults == []


@virtual
async def test_a_machine_that_ended_in_between_goes_on(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with open_device("a") as first:
        a = await founded(first)
        words = (await a.vault.recovery_words()).reveal()
        with asked_of(memory_relay, AppendLink) as asked:
            memory_relay.alter = lambda message: [] if isinstance(message, Done) else [message]
            async with open_device("b") as second:
                with trio.move_on_after(10):
                    await second.recover(words)
                assert second.vaults == []
            memory_relay.alter = None
            async with open_device("b") as second:
                vault = await second.recover(words)
                await vault.synced()
                assert (await vault.status()).members == 3
        assert len(asked) == 1


@virtual
async def test_two_machines_recover_at_once(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    memory_relay.delay = 0.05
    async with open_device("a") as first, open_device("b") as second, open_device("c") as third:
        a = await founded(first)
        words = (await a.vault.recovery_words()).reveal()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(second.recover, words)
            nursery.start_soon(third.recover, words)
        assert len(memory_relay.log.vaults[a.vault.id].links) == 4
        await in_step([a])


@virtual
async def test_words_that_were_removed_are_worth_nothing(open_device: OpenDevice) -> None:
    async with open_device("a") as first, open_device("b") as second:
        a = await founded(first)
        words = await a.vault.recovery_words()
        await a.vault.remove(words.identity.device_key)
        with pytest.raises(RecoveryError, match="removed"):
            await second.recover(words.reveal())
        assert second.vaults == []


@virtual
async def test_words_open_what_was_written_before_and_after_a_new_key(open_device: OpenDevice) -> None:
    async with open_device("a") as first, open_device("b") as second:
        a = await founded(first)
        await a.notes.put("before", Note("1"))
        words = await a.vault.recovery_words()
        await a.vault.rotate()
        await a.notes.put("after", Note("2"))
        await a.vault.synced()
        await second.recover(words.reveal())
        assert await entries_of(second) == {"before": "1", "after": "2"}
