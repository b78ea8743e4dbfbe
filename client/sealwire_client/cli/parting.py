"""`vault leave | delete | forget`: a device parts with a vault, or everybody does."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sealwire_client.cli import options
from sealwire_client.cli.failures import Failure, relay_missing, usage
from sealwire_client.cli.output import Output

if TYPE_CHECKING:
    from sealwire_client.cli.place import Place
    from sealwire_client.device import Device
    from sealwire_client.vault import Vault

_discard = click.option("--discard-unsent", is_flag=True, help="What was not sent from this device is to be lost.")
_yes = click.option("--yes", is_flag=True, help="Do not ask first.")


@click.command(short_help="Leave the vault, and delete it on this device.")
@_discard
@_yes
@options.vault
@options.wait(20, "Longest wait for the relay, which is told of it.")
@options.folder_and_json
def leave(discard_unsent: bool, yes: bool, vault: str | None, wait: float, folder: Path | None, as_json: bool) -> None:
    """Leave the vault: this device is none of its members any more, and deletes all that it holds of it.

    The other devices change the key then, and keep what they have. If writes were not sent, nothing is done, unless
    --discard-unsent says that these are to be lost. The only admin cannot leave.
    """
    output = Output(as_json)

    async def leaves(device: Device, chosen: Vault) -> str:
        await chosen.leave(discard=discard_unsent)
        return f"This device has left vault {chosen.name}, and holds nothing of it any more"

    question = "Leave vault {!r}, and delete all of it on this device?"
    _run(folder, vault, wait, output, question, yes, leaves)


@click.command(short_help="Delete the vault, for all of its devices.")
@_yes
@options.vault
@options.wait(20, "Longest wait for the relay, which is told of it.")
@options.folder_and_json
def delete(yes: bool, vault: str | None, wait: float, folder: Path | None, as_json: bool) -> None:
    """Delete the vault, for all of its devices: the relay drops what was written in it. Only an admin can do this, and
    nobody can undo it.

    Each device keeps what it holds, to be read, until `sealwire vault forget` is said there.
    """
    output = Output(as_json)

    async def deletes(device: Device, chosen: Vault) -> str:
        await chosen.delete()
        return f"Vault {chosen.name} was deleted; what this device holds of it stays until `sealwire vault forget`"

    _run(folder, vault, wait, output, "Delete vault {!r} for all of its devices?", yes, deletes)


@click.command(short_help="Delete what is left here of a vault that is over.")
@_discard
@click.option("--without-relay", is_flag=True, help="Also if the relay cannot be reached, which is gone for good.")
@_yes
@options.vault
@options.wait(5, "Longest wait for the relay to say that the vault is over, if that is not known yet.")
@options.folder_and_json
def forget(
    discard_unsent: bool,
    without_relay: bool,
    yes: bool,
    vault: str | None,
    wait: float,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Delete what this device holds of a vault that was deleted, or from which the device was removed; also if it was
    away then, and the relay says that it has no such vault for it.

    With --without-relay also of a vault whose relay is gone for good: nobody is told of it, so that the device stays a
    member for the others until an admin removes it.

    If writes were not sent, nothing is done, unless --discard-unsent says that these are to be lost.
    """
    output = Output(as_json)

    async def forgets(device: Device, chosen: Vault) -> str:
        from sealwire_client.cli import session
        from sealwire_client.cli.output import Bar

        with Bar("Asking the relay", output) as bar:
            await session.until(chosen, lambda _: chosen.over is not None or chosen.is_known is not None, wait, bar)
        await device.forget(chosen, discard=discard_unsent, without_relay=without_relay)
        return f"This device holds nothing of vault {chosen.name} any more"

    _run(folder, vault, 0, output, "Delete all that this device holds of vault {!r}?", yes, forgets)


def _run(
    folder: Path | None,
    name: str | None,
    wait: float,
    output: Output,
    question: str,
    yes: bool,
    part: Callable[[Device, Vault], Awaitable[str]],
) -> None:
    from sealwire_client.cli import place, running

    found = place.existing(folder)
    if not yes and not sys.stdin.isatty():
        raise usage("That cannot be undone, and nobody is there to ask: say --yes")
    running.run(lambda: _part(found, name, wait, output, "" if yes else question, part))


async def _part(
    place: Place,
    name: str | None,
    wait: float,
    output: Output,
    question: str,
    part: Callable[[Device, Vault], Awaitable[str]],
) -> None:
    """`wait` 0: the relay is not needed."""
    import math

    import trio

    from sealwire_client.cli import config, session

    async with session.opened(place) as device:
        chosen = session.chosen(device, place, name)
        if question and not click.confirm(question.format(chosen.name), err=True):
            raise Failure("Nothing was done", "interrupted")
        if wait:
            await session.reach(device, chosen.origin, wait, "nothing was done")
        told = None
        with trio.move_on_after(wait or math.inf):
            told = await part(device, chosen)
        if told is None:
            why = session.why_not(await chosen.status(), chosen.origin, wait)
            raise relay_missing(f"It is not known whether that was done: {why}; say the same again")
        held = chosen in device.vaults
        kept = config.read(place.folder)
        if not held and kept.vault == chosen.id.hex():
            config.write(place.folder, config.Config(kept.relay))
        output.answer({"vault": chosen.name, "id": chosen.id.hex(), "held": held}, told)
