"""What a device says and does while its vault is on its way to another relay."""

from pathlib import Path

import pytest
import trio

from sealwire_client import cipher
from sealwire_client.linkmaking import move_link
from sealwire_client.policies import merge
from sealwire_client.status import State
from sealwire_protocol.ids import MEMBERSHIP
from sealwire_protocol.links import decode_link, encode_links
from sealwire_protocol.messages import AppendLink, Message
from tests.client.party import Note, comes, in_step, party, records, returned, told
from tests.client.test_moving import NEW, OLD, Opens, Relays
from tests.support.virtual import virtual


@virtual
async def test_a_device_that_is_to_go_to_another_relay_is_not_in_step_before_it_is_there(tmp_path: Path) -> None:
    """Whoever waits for that, as a command does, ends with the vault where it is now."""
    opens = Opens(tmp_path, Relays(OLD, NEW))
    async with party(opens):
        pass
    async with opens("device 0") as first:
        host = await returned(first)
        await host.vault.move(NEW)
        async with opens("device 1") as second:
            other = await returned(second)
            await other.vault.synced()
            assert other.vault.origin == NEW


@virtual
async def test_a_move_to_a_relay_that_is_down_waits_and_the_status_tells_for_which(tmp_path: Path) -> None:
    relays = Relays(OLD, NEW)
    opens = Opens(tmp_path, relays)
    relays[NEW].stop()
    async with party(opens) as (host, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.vault.move, NEW)
            await told(host, f"the vault is to move to {NEW}")
            status = await host.vault.status()
            assert (status.state, host.vault.origin) == (State.SYNCED, OLD)
            assert "nothing was moved" in (status.last_error or "")
            nursery.cancel_scope.cancel()
        assert (await host.vault.status()).last_error is None
        relays[NEW].start()
        await host.vault.move(NEW)
        assert ((await host.vault.status()).last_error, host.vault.origin) == (None, NEW)


@virtual
async def test_who_changes_the_members_while_the_new_relay_is_given_the_log_waits_for_that(tmp_path: Path) -> None:
    relays = Relays(OLD, NEW)
    async with party(Opens(tmp_path, relays)) as (host, _), trio.open_nursery() as nursery:
        log, swallowed = host.vault._sync.members, list[Message]()

        def swallow(message: Message) -> list[Message]:
            if isinstance(message, AppendLink) and decode_link(message.link).seq <= log.membership.moved_at:
                swallowed.append(message)
                return []
            return [message]

        relays[NEW].mishear = swallow
        nursery.start_soon(host.vault.move, NEW)
        await comes(lambda: host.vault.origin == NEW and len(swallowed) > 0)
        nursery.start_soon(host.vault.rotate)
        await trio.sleep(30)
        relays[NEW].mishear = None
        relays[NEW].cut()
        await comes(lambda: host.vault._sync.keys.current.number == 2)


@pytest.mark.parametrize("on_to", [OLD, "wss://third.test"])
@virtual
async def test_a_vault_may_move_on_while_its_devices_still_give_back_what_it_holds(tmp_path: Path, on_to: str) -> None:
    async with party(Opens(tmp_path, Relays(OLD, NEW, "wss://third.test"))) as (host, other):
        await host.notes.put("a", Note("one"))
        await other.notes.put("b", Note("two"))
        await in_step([host, other])
        await host.vault.move(NEW)
        await host.vault.move(on_to)
        await comes(lambda: host.vault.origin == other.vault.origin == on_to)
        await in_step([host, other])
        assert host.dump() == {"a": "one", "b": "two"}
        assert not await host.vault.stuck()


@virtual
async def test_who_only_hears_that_the_vault_was_away_and_is_back_gives_back_what_the_relay_has_dropped(
    tmp_path: Path,
) -> None:
    """As from a process of the relay that did not take these links in itself: nobody is told to subscribe again."""
    relays = Relays(OLD, NEW)
    old = relays[OLD]
    async with party(Opens(tmp_path, relays)) as found:
        merged = [await guest.vault.collection("merged", Note, policy=merge()) for guest in found]
        host, _ = found
        await merged[0].put("k", Note("zero"))
        await in_step(found)
        old.delay = 1.0  # so that both are on their way at once, and one of them is refused
        for number, notes in enumerate(merged):
            await notes.put("k", Note(f"by {number}", number))
        await in_step(found)
        old.delay = 0.0
        stream = merged[0].held.stream
        assert any(guest.vault._sync._streams[stream].won for guest in found)
        sync, kept = host.vault._sync, old.log.vaults[host.vault.id]
        membership, last = sync.membership.copy(), len(kept.links)
        for origin in (NEW, OLD):
            raw = move_link(sync.identity, membership, sync.keys, origin)
            membership.apply(raw, cipher.verify)
            old.log.append_link(host.device.key, AppendLink(1, host.vault.id, raw))
        assert records(old, host.vault) == 0
        old.offer(old.log.deliver(host.vault.id, MEMBERSHIP, last, last + 2, encode_links(kept.links[last:])))
        await comes(lambda: records(old, host.vault) > 0)
        await in_step(found)
        assert merged[0].get("k") == merged[1].get("k") is not None
