"""A vault with a thousand member devices changes its key: how long that takes, and how large the link is.

Two of them are real devices on a real relay; the others have joined, and are away. A device is removed the same way.
"""

import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import trio

from sealwire_client import cipher
from sealwire_client.belonging import has_keys_of
from sealwire_client.identity import DeviceIdentity
from sealwire_client.linkmaking import add_device_link, new_epoch_link
from sealwire_client.sync import VaultSync
from sealwire_protocol.ids import Author
from sealwire_protocol.limits import EPOCH_LINK_BYTES_MAX
from sealwire_protocol.links import Role, encode_links
from sealwire_protocol.messages import NO_REQUEST, OfferLinks
from tests.acceptance.notes import joined
from tests.faults.site import site

LIMIT_S = 900
LIMIT_SHORT_S = 360

LINKS_AT_ONCE: Final = 400

SIGNED_S_MAX: Final = 1.0
"""For an admin to make the link."""

HEARD_S_MAX: Final = 5.0
"""From the request until another device seals under the new key."""


async def prove(folder: Path, members: int, timed: bool) -> dict[str, object]:
    """The whole story; the figures. `timed`: it must keep within its time."""
    async with site() as place, AsyncExitStack() as stack:
        await place.start(place.relays[0])
        here = await joined(stack, place.origin, folder / "here", None)
        there = await joined(stack, place.origin, folder / "there", here)
        one, other = here.vault._sync, there.vault._sync
        await fill(one, members)
        await other.until(lambda sync: sync.membership.head >= members)
        began = trio.current_time()
        raw = new_epoch_link(one.identity, one.membership, one.keys)
        signed_s = trio.current_time() - began
        began = trio.current_time()
        await here.vault.rotate()
        here_s = trio.current_time() - began
        await has_keys_of(other, 2)
        heard_s = trio.current_time() - began
        await there.write("after", range(100))
        await there.synced()
        await here.synced()
        began = trio.current_time()
        await here.vault.remove(one.membership.members[Author(3)].device)
        removed_s = trio.current_time() - began
        await has_keys_of(other, 3)
        await there.write("later", range(100))
        await there.synced()
        await here.synced()
        equal = here.everything() == there.everything()
        present = len(one.membership.present())
    return {
        "ok": equal
        and present == members - 1
        and len(raw) <= EPOCH_LINK_BYTES_MAX
        and (not timed or (signed_s <= SIGNED_S_MAX and heard_s <= HEARD_S_MAX)),
        "members": members,
        "link_bytes": len(raw),
        "link_bytes_max": EPOCH_LINK_BYTES_MAX,
        "signed_s": round(signed_s, 3),
        "rotated_s": round(here_s, 3),
        "heard_s": round(heard_s, 3),
        "removed_s": round(removed_s, 3),
        "equal": equal,
    }


async def fill(sync: VaultSync, members: int) -> None:
    """Add devices to the vault that are never there, until it has so many: as many links at once as a relay takes."""
    membership, links, after = sync.membership.copy(), list[bytes](), sync.membership.head
    while len(membership.members) < members:
        device = DeviceIdentity.generate()
        keys = device.device_key, device.box_key
        links.append(add_device_link(sync.identity, membership, sync.keys, *keys, Role.WRITER, "away"))
        membership.apply(links[-1], cipher.verify)
        if len(links) == LINKS_AT_ONCE or len(membership.members) == members:
            await sync.link.request(OfferLinks(NO_REQUEST, sync.held.id, after, encode_links(links)))
            links, after = [], membership.head
    await sync.until(lambda sync: sync.membership.head >= members)


def run(short: bool) -> dict[str, object]:
    """The proof: ok if the link keeps within its size, and the long form within its time."""
    with tempfile.TemporaryDirectory(prefix="rotation-", ignore_cleanup_errors=True) as name:
        return trio.run(prove, Path(name), 200 if short else 1_000, not short)
