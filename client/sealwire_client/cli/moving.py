"""`vault move | follow`: a vault goes to another relay, and this device with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sealwire_client.cli import options
from sealwire_client.cli.failures import relay_missing
from sealwire_client.cli.output import Output

if TYPE_CHECKING:
    from sealwire_client.cli.place import Place
    from sealwire_client.device import Device
    from sealwire_client.vault import Vault

    _Step = Callable[[Device, Vault], Awaitable[None]]


@click.command(short_help="Move the vault to another relay.")
@click.option("--relay", required=True, metavar="ORIGIN", help="The new relay's address, wss://host[:port].")
@click.option("--token", metavar="TEXT", help="A registration token, if the new relay asks for one.")
@click.option("--without-old", is_flag=True, help="The present relay is gone for good.")
@click.option("--force", is_flag=True, help="Although this device may lack entries of an app's collections.")
@options.vault
@options.wait(30, "Longest wait for the two relays, and for the new one to have everything.")
@options.folder_and_json
def move(
    relay: str,
    token: str | None,
    without_old: bool,
    force: bool,
    vault: str | None,
    wait: float,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Move the vault to another relay, to which its devices follow when they hear of it. Only an admin can do this.

    The entries go there from the devices. The present relay keeps what it has, so that devices which come late hear of
    the move there; if it is gone (--without-old), say `sealwire vault follow` on each of them.
    """
    from sealwire_client.cli import place, running

    output, found = Output(as_json), place.existing(folder)

    async def reaches(device: Device, chosen: Vault) -> None:
        from sealwire_client.cli import session
        from sealwire_client.transport import check_origin
        from sealwire_protocol.login import normal_origin

        origin = normal_origin(relay)
        check_origin(origin)
        session.check_not_over(chosen)
        if not without_old:
            then = "nothing was moved; if the present relay is gone for good, say --without-old"
            await session.reach_for(device, chosen, wait, then)
        await session.reach(device, origin, wait, "nothing was moved; say the same again when that relay is there")

    async def moves(device: Device, chosen: Vault) -> None:
        await chosen.move(relay, token=token, without_old=without_old, force=force)

    running.run(lambda: _go(found, vault, wait, output, moves, reaches))


@click.command(short_help="Follow the vault to a relay to which it was moved.")
@click.option("--relay", required=True, metavar="ORIGIN", help="The address to which an admin has moved it.")
@options.vault
@options.wait(30, "Longest wait for that relay, and for everything to be sent and fetched.")
@options.folder_and_json
def follow(relay: str, vault: str | None, wait: float, folder: Path | None, as_json: bool) -> None:
    """Go over to the relay to which an admin has moved the vault, where the former one is gone and cannot tell."""
    from sealwire_client.cli import place, running

    output, found = Output(as_json), place.existing(folder)

    async def follows(device: Device, chosen: Vault) -> None:
        await device.follow(chosen, relay)

    running.run(lambda: _go(found, vault, wait, output, follows))


async def _go(
    place: Place, name: str | None, wait: float, output: Output, go: _Step, reaches: _Step | None = None
) -> None:
    """`reaches` comes first, while nothing is done yet: it raises Failure if a relay is not there."""
    import trio

    from sealwire_client.cli import session

    async with session.opened(place) as device:
        chosen = session.chosen(device, place, name)
        await session.open_known(chosen)
        if reaches is not None:
            await reaches(device, chosen)
        gone = done = False
        with trio.move_on_after(wait):
            await go(device, chosen)
            gone = True
            await chosen.synced()
            done = True
        why = None if done else session.why_not(await chosen.status(), chosen.origin, wait)
        if not gone:
            raise relay_missing(f"It is not known whether the vault has moved: {why}; say the same again")
        told = f"the vault {chosen.name} is at {chosen.origin}"
        output.answer(
            {"vault": chosen.name, "id": chosen.id.hex(), "relay": chosen.origin, "synced": done, "why": why},
            told if done else f"{told}; not all is there yet ({why}): whatever runs here next goes on with it",
        )
