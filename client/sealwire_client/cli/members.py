"""`init`, `invite` and `join`: making a device and its vault, and bringing devices together."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sealwire_client.cli import options
from sealwire_client.cli.failures import Failure, relay_missing
from sealwire_client.cli.output import Output, visible

if TYPE_CHECKING:
    from sealwire_client.cli.place import Place
    from sealwire_client.device import Device
    from sealwire_client.vault import PendingInvite, Vault

INVITE_SECONDS: Final = 600
INVITE_SECONDS_MAX: Final = 86_400
"""What a relay keeps a mailbox for at most."""

NAME_CHARACTERS_MAX: Final = 32
"""A device's own name, when it is taken from the machine's."""


def _default_name() -> str:
    return socket.gethostname().split(".")[0][:NAME_CHARACTERS_MAX]


@click.command(short_help="Make this device, and a vault.")
@click.option(
    "--relay", required=True, envvar="SEALWIRE_RELAY", metavar="URL", help="The relay, as in wss://relay.example.org."
)
@click.option("--vault", default="home", show_default=True, metavar="NAME", help="What to call the vault.")
@click.option("--name", metavar="DEVICE", help="What to call this device; else the name of this machine.")
@options.passphrase
@options.wait(5, "Longest wait for the relay; 0: do not wait.")
@options.folder_and_json
def init(
    relay: str, vault: str, name: str | None, protect: bool, wait: float, folder: Path | None, as_json: bool
) -> None:
    """Make this device, with keys of its own, and a vault of which it is the first member.

    Works without the relay too, which is then told of the vault later. In a folder that has a device already it
    makes a further vault. If the vault is there already and nothing of it has left this device yet, it gets this
    relay: so a wrong address is corrected.
    """
    from sealwire_client.cli import place, running
    from sealwire_client.transport import check_origin
    from sealwire_protocol.login import normal_origin

    origin = normal_origin(relay)
    check_origin(origin)
    output, found = Output(as_json), place.new(folder, protect)
    running.run(lambda: _init(found, origin, vault, name or _default_name(), wait, output))


async def _init(place: Place, relay: str, name: str, device_name: str, wait: float, output: Output) -> None:
    from sealwire_client.cli import session

    async with session.opened(place, relay) as device:
        held = next((vault for vault in device.vaults if vault.name == name), None)
        if held is None:
            vault = await device.create_vault(name, device_name=device_name)
            _keep_default(place, vault)
            made = f"Vault {name} is made on device {device_name}"
            await _tell_made(made, place, device, vault, wait, output)
            return
    if held.origin == relay or not session.move(place, held.id, relay):
        raise Failure(
            f"The device in {place.folder} holds a vault {name!r} already, with the relay {held.origin}: nothing was"
            " changed; go on with `sealwire status`, or name another vault with --vault",
            "exists",
        )
    async with session.opened(place, relay) as device:
        vault = device.vault(held.id.hex())
        _keep_default(place, vault)
        made = f"Vault {name} has the relay {relay} from now on, not {held.origin}"
        await _tell_made(made, place, device, vault, wait, output)


async def _tell_made(made: str, place: Place, device: Device, vault: Vault, wait: float, output: Output) -> None:
    """Say what was made, and whether the relay knows of it."""
    from sealwire_client.cli import config

    reached, why = await _reached(device, vault, wait)
    fields = {"folder": str(place.folder), "device": device.key.hex(), "vault": vault.name, "id": vault.id.hex()}
    rest = "The relay has it." if reached else f"The relay was not reached: {why}."
    output.answer(
        {**fields, "relay": vault.origin, "relay_reached": reached, "why": why},
        visible(f"{made}, in {place.folder}. {rest}"),
    )
    if not reached:
        output.say(
            "Everything on this device works meanwhile, and the relay is told by the next command that reaches it."
            f" If {vault.origin} is the wrong address, say the same again with the right one"
        )
    if config.read(place.folder).vault != vault.id.hex():
        output.say(f"The folder's default stays another vault; name this one with --vault {vault.name}")


async def _reached(device: Device, vault: Vault, wait: float) -> tuple[bool, str | None]:
    """Whether the relay has the vault, waiting no longer than makes sense; and why not."""
    import trio

    from sealwire_client.link import Link, LinkState

    link = device.link(vault.origin)

    def failed(link: Link) -> bool:
        return link.state is not LinkState.ONLINE and link.last_error is not None

    with trio.move_on_after(wait) as waiting:
        async with trio.open_nursery() as nursery:

            async def give_up() -> None:
                await link.until(failed)
                waiting.cancel()

            nursery.start_soon(give_up)
            await vault.known()
            nursery.cancel_scope.cancel()
            return True, None
    why = (await vault.status()).last_error or f"{vault.origin} did not answer within {wait:g} s"
    return False, why.rstrip(".")


def _keep_default(place: Place, vault: Vault) -> None:
    """The first vault of a folder is what commands mean when none is named."""
    from sealwire_client.cli import config

    if config.read(place.folder).vault in (None, vault.id.hex()):
        config.write(place.folder, config.Config(vault.origin, vault.id.hex()))


@click.command(short_help="Invite one more device, and wait for it.")
@click.option(
    "--seconds",
    type=click.IntRange(1, INVITE_SECONDS_MAX),
    default=INVITE_SECONDS,
    show_default=True,
    help="How long the invite can be used.",
)
@options.vault
@options.wait(20, "Longest wait for the relay, which keeps the invite's mailbox.")
@options.folder_and_json
def invite(seconds: int, vault: str | None, wait: float, folder: Path | None, as_json: bool) -> None:
    """Print an invite for one more device, wait until it is used, and approve that device.

    The link is a secret until then: show it to the invited person alone. It works once. Ctrl-C takes it back.
    """
    from sealwire_client.cli import place, running

    output, found = Output(as_json), place.existing(folder)
    running.run(lambda: _invite(found, vault, seconds, wait, output))


async def _invite(place: Place, name: str | None, seconds: int, wait: float, output: Output) -> None:
    import trio

    from sealwire_client.cli import session

    async with session.opened(place) as device:
        vault = session.chosen(device, place, name)
        await session.reach(device, vault.origin, wait, "an invite needs the relay, so none was made; try again later")
        pending: PendingInvite | None = None
        with trio.move_on_after(wait):
            pending = await vault.invite(seconds=seconds)
        if pending is None:
            status = await vault.status()
            why = session.why_not(status, vault.origin, wait)
            raise relay_missing(f"The relay opened no mailbox for an invite: {why}; none was made; try again later")
        output.answer({"link": pending.link, "seconds": seconds}, pending.link)
        output.say(f"On the other device, within {_told(seconds)}: sealwire join LINK. This command waits for it")
        member = await pending.joined()
        fields = {"device": member.device.hex(), "name": member.name}
        output.answer({"joined": fields}, f"{visible(member.name) or member.device.hex()[:16]} has joined.")


def _told(seconds: int) -> str:
    return f"{seconds // 60} minutes" if seconds >= 120 else f"{seconds} seconds"


@click.command(short_help="Join the vault of an invite.")
@click.argument("link")
@click.option("--name", metavar="DEVICE", help="What to call this device; else the name of this machine.")
@options.passphrase
@options.wait(20, "Longest wait for the relay, and then for the inviting device.")
@options.folder_and_json
def join(link: str, name: str | None, protect: bool, wait: float, folder: Path | None, as_json: bool) -> None:
    """Join the vault of an invite, while `sealwire invite` waits on the other device.

    Makes this device first if the folder has none. LINK can be seen by other users of this machine while the command
    runs; with - it is read from stdin.
    """
    import sys

    from sealwire_client import invites
    from sealwire_client.cli import place, running
    from sealwire_client.transport import check_origin

    text = sys.stdin.read(LINK_CHARACTERS_MAX) if link == "-" else link
    check_origin(invites.parse(text).origin)
    output, found = Output(as_json), place.new(folder, protect)
    running.run(lambda: _join(found, text, name or _default_name(), wait, output))


LINK_CHARACTERS_MAX: Final = 4_096
"""An invite has some 250 characters."""


async def _join(place: Place, link: str, device_name: str, wait: float, output: Output) -> None:
    import trio

    from sealwire_client import invites
    from sealwire_client.cli import session

    invite = invites.parse(link)
    async with session.opened(place) as device:
        held = any(vault.id == invite.vault for vault in device.vaults)
        if not held:
            await session.reach(device, invite.origin, wait, "joining needs the relay; run the same again later")
        vault: Vault | None = None
        with trio.move_on_after(wait):
            vault = await device.join(link, device_name=device_name)
        if vault is None:
            raise relay_missing(
                f"The inviting device did not answer within {wait:g} s: see that `sealwire invite` is still running"
                " there and online, and run the same again"
            )
        _keep_default(place, vault)
        fields = {"folder": str(place.folder), "device": device.key.hex(), "vault": vault.name, "id": vault.id.hex()}
        told = f"Device {device_name} has joined vault {vault.name}"
        if held:
            told = f"This device holds vault {vault.name} already"
        output.answer(
            {**fields, "relay": vault.origin, "held_before": held},
            visible(f"{told}, in {place.folder}."),
        )
