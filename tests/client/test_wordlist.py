"""Eight words for a membership log: the same for those who were shown the same, others for anybody else."""

from copy import deepcopy

import trio

from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_client.wordlist import HEAD_WORDS, english, head_words
from sealwire_protocol.ids import VaultId
from sealwire_protocol.links import Role
from tests.client.party import all_synced, founded, in_step, joined, party, returned
from tests.support.virtual import virtual


@virtual
async def test_devices_that_were_shown_the_same_members_show_the_same_words(open_device: OpenDevice) -> None:
    async with party(open_device, 3) as guests:
        heads = {guest.vault.head for guest in guests}
        [(links, words)] = heads
        assert links == 3
        assert len(words.split()) == HEAD_WORDS and set(words.split()) <= set(english().wordlist)
        await guests[0].vault.rotate()
        await in_step(guests)
        assert len({guest.vault.head for guest in guests}) == 1
        assert guests[0].vault.head not in heads


@virtual
async def test_a_relay_that_shows_two_people_other_members_is_found_out_by_the_words(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    heads = []
    async with open_device("a") as one, open_device("b") as other:
        a = await founded(one)
        await a.vault.synced()
        invite = await a.vault.invite(role=Role.ADMIN)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(invite.joined)
            b = await other.join(invite.link)
        await all_synced([a.vault, b])
        assert a.vault.head == b.head
    for fork, name in ((deepcopy(memory_relay.log), "a"), (memory_relay.log, "b")):
        memory_relay.log = fork
        async with open_device(name) as device:
            guest = await returned(device)
            async with open_device(f"known to {name} alone") as alone:
                await joined(alone, guest.vault)
            heads.append(guest.vault.head)
    assert [links for links, _ in heads] == [3, 3]
    assert heads[0] != heads[1]


def test_the_words_of_a_log_stay_what_they_are() -> None:
    """People keep them, and compare them with devices of another version."""
    words = head_words(VaultId(bytes(range(16))), 3, bytes(range(32)))
    assert words == "main extend ethics popular tray video silly fossil"
    assert head_words(VaultId(bytes(range(16))), 4, bytes(range(32))) != words
